"""PyTorch's training loop for benchmarks/gpu.py: PGD on PreActResNet-18.

    python benchmarks/torch_loop.py PART SIZES

It runs in an interpreter that has torch, and prints a JSON object a line, as soon as
something is measured. Without torch it prints that it was left out. Sizes other than
those of PreActResNet-18 get a network of one stage.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

try:
  import torch
except ImportError as error:
  print(json.dumps({"torch_skipped": str(error)}))
  sys.exit(0)

from torch import nn
from torch.nn import functional

EPSILON, STEP_SIZE = 0.1, 0.025
# Whether the attack, and whether the pass that trains, computes in bfloat16.
PRECISIONS = {
  "tf32": (False, False),
  "mixed": (True, True),
  "bfloat16": (True, False),
  "float32": (False, False),
}


class Block(nn.Module):
  """Two 3 x 3 convolutions after batch-norm and ReLU, and a shortcut."""

  def __init__(self, channels: int, filters: int, stride: int):
    super().__init__()
    self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(filters)])
    self.convolutions = nn.ModuleList(
      [
        nn.Conv2d(channels, filters, 3, stride, 1, bias=False),
        nn.Conv2d(filters, filters, 3, 1, 1, bias=False),
      ]
    )
    self.shortcut = None
    if stride != 1 or channels != filters:
      self.shortcut = nn.Conv2d(channels, filters, 1, stride, bias=False)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    before = functional.relu(self.norms[0](x))
    shortcut = x if self.shortcut is None else self.shortcut(before)
    y = self.convolutions[0](before)
    return shortcut + self.convolutions[1](functional.relu(self.norms[1](y)))


class PreActResNet(nn.Module):
  """As `dat_tf.models.preact_resnet18`, with these numbers of channels a stage."""

  def __init__(self, stages: tuple[int, ...]):
    super().__init__()
    layers: list[nn.Module] = [nn.Conv2d(3, stages[0], 3, 1, 1, bias=False)]
    channels = stages[0]
    for stage, filters in enumerate(stages):
      layers.append(Block(channels, filters, 2 if stage else 1))
      layers.append(Block(filters, filters, 1))
      channels = filters
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.layers((x - 0.5) / 0.25)


def training_step(
  network: nn.Module,
  batch: tuple[torch.Tensor, torch.Tensor],
  attack_steps: int,
  in_bfloat16: tuple[bool, bool],
) -> Callable[[], None]:
  images, labels = batch
  optimizer = torch.optim.AdamW(network.parameters(), 0.001, weight_decay=1e-4)

  def automatic(enabled: bool) -> Any:  # noqa: FBT001
    if not enabled:
      return contextlib.nullcontext()
    return torch.autocast(images.device.type, torch.bfloat16)

  def step() -> None:
    network.eval().requires_grad_(requires_grad=False)
    moved = images + torch.empty_like(images).uniform_(-EPSILON, EPSILON)
    moved = moved.clamp(0.0, 1.0)
    for _ in range(attack_steps):
      moved.requires_grad_()
      with automatic(in_bfloat16[0]):
        loss = functional.cross_entropy(network(moved), labels, reduction="sum")
      (gradient,) = torch.autograd.grad(loss, moved)
      moved = moved.detach() + STEP_SIZE * gradient.sign()
      moved = moved.clamp(images - EPSILON, images + EPSILON).clamp(0.0, 1.0)
    network.train().requires_grad_(requires_grad=True)
    with automatic(in_bfloat16[1]):
      logits = network(torch.cat([images, moved]))
      loss = 2.0 * functional.cross_entropy(logits, torch.cat([labels, labels]))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()

  return step


def measured(name: str, sizes: dict[str, Any]) -> dict[str, float]:
  """The figures of one precision."""
  has_gpu = torch.cuda.is_available()
  device = torch.device("cuda" if has_gpu else "cpu")
  torch.backends.cudnn.benchmark = True
  torch.backends.cudnn.allow_tf32 = name != "float32"
  torch.backends.cuda.matmul.allow_tf32 = name != "float32"
  stages = (64, 128, 256, 512) if sizes["model"] == "preact_resnet18" else (4,)
  form = {"device": device, "memory_format": torch.channels_last}
  network = PreActResNet(stages).to(**form)
  shape = (sizes["batch"], 3, sizes["image"], sizes["image"])
  images = torch.rand(shape).to(**form)
  labels = torch.randint(10, shape[:1], device=device)
  step = training_step(
    network, (images, labels), sizes["attack_steps"], PRECISIONS[name]
  )
  if has_gpu:
    torch.cuda.reset_peak_memory_stats()

  def seconds(steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
      step()
    if has_gpu:
      torch.cuda.synchronize()
    return time.perf_counter() - begin

  seconds(2)  # chooses the kernels
  steps = int(min(max(sizes["turn_seconds"] / seconds(1), 2), 100))
  median = statistics.median(seconds(steps) for _ in range(sizes["turns"]))
  key = f"torch_{name}"
  figures = {f"{key}_images_per_second": steps * sizes["batch"] / median}
  if has_gpu:
    figures[f"{key}_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
  return figures


def main() -> None:
  sizes = json.loads(sys.argv[2])
  print(json.dumps({"torch": torch.__version__}), flush=True)
  for name in PRECISIONS:
    try:
      figures: dict[str, Any] = measured(name, sizes)
    except Exception as error:
      traceback.print_exc()
      text = f"{type(error).__name__}: {error}"
      figures = {f"torch_{name}_error": " ".join(text.split())[:500]}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
  main()
