"""A small convolutional network for images of 8 to 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence

from dat_tf.compat import keras
from dat_tf.models import batch_norm

layers = keras.layers


def small_cnn(image_shape: Sequence[int], num_classes: int) -> keras.Model:
  """Four batch-normalised 3 x 3 convolutions, two of them with stride 2.

  About 0.3 M weights for 28 x 28 pixels: enough to show what adversarial training does,
  small enough for a laptop.

  Args:
    image_shape: (height, width, channels).
    num_classes: number of logits.

  Returns:
    Keras model: float32 [B, *image_shape] in [0, 1] -> logits [B, num_classes].
  """
  inputs = keras.Input(image_shape, name="image")
  x = layers.Normalization(mean=0.5, variance=0.25, name="normalize")(inputs)
  for index, (filters, stride) in enumerate([(16, 1), (32, 2), (32, 1), (64, 2)]):
    x = layers.Conv2D(
      filters, 3, stride, padding="same", use_bias=False, name=f"conv{index}"
    )(x)
    x = layers.BatchNormalization(momentum=batch_norm.MOMENTUM, name=f"norm{index}")(x)
    x = layers.ReLU(name=f"relu{index}")(x)
  x = layers.Flatten(name="flatten")(x)
  x = layers.Dense(64, activation="relu", name="hidden")(x)
  return keras.Model(
    inputs, layers.Dense(num_classes, name="logits")(x), name="small_cnn"
  )
