"""Pre-activation residual networks in the form used on CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

from dat_tf.compat import keras
from dat_tf.models.blocks import (
  CIFAR,
  convolution,
  normalized_pixels,
  preactivated,
  preactivation_block,
)

layers = keras.layers


def preact_resnet18(image_shape: Sequence[int], num_classes: int) -> keras.Model:
  """PreActResNet-18 (He et al., "Identity mappings in deep residual networks", 2016).

  Four stages of two basic blocks with 64, 128, 256 and 512 channels after a 3 x 3
  convolution without pooling: 11.2 M weights. Normalisation and ReLU come before each
  convolution; a block that changes shape takes its shortcut (1 x 1) after them.

  Args:
    image_shape: (height, width, channels). Three channels are normalised by CIFAR-10's
      mean and deviation, any other number by 0.5 and 0.5.
    num_classes: number of logits.

  Returns:
    Keras model: float32 [B, *image_shape] in [0, 1] -> logits [B, num_classes].
  """
  inputs = keras.Input(image_shape, name="image")
  x = convolution(normalized_pixels(inputs, CIFAR), 64, 3, name="stem")
  for stage, filters in enumerate([64, 128, 256, 512]):
    for block in range(2):
      stride = 2 if stage > 0 and block == 0 else 1
      name = f"stage{stage}_block{block}"
      x = preactivation_block(x, filters, stride, name=name)
  x = preactivated(x, name="head")
  x = layers.GlobalAveragePooling2D(name="pool")(x)
  logits = layers.Dense(num_classes, name="logits")(x)
  return keras.Model(inputs, logits, name="preact_resnet18")
