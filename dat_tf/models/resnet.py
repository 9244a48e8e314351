"""Residual networks in the form used on ImageNet, with feature denoising if wanted."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from dat_tf.compat import keras
from dat_tf.models.blocks import (
  IMAGENET,
  activated,
  convolution,
  normalized,
  normalized_pixels,
)

layers = keras.layers

# Blocks of each stage, and whether they are bottlenecks.
_FORMS = {18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True)}


def resnet(
  image_shape: Sequence[int],
  num_classes: int,
  *,
  depth: int = 50,
  denoising: bool = False,
) -> keras.Model:
  """ResNet-18 or -50 (He et al., "Deep residual learning for image recognition", 2016).

  A 7 x 7 convolution of stride 2 and a 3 x 3 maximum of stride 2, then four stages; in
  bottlenecks the 3 x 3 convolution has the stride. With 1,000 classes they have 11.7 M
  and 25.6 M weights.

  With denoising, a block that averages features over the image, weighted by their
  likeness, ends each stage (Xie et al., "Feature denoising for improving adversarial
  robustness", CVPR 2019: non-local means, Gaussian, softmax). Its memory grows with the
  fourth power of the image's side: at 224 pixels the first holds 3,136^2 likenesses.

  Args:
    image_shape: (height, width, channels), sides of at least 32 pixels. Three channels
      are normalised by ImageNet's mean and deviation, any other number by 0.5 and 0.5.
    num_classes: number of logits.
    depth: 18 or 50.
    denoising: whether each stage ends in a denoising block.

  Returns:
    Keras model: float32 [B, *image_shape] in [0, 1] -> logits [B, num_classes].
  """
  blocks, bottleneck = _FORMS[depth]
  inputs = keras.Input(image_shape, name="image")
  x = convolution(normalized_pixels(inputs, IMAGENET), 64, 7, 2, name="stem")
  x = activated(normalized(x, name="stem_norm"), name="stem_relu")
  x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
  for stage, number in enumerate(blocks):
    for block in range(number):
      stride = 2 if stage > 0 and block == 0 else 1
      x = _block(
        x,
        64 * 2**stage,
        stride,
        bottleneck=bottleneck,
        name=f"stage{stage}_block{block}",
      )
    if denoising:
      x = _denoised(x, name=f"stage{stage}_denoise")
  x = layers.GlobalAveragePooling2D(name="pool")(x)
  logits = layers.Dense(num_classes, name="logits")(x)
  name = "denoising_resnet" if denoising else "imagenet_resnet"
  return keras.Model(inputs, logits, name=f"{name}{depth}")


def _block(
  x: tf.Tensor, filters: int, stride: int, *, bottleneck: bool, name: str
) -> tf.Tensor:
  """Convolutions of (filters, size, stride), and a shortcut."""
  form = [(filters, 3, stride), (filters, 3, 1)]
  if bottleneck:
    form = [(filters, 1, 1), (filters, 3, stride), (4 * filters, 1, 1)]
  outputs = form[-1][0]
  shortcut = x
  if stride != 1 or x.shape[-1] != outputs:
    shortcut = convolution(x, outputs, 1, stride, name=f"{name}_shortcut")
    shortcut = normalized(shortcut, name=f"{name}_shortcut_norm")
  for index, (number, size, step) in enumerate(form):
    x = convolution(x, number, size, step, name=f"{name}_conv{index}")
    x = normalized(x, name=f"{name}_norm{index}")
    if index < len(form) - 1:
      x = activated(x, name=f"{name}_relu{index}")
  x = layers.Add(name=f"{name}_add")([x, shortcut])
  return activated(x, name=f"{name}_relu")


def _denoised(x: tf.Tensor, name: str) -> tf.Tensor:
  """Features x + BN(W y), y_i the mean of x_j weighted by likeness.

  The weights are softmax_j(theta_i . phi_j / sqrt(d)); theta and phi have half the
  channels, d of them. BN's scale starts at 0: the block first does nothing.
  """
  height, width, channels = x.shape[1:]
  embedded = []
  for part in ("theta", "phi"):
    y = convolution(x, channels // 2, 1, name=f"{name}_{part}")
    embedded.append(layers.Reshape((height * width, channels // 2))(y))
  theta = layers.Rescaling((channels // 2) ** -0.5, name=f"{name}_scale")(embedded[0])
  values = layers.Reshape((height * width, channels))(x)
  y = layers.Attention(name=f"{name}_mean")([theta, values, embedded[1]])
  y = layers.Reshape((height, width, channels))(y)
  y = convolution(y, channels, 1, name=f"{name}_conv")
  y = normalized(y, name=f"{name}_norm", scale="zeros")
  return layers.Add(name=f"{name}_add")([x, y])
