"""The networks of benchmarks/torch_peers.py: two of the package's, in PyTorch.

They take images [N, C, H, W] in [0, 1] and give logits [N, 10].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 10
CIFAR_MEAN, CIFAR_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Normalized(nn.Module):
  """Pixels less their mean, over their deviation, by channel."""

  def __init__(self, mean: Sequence[float], deviation: Sequence[float]):
    super().__init__()
    self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
    self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return (x - self.mean) / self.deviation


def small_cnn(shape: Sequence[int]) -> nn.Module:
  """As `dat_tf.models.small_cnn`; shape: (height, width, channels)."""
  height, width, channels = shape
  parts: list[nn.Module] = [Normalized([0.5], [0.5])]
  for filters, stride in ((16, 1), (32, 2), (32, 1), (64, 2)):
    parts += [
      nn.Conv2d(channels, filters, 3, stride, 1, bias=False),
      nn.BatchNorm2d(filters, eps=1e-3),
      nn.ReLU(inplace=True),
    ]
    channels = filters
    height, width = -(-height // stride), -(-width // stride)
  parts += [
    nn.Flatten(),
    nn.Linear(channels * height * width, 64),
    nn.ReLU(inplace=True),
    nn.Linear(64, CLASSES),
  ]
  return nn.Sequential(*parts)


class Block(nn.Module):
  """As `dat_tf.models.blocks.preactivation_block`."""

  def __init__(self, channels: int, filters: int, stride: int):
    super().__init__()
    self.norm0 = nn.BatchNorm2d(channels)
    self.conv0 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
    self.norm1 = nn.BatchNorm2d(filters)
    self.conv1 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
    self.shortcut = None
    if stride != 1 or channels != filters:
      self.shortcut = nn.Conv2d(channels, filters, 1, stride, bias=False)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    before = torch.relu(self.norm0(x))
    shortcut = x if self.shortcut is None else self.shortcut(before)
    x = self.conv0(before)
    return self.conv1(torch.relu(self.norm1(x))) + shortcut


def preact_resnet18(shape: Sequence[int]) -> nn.Module:
  """As `dat_tf.models.preact_resnet18`; shape: (height, width, 3)."""
  parts: list[nn.Module] = [
    Normalized(CIFAR_MEAN, CIFAR_DEVIATION),
    nn.Conv2d(shape[2], 64, 3, 1, 1, bias=False),
  ]
  channels = 64
  for stage, filters in enumerate((64, 128, 256, 512)):
    for block in range(2):
      stride = 2 if stage > 0 and block == 0 else 1
      parts.append(Block(channels, filters, stride))
      channels = filters
  parts += [
    nn.BatchNorm2d(channels),
    nn.ReLU(inplace=True),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(channels, CLASSES),
  ]
  return nn.Sequential(*parts)


NETWORKS = {"small_cnn": small_cnn, "preact_resnet18": preact_resnet18}


def load_small_cnn(
  network: nn.Module, weights: Mapping[str, np.ndarray], shape: Sequence[int]
) -> None:
  """Gives a `small_cnn` the weights of Keras', for images that are turned by 180°.

  Where a convolution has stride 2, Keras pads below and on the right, PyTorch on all
  sides. The two agree when image and kernels are turned, at no cost.

  Args:
    network: what is changed.
    weights: arrays by LAYER/VARIABLE, as Keras names them.
    shape: (height, width, channels) of an image.
  """
  convolutions = [part for part in network if isinstance(part, nn.Conv2d)]
  norms = [part for part in network if isinstance(part, nn.BatchNorm2d)]
  hidden, logits = [part for part in network if isinstance(part, nn.Linear)]
  places = -(-shape[0] // 4), -(-shape[1] // 4)
  with torch.no_grad():
    for index, (convolution, norm) in enumerate(zip(convolutions, norms)):
      kernel = weights[f"conv{index}/kernel"][::-1, ::-1].transpose(3, 2, 0, 1)
      _copy(convolution.weight, kernel)
      for ours, theirs in (
        ("gamma", norm.weight),
        ("beta", norm.bias),
        ("moving_mean", norm.running_mean),
        ("moving_variance", norm.running_var),
      ):
        _copy(theirs, weights[f"norm{index}/{ours}"])
    kernel = weights["hidden/kernel"].reshape(*places, -1, hidden.out_features)
    kernel = kernel[::-1, ::-1].transpose(3, 2, 0, 1)
    _copy(hidden.weight, kernel.reshape(hidden.out_features, -1))
    _copy(hidden.bias, weights["hidden/bias"])
    _copy(logits.weight, weights["logits/kernel"].T)
    _copy(logits.bias, weights["logits/bias"])


def _copy(tensor: torch.Tensor, values: np.ndarray) -> None:
  tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def channels_last(images: np.ndarray) -> torch.Tensor:
  """[N, H, W, C] as [N, C, H, W], of the same order in memory."""
  images = np.ascontiguousarray(images, np.float32)
  tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
  return tensor.contiguous(memory_format=torch.channels_last)


def make_network(spec: Mapping[str, Any]) -> nn.Module:
  """That of a SPEC of benchmarks/torch_peers.py, channels_last."""
  network = NETWORKS[spec["network"]](spec["shape"])
  return network.to(memory_format=torch.channels_last)
