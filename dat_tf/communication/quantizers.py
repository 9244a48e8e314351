"""Gradients in 8, 4 or 2 bits a value.

A quantizer turns float32 values into one int32 vector, its payload, and back:

    quantizer = BucketQuantizer(bits=4)                       # unbiased
    keys = hashing.stream_keys(seed, step, worker, pack)      # uint32 [2]
    payload = quantizer.encode(values, keys)                  # [payload_size(n)]
    estimate = quantizer.decode(payload, n)                   # E[estimate] = values

This is QSGD (Alistarh et al., "QSGD: Communication-efficient SGD via gradient
quantization and encoding", NeurIPS 2017). A bucket of d values v is sent as its scale
and one of 2 s + 1 levels for each value, s = 2^(bits - 1) - 1:

    Q(v)_j = scale · sign(v_j) · ξ_j / s,    ξ_j one of the two integers around
                                             s · |v_j| / scale

Which scale, and which of the two integers, are choices of their own:

- `largest`, the default, scales by the largest magnitude, `l2_norm` by the l2 norm as in
  the paper. The norm is the larger of the two, √d / 3 times and more for gradients, and
  the distance between levels grows with it.
- `stochastic` draws the integer so that E[Q(v)] = v. What it costs is variance:

      E ‖Q(v) - v‖² <= ½ (√(1 + (d - 1) / s²) - 1) ‖v‖²     for `largest`
      E ‖Q(v) - v‖² <= min(d / s², √d / s) ‖v‖²             for `l2_norm` (their lemma 3.1)

  The first is below both d / (4 s²) and √d / (2 s), and is reached where one value
  stands above d - 1 equal small ones. For 1,024 values it is 0.016, 1.8 and 15 at 8, 4
  and 2 bits.
- `nearest` takes the nearer integer: biased, but with `largest` a contraction, as error
  feedback requires,

      ‖Q(v) - v‖² <= (d - 1) / (d - 1 + 4 s²) ‖v‖²

  which for 1,024 values is 0.016, 0.84 and 0.996, far less on most vectors. It holds
  because no value errs by more than itself, nor by more than half a level, and the
  largest not at all. With `l2_norm` every value of a bucket may round to zero: then
  nothing is contracted and error feedback does not work.

Values are rounded in units of 2^-16 of a level, the noise's resolution. The expectation
is therefore off by at most 2^-17 of the distance between two levels: the mean of 2^32
draws would be needed to see it.

Buckets that are not ordinary:

- All zero, or a scale below 2^-100 (8e-31; all denormal numbers are): decodes to zeros.
- With an infinite or NaN value, or a scale above 2^127 (1.7e38): decodes to NaN in all
  of its values, on every worker alike.
- Denormal values beside ordinary ones count as zeros.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Callable, Protocol

import numpy as np
import tensorflow as tf

from dat_tf import hashing
from dat_tf.errors import UserError

# XLA makes one pass over memory of many elementwise operations, on a CPU too.
_compiled = functools.partial(tf.function, jit_compile=True, autograph=False)

# A level is this many units: 16 bits of noise decide between two levels.
_UNITS = 2**16


class Quantizer(Protocol):
  """How float32 values are sent in fewer bits."""

  def payload_size(self, num_values: int) -> int:
    """How many int32 words `encode` makes of `num_values` >= 1 values."""
    ...

  def encode(self, values: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Quantizes one vector, or many at once.

    The same values and keys give the same payload, alone or beside others.

    Args:
      values: float32 [..., n] of static shape.
      keys: uint32 [..., 2], the stream of random numbers for each vector
        (`hashing.stream_keys`). Vectors whose errors shall average out need streams of
        their own: let them depend on step, worker and position.

    Returns:
      int32 [..., payload_size(n)].
    """
    ...

  def decode(self, payload: tf.Tensor, num_values: int) -> tf.Tensor:
    """What `encode` made its payload of, up to the quantization's error.

    Args:
      payload: int32 [..., payload_size(num_values)] of static shape.
      num_values: n.

    Returns:
      float32 [..., n].
    """
    ...


# Maps buckets, float32 [..., d], to scales, float32 [...]: no less than any magnitude,
# and not finite if a value is not.
Scale = Callable[[tf.Tensor], tf.Tensor]

# Maps keys, uint32 [..., 2], and positions, uint32 that broadcast against [...], to two
# int32 tensors of numbers in [0, 2^16): what is added in units before cutting off.
Rounding = Callable[[tf.Tensor, tf.Tensor], "tuple[tf.Tensor, tf.Tensor]"]


@_compiled
def _fold(
  buckets: tf.Tensor,
  convert: Callable[[tf.Tensor], tf.Tensor],
  combine: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tf.Tensor:
  """The greater part of a reduction over the last axis, in a form that vectorizes."""
  parts = tf.split(buckets, math.gcd(8, buckets.shape[-1]), axis=-1)
  return functools.reduce(combine, map(convert, parts))


def _magnitude(x: tf.Tensor) -> tf.Tensor:
  """|x| as int32, whose order is that of the floats with infinity and NaN on top."""
  return tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32), 0x7FFFFFFF)


def _square(x: tf.Tensor) -> tf.Tensor:
  """x² as float64, which neither overflows nor underflows."""
  return tf.square(tf.cast(x, tf.float64))


def largest(buckets: tf.Tensor) -> tf.Tensor:
  """The largest magnitude in each bucket: float32 [..., d] -> [...]."""
  folded = _fold(buckets, _magnitude, tf.maximum)
  return tf.bitcast(tf.reduce_max(folded, axis=-1), tf.float32)


def l2_norm(buckets: tf.Tensor) -> tf.Tensor:
  """The l2 norm of each bucket: float32 [..., d] -> [...]."""
  folded = _fold(buckets, _square, tf.add)
  return tf.cast(tf.sqrt(tf.reduce_sum(folded, axis=-1)), tf.float32)


def stochastic(keys: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Up with the probability that keeps the expectation: uniform noise.

  The halves of one random word serve two values.
  """
  words = tf.bitcast(hashing.bits_at(keys, positions), tf.int32)
  low = tf.bitwise.bitwise_and(words, _UNITS - 1)
  return low, tf.bitwise.bitwise_and(tf.bitwise.right_shift(words, 16), _UNITS - 1)


def nearest(keys: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """To the nearer level, upwards from the middle; no random numbers."""
  del keys
  half = tf.fill(positions.shape, _UNITS // 2)
  return half, half


@dataclasses.dataclass(frozen=True)
class BucketQuantizer:
  """Codes of a few bits for each value and a scale for each bucket.

  The payload is first the codes, then the buckets' steps (scale / s) as the bits of
  float32 numbers. A bucket of d values has `bits` · d / 32 words of codes; with
  p = 32 / bits, value i · d / p + j stands in the i-th lowest bits of word j, as a
  two's complement. The last bucket is filled up with zeros, which are sent too.

  Attributes:
    bits: 2, 4 or 8 a value.
    bucket_size: d, a multiple of 32 / bits. Vectors whose length is a multiple of it
      are spared a copy. For 1,024 a payload has 0.251, 0.126 and 0.0635 of the values'
      bytes at 8, 4 and 2 bits.
    scale: `largest`, `l2_norm`, or a function like them.
    rounding: `stochastic` (unbiased), `nearest` (contracting), or a function like them.

  Raises:
    UserError: other bits, or another bucket size.
  """

  bits: int
  bucket_size: int = 1024
  scale: Scale = largest
  rounding: Rounding = stochastic

  def __post_init__(self) -> None:
    if self.bits not in (2, 4, 8):
      raise UserError(f"{self.bits} bits a value: choose 2, 4 or 8.")
    packing = 32 // self.bits
    if self.bucket_size < 1 or self.bucket_size % packing:
      raise UserError(
        f"bucket size {self.bucket_size}: at {self.bits} bits a value it must be a"
        f" positive multiple of {packing}, which fill a 32-bit word."
      )

  def payload_size(self, num_values: int) -> int:
    return self._num_buckets(num_values) * (self._words + 1)

  def encode(self, values: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    *vectors, num_values = values.shape
    num_buckets = self._num_buckets(num_values)
    missing = num_buckets * self.bucket_size - num_values
    if missing:
      values = tf.pad(values, [[0, 0]] * len(vectors) + [[0, missing]])
    buckets = tf.reshape(values, [*vectors, num_buckets, self.bucket_size])
    return self._pack(buckets, self.scale(buckets), keys)

  def decode(self, payload: tf.Tensor, num_values: int) -> tf.Tensor:
    return self._unpack(payload)[..., :num_values]

  @property
  def _words(self) -> int:
    """Words of codes in a bucket."""
    return self.bucket_size * self.bits // 32

  def _num_buckets(self, num_values: int) -> int:
    return -(-num_values // self.bucket_size)

  @_compiled
  def _pack(self, buckets: tf.Tensor, scale: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """[..., B, d], [..., B], [..., 2] -> [..., B · (words + 1)]."""
    *vectors, num_buckets, bucket_size = buckets.shape
    # A hair above scale / s, so that no rounding lifts a value beyond the last level.
    step = scale * ((1 + 2**-21) / (2 ** (self.bits - 1) - 1))
    step = tf.where(
      scale < 2.0**-100, 0.0, tf.where(scale <= 2.0**127, step, np.float32(np.nan))
    )
    units = tf.math.divide_no_nan(float(_UNITS), step)[..., tf.newaxis]

    planes = tf.split(buckets, 32 // self.bits, axis=-1)
    half = len(planes) // 2
    keys = keys[..., tf.newaxis, tf.newaxis, :]
    # Of a bucket's d / 2 random words, plane i shares its own with plane i + half.
    first = tf.range(num_buckets)[:, tf.newaxis] * (bucket_size // 2)
    codes = tf.zeros([], tf.int32)
    for i in range(half):
      positions = first + tf.range(i * self._words, (i + 1) * self._words)
      noise = self.rounding(keys, tf.cast(positions, tf.uint32))
      for plane, offset in zip((i, i + half), noise):
        level = tf.cast(tf.round(planes[plane] * units), tf.int32) + offset
        code = tf.bitwise.right_shift(level, 16)
        code = tf.bitwise.bitwise_and(code, 2**self.bits - 1)
        code = tf.bitwise.left_shift(code, self.bits * plane)
        codes = tf.bitwise.bitwise_or(codes, code)
    codes = tf.reshape(codes, [*vectors, num_buckets * self._words])
    return tf.concat([codes, tf.bitcast(step, tf.int32)], axis=-1)

  @_compiled
  def _unpack(self, payload: tf.Tensor) -> tf.Tensor:
    """[..., B · (words + 1)] -> [..., B · d]."""
    *vectors, size = payload.shape
    num_buckets = size // (self._words + 1)
    codes, step = tf.split(payload, [num_buckets * self._words, num_buckets], axis=-1)
    # Up to the word's top, dropping the codes above; then down again with the sign.
    up = 32 - self.bits * tf.range(1, 32 // self.bits + 1)
    codes = tf.reshape(codes, [*vectors, num_buckets, 1, self._words])
    codes = tf.bitwise.left_shift(codes, up[:, tf.newaxis])
    levels = tf.cast(tf.bitwise.right_shift(codes, 32 - self.bits), tf.float32)
    step = tf.bitcast(step, tf.float32)[..., tf.newaxis, tf.newaxis]
    return tf.reshape(levels * step, [*vectors, num_buckets * self.bucket_size])
