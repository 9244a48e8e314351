"""Pre-activation residual networks in the form used on CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from dat_tf.models import batch_norm

layers = tf.keras.layers

# Per-channel mean and variance of CIFAR-10's training images, pixels in [0, 1].
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_VARIANCE = (0.2470**2, 0.2435**2, 0.2616**2)


def preact_resnet18(image_shape: Sequence[int], num_classes: int) -> tf.keras.Model:
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
  inputs = tf.keras.Input(image_shape, name="image")
  mean, variance = (
    (_CIFAR_MEAN, _CIFAR_VARIANCE) if image_shape[-1] == 3 else (0.5, 0.25)
  )
  x = layers.Normalization(mean=mean, variance=variance, name="normalize")(inputs)
  x = _convolution(x, 64, name="stem")
  for stage, filters in enumerate([64, 128, 256, 512]):
    for block in range(2):
      stride = 2 if stage > 0 and block == 0 else 1
      x = _block(x, filters, stride, name=f"stage{stage}_block{block}")
  x = _normalize_and_rectify(x, name="head")
  x = layers.GlobalAveragePooling2D(name="pool")(x)
  logits = layers.Dense(num_classes, name="logits")(x)
  return tf.keras.Model(inputs, logits, name="preact_resnet18")


def _block(x: tf.Tensor, filters: int, stride: int, name: str) -> tf.Tensor:
  activated = _normalize_and_rectify(x, name=f"{name}_pre0")
  if stride != 1 or x.shape[-1] != filters:
    shortcut = _convolution(activated, filters, 1, stride, name=f"{name}_shortcut")
  else:
    shortcut = x
  x = _convolution(activated, filters, 3, stride, name=f"{name}_conv0")
  x = _normalize_and_rectify(x, name=f"{name}_pre1")
  x = _convolution(x, filters, name=f"{name}_conv1")
  return layers.Add(name=f"{name}_add")([x, shortcut])


def _normalize_and_rectify(x: tf.Tensor, name: str) -> tf.Tensor:
  x = layers.BatchNormalization(
    momentum=batch_norm.MOMENTUM, epsilon=1e-5, name=f"{name}_norm"
  )(x)
  return layers.ReLU(name=f"{name}_relu")(x)


def _convolution(
  x: tf.Tensor, filters: int, size: int = 3, stride: int = 1, *, name: str
) -> tf.Tensor:
  return layers.Conv2D(
    filters,
    size,
    stride,
    padding="same",
    use_bias=False,
    kernel_initializer="he_normal",
    name=name,
  )(x)
