"""The quantized mean in NumPy, and the settings in which it is compared."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.communication import BucketQuantizer, FullPrecision, QuantizedAllReduce
from dat_tf.communication.quantizers import nearest, stochastic
from dat_tf.workers import joined

SEED = 11

# 2,300 values are quantized; vectors, `tiny` and `head` are in full precision.
TENSORS = {
  "block/kernel": (30, 20),
  "scale": (),
  "bias": (7,),
  "block/filter": (5, 1, 40),
  "tiny": (3, 3),
  "dense": (50, 30),
  "head/kernel": (4, 25),
}
FULL_PRECISION = FullPrecision(below=10, names="^head")
NARROW = ("block/kernel", "block/filter", "dense")
WIDE = ("scale", "bias", "tiny", "head/kernel")
SIZE = 2300


@dataclasses.dataclass(frozen=True)
class FixedPoint:
  """A user's own quantizer: multiples of 1 / 256, drawn unbiased, two to a word."""

  bucket_size: int = 64

  def payload_size(self, num_values):
    return num_values // 2

  def encode(self, values, keys):
    noise = hashing.uniform(keys, [values.shape[-1]])
    levels = tf.cast(tf.floor(256 * values + noise), tf.int16)
    return tf.bitcast(tf.reshape(levels, [*values.shape[:-1], -1, 2]), tf.int32)

  def decode(self, payload, num_values):
    levels = tf.cast(tf.bitcast(payload, tf.int16), tf.float32)
    return tf.reshape(levels, [*payload.shape[:-1], num_values]) / 256


def fixed_point_in_numpy(values, key):
  noise = hashing.uniform(key, [values.size]).numpy()
  return np.floor(np.float32(256) * values + noise) / np.float32(256)


def buckets_in_numpy(bits, bucket_size):
  """What a vector of whole buckets becomes, scaled by their largest magnitudes."""

  def quantized(values, key):
    # In each group of 256 / bits values the first half takes the words' low halves.
    words = stochastic(key, np.arange(values.size // 2, dtype="u4"))
    halves = [half.numpy().reshape(-1, 128 // bits) for half in words]
    noise = np.concatenate(halves, axis=1).reshape(-1, bucket_size)
    buckets = values.reshape(-1, bucket_size)
    largest = np.abs(buckets).max(axis=1, keepdims=True)
    steps = largest * np.float32((1 + 2**-21) / (2 ** (bits - 1) - 1))
    units = np.divide(np.float32(2**16), steps, out=0 * steps, where=steps > 0)
    levels = np.floor_divide(np.trunc(buckets * units).astype("i8") + noise, 2**16)
    return (levels.astype("f4") * steps).ravel()

  return quantized


@dataclasses.dataclass(frozen=True)
class Case:
  """Settings of an all-reduce, and what the reference must know of it."""

  settings: dict[str, Any]
  in_numpy: Optional[Callable] = None
  num_packs: int = 1
  bytes_per_pack: int = 0

  def all_reduce(self):
    options = joined.communication_options("ring", self.bytes_per_pack, 60)
    return QuantizedAllReduce(
      options=options, full_precision=FULL_PRECISION, seed=SEED, **self.settings
    )


TWO_SIDED, IN_PACKS, ONE_SIDED, OWN = "two-sided", "in packs", "one-sided", "own"
CASES = {
  TWO_SIDED: Case({"quantizer": BucketQuantizer(4, 64)}, buckets_in_numpy(4, 64)),
  IN_PACKS: Case(
    {"quantizer": BucketQuantizer(2, 128)}, buckets_in_numpy(2, 128), 3, 4 * 900
  ),
  ONE_SIDED: Case(
    {"quantizer": BucketQuantizer(8, 32), "two_sided": False},
    buckets_in_numpy(8, 32),
    num_packs=2,
    bytes_per_pack=4 * 1400,
  ),
  # At 16 bits averages in float32 are the cheaper answer from 4 workers on.
  OWN: Case({"quantizer": FixedPoint(), "two_sided": False}, fixed_point_in_numpy),
}
_CONTRACTING = BucketQuantizer(2, 128, rounding=nearest)
FEEDBACK = {
  TWO_SIDED: Case(
    {"quantizer": _CONTRACTING, "error_feedback": True},
    num_packs=3,
    bytes_per_pack=4 * 900,
  ),
  ONE_SIDED: Case(
    {"quantizer": _CONTRACTING, "two_sided": False, "error_feedback": True}
  ),
  OWN: Case({"quantizer": FixedPoint(), "two_sided": False, "error_feedback": True}),
}


def gradients(num_replicas):
  """{name: [num_replicas, *shape]}, whose means are not zero."""
  rng = np.random.default_rng(1)
  return {
    name: rng.normal(0.3, size=(num_replicas, *shape)).astype("f4")
    for name, shape in TENSORS.items()
  }


def flat(tensors):
  """{name: [..., *shape]} -> [..., SIZE], what is quantized in the order of sending."""
  leading = tensors["dense"].shape[:-2]
  parts = [tensors[name].reshape(*leading, -1) for name in reversed(NARROW)]
  return np.concatenate(parts, axis=-1)


def form(case, num_workers):
  """The exchange that sends least, in values of a chunk: (M - 1) times what follows."""
  if case.settings.get("two_sided", True):
    return "two-sided"
  quantizer = case.settings["quantizer"]
  codes = quantizer.payload_size(quantizer.bucket_size) / quantizer.bucket_size
  return "gather" if num_workers * codes <= codes + 1 else "float32 back"


def mean_in_numpy(case, values, step):
  """The whole reduction: float32 [workers, local replicas, SIZE] -> [SIZE]."""
  workers, replicas, _ = values.shape
  bucket = workers * replicas * case.settings["quantizer"].bucket_size
  length = bucket * math.ceil(SIZE / (case.num_packs * bucket))
  padded = np.zeros([workers, replicas, case.num_packs * length], "f4")
  padded[..., :SIZE] = values
  # Each replica takes its share of its worker's mean to the network, in chunks.
  shape = [workers, case.num_packs, replicas, workers, -1]
  chunks = padded.mean(axis=1).reshape(shape)
  means = np.empty_like(chunks[0])
  exchange = form(case, workers)
  for pack, rank, owner in np.ndindex(*means.shape[:-1]):
    vectors = chunks[:, pack, rank, owner]
    keys = [
      hashing.stream_keys(SEED, step, worker * replicas + rank, pack, owner)
      for worker in range(workers)
    ]
    decoded = np.stack([case.in_numpy(*pair) for pair in zip(vectors, keys)])
    if exchange == "gather":
      means[pack, rank, owner] = decoded.mean(axis=0)
      continue
    # The owner of a chunk knows its own values exactly.
    others = np.delete(decoded, owner, axis=0).sum(axis=0)
    mean = (vectors[owner] + others) / np.float32(workers)
    if exchange == "two-sided":
      mean = case.in_numpy(mean, keys[owner])
    means[pack, rank, owner] = mean
  return means.ravel()[:SIZE]
