"""A small convolutional network without normalisation, for certified training."""

from __future__ import annotations

from collections.abc import Sequence

from dat_tf.compat import keras

layers = keras.layers


def plain_cnn(image_shape: Sequence[int], num_classes: int) -> keras.Model:
  """Two 4 x 4 convolutions with 16 and 32 channels, and a hidden layer of 100 units.

  The "small" network of Gowal et al., "On the effectiveness of interval bound
  propagation for training verifiably robust models", 2018, with edges padded, so that
  it takes small images too. Without batch-norm: bounds are those of the network in
  inference form, whose statistics lag behind those that training normalises by.

  Args:
    image_shape: (height, width, channels).
    num_classes: number of logits.

  Returns:
    Keras model: float32 [B, *image_shape] in [0, 1] -> logits [B, num_classes].
  """
  inputs = keras.Input(image_shape, name="image")
  x = layers.Normalization(mean=0.5, variance=0.25, name="normalize")(inputs)
  for index, (filters, stride) in enumerate([(16, 2), (32, 1)]):
    x = layers.Conv2D(filters, 4, stride, padding="same", name=f"conv{index}")(x)
    x = layers.ReLU(name=f"relu{index}")(x)
  x = layers.Flatten(name="flatten")(x)
  x = layers.Dense(100, activation="relu", name="hidden")(x)
  return keras.Model(
    inputs, layers.Dense(num_classes, name="logits")(x), name="plain_cnn"
  )
