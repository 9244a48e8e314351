"""Wide residual networks in the form used on CIFAR."""

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


def wide_resnet(
  image_shape: Sequence[int],
  num_classes: int,
  depth: int = 28,
  width: int = 10,
  activation: str = "relu",
) -> keras.Model:
  """WRN-depth-width (Zagoruyko and Komodakis, "Wide residual networks", 2016).

  Three stages of (depth - 4) / 6 basic blocks, with 16, 32 and 64 times `width`
  channels, after a 3 x 3 convolution with 16. With 10 classes WRN-28-10 has 36.5 M
  weights, WRN-34-10 46.2 M. Swish for ReLU is the choice of Gowal et al., "Uncovering
  the limits of adversarial training", 2020.

  Args:
    image_shape: (height, width, channels). Three channels are normalised by CIFAR-10's
      mean and deviation, any other number by 0.5 and 0.5.
    num_classes: number of logits.
    depth: 6 n + 4, n at least 1.
    width: at least 1.
    activation: `relu`, `swish`, or another one of Keras.

  Returns:
    Keras model: float32 [B, *image_shape] in [0, 1] -> logits [B, num_classes].
  """
  inputs = keras.Input(image_shape, name="image")
  x = convolution(normalized_pixels(inputs, CIFAR), 16, 3, name="stem")
  for stage in range(3):
    for block in range((depth - 4) // 6):
      stride = 2 if stage > 0 and block == 0 else 1
      name = f"stage{stage}_block{block}"
      x = preactivation_block(x, 16 * width * 2**stage, stride, activation, name=name)
  x = preactivated(x, activation, name="head")
  x = layers.GlobalAveragePooling2D(name="pool")(x)
  logits = layers.Dense(num_classes, name="logits")(x)
  return keras.Model(inputs, logits, name=f"wide_resnet{depth}_{width}")
