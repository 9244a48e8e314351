"""What residual networks are built of."""

from __future__ import annotations

import tensorflow as tf

from dat_tf.compat import keras
from dat_tf.models import batch_norm

layers = keras.layers

# Per-channel mean and variance of the training images, pixels in [0, 1].
CIFAR = (
  (0.4914, 0.4822, 0.4465),
  (0.2470**2, 0.2435**2, 0.2616**2),
)
IMAGENET = (
  (0.485, 0.456, 0.406),
  (0.229**2, 0.224**2, 0.225**2),
)


def normalized_pixels(
  images: tf.Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]
) -> tf.Tensor:
  """Images less their mean, over their deviation, by channel.

  Args:
    images: float32 [B, H, W, C] in [0, 1].
    statistics: mean and variance of three channels; any other number of channels is
      normalised by 0.5 and 0.5.
  """
  mean, variance = statistics if images.shape[-1] == 3 else (0.5, 0.25)
  return layers.Normalization(mean=mean, variance=variance, name="normalize")(images)


def convolution(
  x: tf.Tensor, filters: int, size: int, stride: int = 1, *, name: str
) -> tf.Tensor:
  """A convolution without bias, padded so that stride 1 keeps the shape."""
  return layers.Conv2D(
    filters,
    size,
    stride,
    padding="same",
    use_bias=False,
    kernel_initializer="he_normal",
    name=name,
  )(x)


def normalized(x: tf.Tensor, *, name: str, scale: str = "ones") -> tf.Tensor:
  """Batch-norm; `scale` is the initializer of its scale."""
  return layers.BatchNormalization(
    momentum=batch_norm.MOMENTUM, epsilon=1e-5, gamma_initializer=scale, name=name
  )(x)


def activated(x: tf.Tensor, activation: str = "relu", *, name: str) -> tf.Tensor:
  """The nonlinearity of that name, `relu` or another one of Keras."""
  if activation == "relu":
    return layers.ReLU(name=name)(x)
  return layers.Activation(activation, name=name)(x)


def preactivated(x: tf.Tensor, activation: str = "relu", *, name: str) -> tf.Tensor:
  """Batch-norm, then the nonlinearity."""
  x = normalized(x, name=f"{name}_norm")
  return activated(x, activation, name=f"{name}_{activation}")


def preactivation_block(
  x: tf.Tensor, filters: int, stride: int, activation: str = "relu", *, name: str
) -> tf.Tensor:
  """Two 3 x 3 convolutions and a shortcut (He et al., "Identity mappings", 2016).

  Normalisation and activation come before each convolution; a block that changes shape
  takes its shortcut (1 x 1) after them.
  """
  before = preactivated(x, activation, name=f"{name}_pre0")
  shortcut = x
  if stride != 1 or x.shape[-1] != filters:
    shortcut = convolution(before, filters, 1, stride, name=f"{name}_shortcut")
  x = convolution(before, filters, 3, stride, name=f"{name}_conv0")
  x = preactivated(x, activation, name=f"{name}_pre1")
  x = convolution(x, filters, 3, name=f"{name}_conv1")
  return layers.Add(name=f"{name}_add")([x, shortcut])
