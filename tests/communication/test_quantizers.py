"""Quantizers against their formulas, a NumPy reference, and on buckets gone wrong."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.communication import quantizers
from dat_tf.communication.quantizers import BucketQuantizer, l2_norm, nearest
from workers import run_workers

BITS = (8, 4, 2)
SMALL = {8: 32, 4: 64, 2: 128}  # the smallest bucket that can be packed
SCALES = {"largest": quantizers.largest, "l2": l2_norm}


def num_levels(bits):
  return {8: 127, 4: 7, 2: 1}[bits]


def gaussian(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("f4")


def keys_of(*coordinates):
  return hashing.stream_keys(*coordinates)


def round_trip(quantizer, values, keys):
  payload = quantizer.encode(tf.constant(values), keys)
  return quantizer.decode(payload, values.shape[-1]).numpy()


def scale_in_numpy(buckets, name):
  if name == "largest":
    return np.abs(buckets).max(axis=-1)
  return np.sqrt((buckets.astype("f8") ** 2).sum(axis=-1)).astype("f4")


def noise_in_numpy(key, num_values, bits):
  """The 16-bit numbers that one stream adds to its values, in the values' order."""

  def mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)

  start, increment = (int(word) for word in key)
  words = np.arange(num_values // 2, dtype="u8") * (increment | 1) + start
  words = mix(words % 2**32)
  # A group of values: first those with the words' low halves, then the high ones.
  words = words.reshape(-1, 1, 4 * 32 // bits)
  return np.concatenate([words % 2**16, words >> 16], axis=1).astype("i8").ravel()


def pack_in_numpy(codes, bits):
  """Groups of 8 words, one value after the other: value 8 i + j in part i of word j."""
  words = []
  for group in codes.reshape(-1, 8 * 32 // bits):
    for j in range(8):
      parts = [int(code) % 2**bits << i * bits for i, code in enumerate(group[j::8])]
      words.append(sum(parts))
  return np.array(words, "u4").view("i4")


def encode_in_numpy(values, key, bits, bucket_size, scale):
  """Payload of one vector of whole buckets, from the published formula."""
  s = num_levels(bits)
  buckets = values.reshape(-1, bucket_size)
  factor = np.float32((1 + 2**-21) / s)
  steps = scale_in_numpy(buckets, scale) * factor
  units = np.trunc(buckets * (np.float32(2**16) / steps)[:, np.newaxis]).astype("i8")
  noise = noise_in_numpy(key, values.size, bits).reshape(buckets.shape)
  codes = np.floor_divide(units + noise, 2**16)
  assert np.abs(codes).max() <= s
  return codes, np.concatenate([pack_in_numpy(codes, bits), steps.view("i4")])


class PayloadTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    # A bucket of 1,024 values has 256, 128 or 64 words of codes, and its scale.
    (8, 1024, 1024 * 1000, 257 * 1000, 0.251),
    (4, 1024, 1024 * 1000, 129 * 1000, 0.126),
    (2, 1024, 1024 * 1000, 65 * 1000, 0.0635),
    (8, 1024, 1, 257, None),
    (4, 1024, 1025, 2 * 129, None),
    (4, 64, 1000, 16 * (8 + 1), None),
    (2, 128, 128, 8 + 1, None),
  )
  def test_size(self, bits, bucket_size, num_values, size, ratio):
    quantizer = BucketQuantizer(bits, bucket_size)
    self.assertEqual(quantizer.payload_size(num_values), size)
    if ratio:
      self.assertAllClose(size / num_values, ratio, rtol=2e-3)

  @parameterized.parameters(
    (3, 1024, "3 bits"), (0, 1024, "0 bits"), (16, 1024, "choose 2, 4 or 8"),
    (8, 0, "bucket size 0"), (8, -32, "positive"), (8, 1000, "multiple of 32"),
    (4, 32, "multiple of 64"), (2, 1088, "multiple of 128"),
  )  # fmt: skip
  def test_settings_are_refused_in_one_line(self, bits, bucket_size, text):
    with self.assertRaisesRegex(UserError, text) as raised:
      BucketQuantizer(bits, bucket_size)
    self.assertNotIn("\n", str(raised.exception))

  @parameterized.parameters(*BITS)
  def test_codes_are_packed_as_numpy_packs_them(self, bits):
    size, s = 2 * SMALL[bits], num_levels(bits)
    codes = np.random.default_rng(1).integers(-s, s + 1, size=3 * size)
    codes[::size] = s
    quantizer = BucketQuantizer(bits, size, rounding=nearest)
    payload = quantizer.encode(tf.constant(codes.astype("f4")), keys_of(0))
    self.assertAllEqual(payload[:-3], pack_in_numpy(codes, bits))
    self.assertAllClose(quantizer.decode(payload, codes.size), codes, rtol=1e-6)
    ones = np.ones(3, "f4").view("i4")
    packed = np.concatenate([pack_in_numpy(codes, bits), ones])
    self.assertAllEqual(quantizer.decode(tf.constant(packed), codes.size), codes)

  @parameterized.product(bits=BITS, scale=("largest", "l2"))
  def test_equals_the_numpy_reference(self, bits, scale):
    size = 3 * SMALL[bits]
    values = gaussian(5 * size) * np.repeat([1e-20, 0.1, 1, 3, 1e20], size).astype("f4")
    key = keys_of(7, 3).numpy()
    codes, expected = encode_in_numpy(values, key, bits, size, scale)
    quantizer = BucketQuantizer(bits, size, SCALES[scale])
    payload = quantizer.encode(tf.constant(values), key)
    self.assertAllEqual(payload, expected)
    decoded = quantizer.decode(payload, values.size).numpy().reshape(codes.shape)
    scales = scale_in_numpy(values.reshape(codes.shape), scale)[:, np.newaxis]
    formula = scales * np.sign(codes) * np.abs(codes) / num_levels(bits)
    self.assertAllClose(decoded / scales, formula / scales, rtol=1e-6, atol=0)


class RoundingTest(tf.test.TestCase, parameterized.TestCase):
  DRAWS = 4000

  def draws(self, bits, scale, values):
    """[DRAWS, d] decodings of one bucket; its exact mean and variance per value."""
    quantizer = BucketQuantizer(bits, values.size, SCALES[scale])
    repeated = np.tile(values, (self.DRAWS, 1))
    sample = round_trip(quantizer, repeated, keys_of(5, np.arange(self.DRAWS)))
    step = float(scale_in_numpy(values, scale)) / num_levels(bits)
    p = np.abs(values) / step % 1.0
    return sample.astype("f8"), step, step**2 * p * (1 - p)

  @parameterized.product(bits=BITS, scale=("largest", "l2"))
  def test_is_unbiased_and_within_the_variance_bound(self, bits, scale):
    d, s = SMALL[bits], num_levels(bits)
    for values in (gaussian(d), gaussian(d) ** 5, np.full(d, 0.37, "f4")):
      sample, step, variance = self.draws(bits, scale, values)
      # Five and a half deviations of a mean; its resolution is 2^-16 of a step.
      allowed = 5.5 * np.sqrt(variance / self.DRAWS) + 5.5 * step / self.DRAWS
      self.assertTrue(np.all(np.abs(sample.mean(axis=0) - values) < allowed))
      squares = np.sum((sample - values) ** 2, axis=1)
      error, deviation = squares.mean(), squares.std() / np.sqrt(self.DRAWS)
      self.assertAllClose(error, variance.sum(), atol=5 * deviation + 1e-5 * step**2)
      if scale == "l2":
        bound = min(d / s**2, np.sqrt(d) / s)
      else:
        bound = (np.sqrt(1 + (d - 1) / s**2) - 1) / 2
      norm = float(np.sum(values.astype("f8") ** 2))
      self.assertLess(error, bound * norm + 5 * deviation)

  @parameterized.parameters(*BITS)
  def test_the_bound_of_the_largest_is_reached(self, bits):
    d, s = SMALL[bits], num_levels(bits)
    # Where the others' part of a step, t, has (1 - 2 t) / (2 t) = bound.
    bound = (np.sqrt(1 + (d - 1) / s**2) - 1) / 2
    values = np.full(d, 0.5 / (1 + bound) / s, "f4")
    values[0] = 1.0
    sample, _, _ = self.draws(bits, "largest", values)
    error = np.mean(np.sum((sample - values) ** 2, axis=1))
    self.assertAllClose(error / np.sum(values**2), bound, rtol=0.05)

  @parameterized.parameters(*BITS)
  def test_nearest_contracts(self, bits):
    d, s = SMALL[bits], num_levels(bits)
    bound = (d - 1) / (d - 1 + 4 * s**2)
    worst = np.full((1, d), 0.4999 / s, "f4")
    worst[0, 0] = -1.0
    vectors = np.concatenate(
      [gaussian(500, d) ** power for power in (1, 2, 7)]
      + [np.eye(d, dtype="f4"), worst]
    )
    quantizer = BucketQuantizer(bits, d, rounding=nearest)
    decoded = round_trip(quantizer, vectors, keys_of(np.arange(len(vectors))))
    squares = np.sum((decoded.astype("f8") - vectors) ** 2, axis=1)
    ratios = squares / np.sum(vectors.astype("f8") ** 2, axis=1)
    self.assertAllLessEqual(ratios, bound * (1 + 1e-4))
    self.assertAllClose(ratios[-1], bound, rtol=1e-3)
    steps = np.abs(vectors).max(axis=1, keepdims=True) / s
    self.assertAllLessEqual(np.abs(decoded - vectors) / steps, 0.5 + 1e-4)


class NoiseTest(tf.test.TestCase):
  """Of 200 streams of 2 x 8,192 numbers in [0, 2^16)."""

  def setUp(self):
    super().setUp()
    positions = np.arange(8192, dtype="u4")
    keys = keys_of(0, np.arange(200)[:, np.newaxis])
    low, high = quantizers.stochastic(keys, positions)
    self.halves = np.stack([low, high])

  def assert_uniform(self, cells, num_cells):
    counts = np.bincount(cells.ravel(), minlength=num_cells)
    expected = cells.size / num_cells
    chi_squared = np.sum((counts - expected) ** 2 / expected)
    freedom = num_cells - 1
    # Its mean and variance are f and 2 f; five deviations.
    self.assertLess(abs(chi_squared - freedom), 5 * np.sqrt(2 * freedom))

  def test_each_half_is_uniform(self):
    for half in self.halves:
      self.assert_uniform(half, 2**16)
      self.assert_uniform(half % 256, 256)

  def test_pairs_are_uniform(self):
    low, high = self.halves // 256
    pairs = {"halves": (low, high), "streams": (high[:-1], high[1:])}
    for lag in (1, 2, 8, 64, 512):
      pairs[f"lag {lag}"] = high[:, :-lag], high[:, lag:]
      pairs[f"low, lag {lag}"] = low[:, :-lag], low[:, lag:]
    for name, (first, second) in pairs.items():
      with self.subTest(name):
        self.assert_uniform(256 * first + second, 2**16)

  def test_is_uncorrelated(self):
    low, high = (self.halves - (2**16 - 1) / 2) * np.sqrt(12) / 2**16
    for product in (low * high, high[:-1] * low[1:], low[:, :-1] * low[:, 1:]):
      # A mean of that many products of variance 1.
      self.assertLess(abs(product.mean()), 5 / np.sqrt(product.size))


class StreamsTest(tf.test.TestCase):
  def test_a_batch_equals_a_loop_and_is_repeatable(self):
    quantizer = BucketQuantizer(4, 64)
    values, keys = gaussian(2, 3, 200), keys_of(9, np.arange(6).reshape(2, 3))
    payload = quantizer.encode(tf.constant(values), keys)
    self.assertEqual(payload.shape, [2, 3, quantizer.payload_size(200)])
    self.assertAllEqual(payload, quantizer.encode(tf.constant(values), keys))
    decoded = quantizer.decode(payload, 200)
    self.assertEqual(decoded.shape, [2, 3, 200])
    for i, j in np.ndindex(2, 3):
      alone = quantizer.encode(tf.constant(values[i, j]), keys[i, j])
      self.assertAllEqual(payload[i, j], alone)
      self.assertAllEqual(decoded[i, j], quantizer.decode(alone, 200))

  def test_errors_of_different_keys_are_independent(self):
    values = np.tile(gaussian(100 * 64), (2, 1))
    errors = round_trip(BucketQuantizer(4, 64), values, keys_of(1, [2, 3])) - values
    correlation = np.corrcoef(errors)[0, 1]
    self.assertLess(abs(correlation), 5 / np.sqrt(values.shape[1]))

  def test_a_last_bucket_may_be_short(self):
    quantizer = BucketQuantizer(8, 32)
    for size in (1, 31, 33):
      values = gaussian(size)
      decoded = round_trip(quantizer, values, keys_of(size))
      self.assertAllClose(decoded, values, atol=np.abs(values).max() / 127)

  def test_no_noise_lifts_a_value_beyond_the_last_level(self):
    # Among these scales are some where v · s / scale is above s in float32.
    values = np.repeat(1 + np.arange(20_000, dtype="f4") * np.float32(2.0**-23), 32)
    for noise, sign in ((2**16 - 1, 1), (0, -1)):

      def extreme(keys, positions, noise=noise):
        return [tf.fill(positions.shape, noise)] * 2

      quantizer = BucketQuantizer(8, 32, rounding=extreme)
      decoded = round_trip(quantizer, sign * values, keys_of(4))
      self.assertAllClose(decoded / values, sign * np.ones_like(values), atol=1e-6)


class UnusualBucketsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(bits=BITS, scale=("largest", "l2"))
  def test_decode_as_documented(self, bits, scale):
    size = SMALL[bits]
    ordinary = gaussian(size)
    buckets = {
      "zeros": 0 * ordinary,
      "denormal": np.full(size, 1e-40, "f4"),
      "small": ordinary / np.abs(ordinary).max() * np.float32(2.0**-110),
      "infinite": np.where(np.arange(size) == 3, np.inf, ordinary),
      "negative": np.where(np.arange(size) == 5, -np.inf, ordinary),
      "nan": np.where(np.arange(size) == size - 1, np.nan, ordinary),
      "all nan": np.full(size, np.nan),
      "huge": np.where(np.arange(size) == 0, 3e38, ordinary),
      "beside": np.where(np.arange(size) < 4, 1e-40, ordinary),
      "tiny": ordinary * np.float32(1e-27),
      "large": ordinary * np.float32(1e34),
      "ordinary": ordinary,
    }
    values = np.stack(list(buckets.values())).astype("f4")
    quantizer = BucketQuantizer(bits, size, SCALES[scale])
    decoded = round_trip(quantizer, values.ravel(), keys_of(1)).reshape(values.shape)
    for (name, bucket), result in zip(buckets.items(), decoded):
      with self.subTest(name):
        if name in ("zeros", "denormal", "small"):
          self.assertAllEqual(result.view("i4"), np.zeros(size, "i4"))
        elif name in ("infinite", "negative", "nan", "all nan", "huge"):
          self.assertAllEqual(np.isnan(result), np.ones(size, bool))
        else:
          step = scale_in_numpy(bucket.astype("f4"), scale) / num_levels(bits)
          self.assertAllLessEqual(np.abs(result - bucket) / step, 1 + 1e-4)
          self.assertGreater(np.abs(result).max(), 0)
    self.assertAllEqual(decoded[list(buckets).index("beside"), :4], np.zeros(4))


@dataclasses.dataclass
class Halves:
  """A user's quantizer: float16 numbers, two to a word."""

  def payload_size(self, num_values):
    return -(-num_values // 2)

  def encode(self, values, keys):
    padding = [[0, 0]] * (values.shape.rank - 1) + [[0, values.shape[-1] % 2]]
    values = tf.cast(tf.pad(values, padding), tf.float16)
    return tf.bitcast(tf.reshape(values, [*values.shape[:-1], -1, 2]), tf.int32)

  def decode(self, payload, num_values):
    values = tf.cast(tf.bitcast(payload, tf.float16), tf.float32)
    return tf.reshape(values, [*payload.shape[:-1], -1])[..., :num_values]


class ConformanceTest(tf.test.TestCase, parameterized.TestCase):
  """What every quantizer must do, the user's own too."""

  @parameterized.parameters(
    BucketQuantizer(8, 32),
    BucketQuantizer(4, 64, rounding=nearest),
    BucketQuantizer(2, 128, l2_norm),
    Halves(),
  )
  def test_shapes_zeros_and_graphs(self, quantizer):
    values = tf.constant(np.stack([gaussian(77), 0 * gaussian(77)]))
    keys = keys_of(0, [1, 2])
    payload = quantizer.encode(values, keys)
    self.assertDTypeEqual(payload, np.int32)
    self.assertEqual(payload.shape, [2, quantizer.payload_size(77)])
    decoded = quantizer.decode(payload, 77)
    self.assertDTypeEqual(decoded, np.float32)
    self.assertEqual(decoded.shape, [2, 77])
    self.assertAllEqual(decoded[1], np.zeros(77))
    self.assertGreater(np.sum(decoded[0] * values[0]), 0)
    in_graph = tf.function(lambda v, k: quantizer.decode(quantizer.encode(v, k), 77))
    self.assertAllEqual(in_graph(values, keys), decoded)


def _in_replicas():
  """Payloads of two replicas of one worker; in a process of its own."""
  tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
  )
  del os.environ["TF_CONFIG"]  # which the next line would read
  strategy = tf.distribute.MultiWorkerMirroredStrategy._from_local_devices(
    ("CPU:0", "CPU:1")
  )
  quantizer, values = BucketQuantizer(4, 64), tf.constant(gaussian(1000))

  def step():
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return quantizer.encode(values, keys_of(replica))

  payloads = tf.function(lambda: strategy.run(step))()
  return [payload.numpy() for payload in strategy.experimental_local_results(payloads)]


class StrategyTest(tf.test.TestCase):
  def test_replicas_encode_as_a_lone_process_does(self):
    (payloads,) = run_workers(_in_replicas, 1)
    quantizer, values = BucketQuantizer(4, 64), tf.constant(gaussian(1000))
    self.assertLen(payloads, 2)
    for replica, payload in enumerate(payloads):
      self.assertAllEqual(payload, quantizer.encode(values, keys_of(replica)))
