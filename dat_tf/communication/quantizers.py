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

- `largest`, the default, scales by the largest magnitude, `l2_norm` by the l2 norm as
  in the paper. The distance between levels grows with the scale: for 1,024 normally
  distributed values the norm is ten times the largest.
- `stochastic` draws the integer so that E[Q(v)] = v. What it costs is variance:

      E ‖Q(v) - v‖² <= ½ (√(1 + (d - 1) / s²) - 1) ‖v‖²     with `largest`
      E ‖Q(v) - v‖² <= min(d / s², √d / s) ‖v‖²             with `l2_norm`

  The second is the paper's lemma 3.1. The first is below d / (4 s²) and √d / (2 s), and
  is reached where one value stands above d - 1 equal ones; for d = 1,024 it is 0.016,
  1.8 and 15 at 8, 4 and 2 bits. A value a fraction p of the way from one level to the
  next has variance p (1 - p), at most λ p² + λ s² / (d - 1) with λ the bound, while its
  square is at least p² and the largest's s², in squared distances between levels.
- `nearest` takes the nearer integer: biased, but with `largest` a contraction, which
  error feedback requires:

      ‖Q(v) - v‖² <= (d - 1) / (d - 1 + 4 s²) ‖v‖²

  for d = 1,024 it is 0.016, 0.84 and 0.996, on most vectors far less. It holds because
  no value errs by more than itself, nor by more than half the distance between levels,
  and the largest not at all. With `l2_norm` all values of a bucket may round to zero:
  nothing is contracted then.

Probabilities have a resolution of 2^-16. The expectation is therefore off by less than
2^-16 of the distance between levels, towards zero, and the bounds by about as much.

Buckets that are not ordinary:

- All zeros, or a scale below 2^-100 (8e-31): decodes to zeros.
- An infinite or NaN value, or a scale above 2^127 (1.7e38): decodes to NaN throughout,
  so that every worker that receives the bucket learns of it.
- Denormal values count as zeros, whatever stands beside them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Callable, Protocol

import numpy as np
import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.base.errors import UserError

# XLA makes one pass over memory of many elementwise operations, on a CPU too.
_compiled = functools.partial(tf.function, jit_compile=True, autograph=False)

# A level is this many units: 16 bits of noise decide between two levels.
_UNITS = 2**16

# Codes are packed in groups of as many words, the width of a CPU's vector registers.
_WIDTH = 8


def start_compiler() -> None:
  """Uses XLA for the first time, on as many threads as can use it at once.

  It announces itself, and every thread that it gets to run on: call this under
  `compat.quiet`, and it will not do so in the middle of a run.
  """
  phases = tf.range(4.0 * (os.cpu_count() or 1))
  tf.function(lambda x: [_wave(tf.fill([2**18], y)) for y in tf.unstack(x)])(phases)


@_compiled
def _wave(x: tf.Tensor) -> tf.Tensor:
  for _ in range(10):  # long enough for the others to start meanwhile
    x = tf.sin(x)
  return x


class Quantizer(Protocol):
  """How float32 values are sent in fewer bits.

  Attributes:
    bucket_size: vectors whose length is a multiple of it are quantized without waste.
  """

  @property
  def bucket_size(self) -> int: ...

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
Rounding = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@_compiled
def _fold(
  buckets: tf.Tensor,
  convert: Callable[[tf.Tensor], tf.Tensor],
  combine: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tf.Tensor:
  """The greater part of a reduction over the last axis, in a form that vectorizes."""
  return functools.reduce(combine, map(convert, tf.split(buckets, 8, axis=-1)))


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

  The numbers are those of SplitMix with 32 bits of state, each stream counting in odd
  steps of its own: half the work of `hashing.bits`, for what is drawn once for every
  gradient and step. The halves of one number serve two values.
  """
  increment = tf.bitwise.bitwise_or(keys[..., 1], tf.constant(1, tf.uint32))
  words = tf.bitcast(hashing.mix32(positions * increment + keys[..., 0]), tf.int32)
  low = tf.bitwise.bitwise_and(words, _UNITS - 1)
  return low, tf.bitwise.bitwise_and(tf.bitwise.right_shift(words, 16), _UNITS - 1)


def nearest(keys: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Rounds to the nearer level, upwards from the middle; no random numbers."""
  del keys
  half = tf.fill(positions.shape, _UNITS // 2)
  return half, half


@dataclasses.dataclass(frozen=True)
class BucketQuantizer:
  """Codes of a few bits for each value and a scale for each bucket.

  The payload is first the codes, then the buckets' steps (scale / s, the distance
  between levels) as the bits of float32 numbers. With p = 32 / bits, 8 p values fill 8
  words: value 8 i + j stands, as two's complement, in the i-th lowest bits of word j.
  The last bucket is filled up with zeros, which are sent too.

  Attributes:
    bits: 2, 4 or 8 a value.
    bucket_size: d, a multiple of 8 p. Vectors whose length is a multiple of it are
      spared a copy. At 1,024 a payload has 0.251, 0.126 and 0.0635 of the values' bytes
      at 8, 4 and 2 bits.
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
    if self.bucket_size < 1 or self.bucket_size % self._group:
      raise UserError(
        f"bucket size {self.bucket_size}: at {self.bits} bits a value choose a positive"
        f" multiple of {self._group}, which are packed together."
      )

  def payload_size(self, num_values: int) -> int:
    return self._num_buckets(num_values) * (self._num_words + 1)

  def encode(self, values: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    *vectors, num_values = values.shape
    num_buckets = self._num_buckets(num_values)
    missing = num_buckets * self.bucket_size - num_values
    if missing:
      values = tf.pad(values, [[0, 0]] * len(vectors) + [[0, missing]])
    buckets = tf.reshape(values, [*vectors, num_buckets, self.bucket_size])
    codes, steps = self._pack(buckets, self.scale(buckets), keys)
    codes = tf.reshape(codes, [*vectors, num_buckets * self._num_words])
    return tf.concat([codes, tf.bitcast(steps, tf.int32)], axis=-1)

  def decode(self, payload: tf.Tensor, num_values: int) -> tf.Tensor:
    return self._unpack(payload)[..., :num_values]

  @property
  def _group(self) -> int:
    """Values that are packed together, into `_WIDTH` words."""
    return _WIDTH * 32 // self.bits

  @property
  def _num_words(self) -> int:
    """Words of codes in a bucket."""
    return self.bucket_size * self.bits // 32

  def _num_buckets(self, num_values: int) -> int:
    return -(-num_values // self.bucket_size)

  @_compiled
  def _pack(
    self, buckets: tf.Tensor, scales: tf.Tensor, keys: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """[..., B, d], [..., B], [..., 2] -> codes [..., B, groups, 8], steps [..., B]."""
    # A hair above scale / s: rounding in float32 lifts no value beyond the last level.
    steps = scales * ((1 + 2**-21) / (2 ** (self.bits - 1) - 1))
    steps = tf.where(scales <= 2.0**127, steps, np.float32(np.nan))
    steps = tf.where(scales < 2.0**-100, 0.0, steps)
    units = tf.math.divide_no_nan(float(_UNITS), steps)[..., tf.newaxis, tf.newaxis]

    *vectors, num_buckets, bucket_size = buckets.shape
    num_groups = bucket_size // self._group
    planes = tf.unstack(
      tf.reshape(buckets, [*vectors, num_buckets, num_groups, -1, _WIDTH]), axis=-2
    )
    # The halves of a random number serve plane i and plane i + half.
    half = len(planes) // 2
    keys = keys[..., tf.newaxis, tf.newaxis, tf.newaxis, :]
    first = tf.range(num_buckets * num_groups) * (half * _WIDTH)
    first = tf.reshape(first, [num_buckets, num_groups, 1])
    codes = tf.zeros([], tf.int32)
    for i in range(half):
      positions = first + tf.range(i * _WIDTH, (i + 1) * _WIDTH)
      noise = self.rounding(keys, tf.cast(positions, tf.uint32))
      for plane, offset in zip((i, i + half), noise):
        level = tf.cast(planes[plane] * units, tf.int32) + offset
        code = tf.bitwise.right_shift(level, 16)
        code = tf.bitwise.bitwise_and(code, 2**self.bits - 1)
        code = tf.bitwise.left_shift(code, self.bits * plane)
        codes = tf.bitwise.bitwise_or(codes, code)
    return codes, steps

  @_compiled
  def _unpack(self, payload: tf.Tensor) -> tf.Tensor:
    """[..., B · (words + 1)] -> [..., B · d]."""
    *vectors, size = payload.shape
    num_buckets = size // (self._num_words + 1)
    num_words = num_buckets * self._num_words
    codes, steps = tf.split(payload, [num_words, num_buckets], axis=-1)
    codes = tf.reshape(codes, [*vectors, num_buckets, -1, 1, _WIDTH])
    # Up to the word's top, dropping the codes above; then down again with the sign.
    up = 32 - self.bits * tf.range(1, 32 // self.bits + 1)
    codes = tf.bitwise.left_shift(codes, up[:, tf.newaxis])
    levels = tf.cast(tf.bitwise.right_shift(codes, 32 - self.bits), tf.float32)
    steps = tf.reshape(tf.bitcast(steps, tf.float32), [*vectors, num_buckets, 1, 1, 1])
    return tf.reshape(levels * steps, [*vectors, num_buckets * self.bucket_size])
