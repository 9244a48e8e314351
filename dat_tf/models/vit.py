"""A vision transformer that begins with convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from dat_tf.compat import keras
from dat_tf.models.blocks import IMAGENET, normalized_pixels

layers = keras.layers

_WIDTH, _DEPTH, _HEADS = 384, 12, 6


def vit_small(image_shape: Sequence[int], num_classes: int) -> keras.Model:
  """ViT-S/16 with a convolution stem in place of 16 x 16 patches: 22.8 M weights.

  Four 3 x 3 convolutions of stride 2 with 48, 96, 192 and 384 channels, each followed
  by layer norm and GELU, then a linear map to tokens, to which a learned embedding of
  the position is added: the stem with which Singh et al., "Revisiting adversarial
  training for ImageNet", NeurIPS 2023, train robust ViTs. Then twelve pre-norm
  transformer blocks with six heads (Dosovitskiy et al., ICLR 2021). The tokens' mean is
  classified, as in Beyer et al., "Better plain ViT baselines for ImageNet-1k", 2022;
  there is no class token.

  Args:
    image_shape: (height, width, channels), sides a multiple of 16. Three channels are
      normalised by ImageNet's mean and deviation, any other number by 0.5 and 0.5.
    num_classes: number of logits.

  Returns:
    Keras model: float32 [B, *image_shape] in [0, 1] -> logits [B, num_classes].

  Raises:
    ValueError: a side is no multiple of 16.
  """
  height, width = image_shape[:2]
  if height % 16 or width % 16:
    raise ValueError("its sides must be multiples of 16")
  inputs = keras.Input(image_shape, name="image")
  x = normalized_pixels(inputs, IMAGENET)
  for index, filters in enumerate([48, 96, 192, _WIDTH]):
    x = layers.Conv2D(filters, 3, 2, padding="same", name=f"stem_conv{index}")(x)
    x = _normalized(x, f"stem_norm{index}")
    x = layers.Activation("gelu", name=f"stem_gelu{index}")(x)
  tokens = height * width // 256
  x = layers.Reshape((tokens, _WIDTH), name="tokens")(x)
  # Its bias, one vector for each token, is the embedding of the position.
  x = layers.EinsumDense(
    "btc,cd->btd",
    (tokens, _WIDTH),
    bias_axes="td",
    bias_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
    name="embedding",
  )(x)
  for index in range(_DEPTH):
    x = _block(x, f"block{index}")
  x = layers.GlobalAveragePooling1D(name="pool")(_normalized(x, "head_norm"))
  logits = layers.Dense(num_classes, name="logits")(x)
  return keras.Model(inputs, logits, name="vit_small16")


def _block(x: tf.Tensor, name: str) -> tf.Tensor:
  y = _normalized(x, f"{name}_norm0")
  y = layers.MultiHeadAttention(_HEADS, _WIDTH // _HEADS, name=f"{name}_attention")(
    y, y
  )
  x = layers.Add(name=f"{name}_add0")([x, y])
  y = _normalized(x, f"{name}_norm1")
  y = layers.Dense(4 * _WIDTH, activation="gelu", name=f"{name}_dense0")(y)
  y = layers.Dense(_WIDTH, name=f"{name}_dense1")(y)
  return layers.Add(name=f"{name}_add1")([x, y])


def _normalized(x: tf.Tensor, name: str) -> tf.Tensor:
  return layers.LayerNormalization(epsilon=1e-6, name=name)(x)
