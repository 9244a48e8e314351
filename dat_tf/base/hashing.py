"""Random numbers that depend on what they are for, not on who draws them.

A stateful generator gives different numbers when the work is split differently
over workers. Here every number is a hash of its coordinates, for instance (seed,
epoch, example, pixel), so that an example meets the same noise on any worker, in any
batch, on any device:

    keys = hashing.stream_keys(seed, epoch, example_ids)     # one stream an example
    noise = hashing.uniform(keys, image_shape)               # [batch, *image_shape]

Keys are mixed with the finaliser of SplitMix64 (Steele et al., "Fast splittable
pseudorandom number generators", OOPSLA 2014); the numbers of a stream with a 32-bit
finaliser of the same xor-shift-multiply kind, which is cheap without a fusing
compiler. The numbers are fit for noise, not for secrets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["stream_keys"]


def _fold(x: tf.Tensor, bits: int) -> tf.Tensor:
  return tf.bitwise.bitwise_xor(
    x, tf.bitwise.right_shift(x, tf.constant(bits, x.dtype))
  )


def _mix64(x: tf.Tensor) -> tf.Tensor:
  x = _fold(x + tf.constant(0x9E3779B97F4A7C15, tf.uint64), 30)
  x = _fold(x * tf.constant(0xBF58476D1CE4E5B9, tf.uint64), 27)
  return _fold(x * tf.constant(0x94D049BB133111EB, tf.uint64), 31)


def mix32(x: tf.Tensor) -> tf.Tensor:
  """Scrambles uint32 numbers of any shape, one to one: neighbours end far apart."""
  x = _fold(x, 16) * tf.constant(0x7FEB352D, tf.uint32)
  x = _fold(x, 15) * tf.constant(0x846CA68B, tf.uint32)
  return _fold(x, 16)


def stream_keys(*coordinates: Any) -> tf.Tensor:
  """Keys of independent streams, one for each element of the coordinates.

  Args:
    *coordinates: integers or integer tensors (any integer dtype) that broadcast
      against each other to shape [...], for instance a seed, an epoch and a batch of
      example ids. Their order counts.

  Returns:
    uint32 tensor [..., 2].
  """
  key = tf.constant(0, tf.uint64)
  for coordinate in coordinates:
    word = tf.cast(tf.cast(coordinate, tf.int64), tf.uint64)
    key = _mix64(tf.bitwise.bitwise_xor(*_broadcast(key, word)))
  return tf.bitcast(key, tf.uint32)


def _broadcast(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  # The kernel of `bitwise_xor` broadcasts on the CPU only.
  shape = tf.broadcast_dynamic_shape(tf.shape(x), tf.shape(y))
  return tf.broadcast_to(x, shape), tf.broadcast_to(y, shape)


def bits(keys: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
  """Uniform 32-bit words: `shape` of them from each stream.

  Args:
    keys: uint32 [..., 2] from `stream_keys`.
    shape: static shape of what each stream yields.

  Returns:
    uint32 tensor [..., *shape].
  """
  counter = tf.cast(tf.range(math.prod(shape)), tf.uint32)
  words = mix32(mix32(counter + keys[..., 0:1]) + keys[..., 1:2])
  return tf.reshape(words, tf.concat([tf.shape(keys)[:-1], shape], axis=0))


def uniform(keys: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
  """float32 [..., *shape], uniform in [0, 1) on a grid of 2^-24. See `bits`."""
  words = tf.bitwise.right_shift(bits(keys, shape), tf.constant(8, tf.uint32))
  return tf.cast(words, tf.float32) * 2.0**-24


def normal(keys: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
  """float32 [..., *shape], standard normal (Box and Muller 1958). See `bits`."""
  pairs = uniform(keys, [2, *shape])
  axis = keys.shape.rank - 1
  radius, angle = (tf.gather(pairs, index, axis=axis) for index in (0, 1))
  # 1 - u lies in (0, 1]: its logarithm is finite.
  return tf.sqrt(-2.0 * tf.math.log(1.0 - radius)) * tf.cos(2.0 * math.pi * angle)
