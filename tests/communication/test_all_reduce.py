"""The mean of all replicas' tensors, and what it costs."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.communication import FullPrecision, MeanAllReduce
from dat_tf.workers import joined
from workers import run_workers

REPLICAS = 3
SHAPES = [(3, 5), (), (7,), (2, 1, 4), (0,)]
NAMES = ["a", "b", "c", "d", "e"]


def tensors_of(replica):
  rng = np.random.default_rng(replica)
  return [rng.normal(size=shape).astype("f4") for shape in SHAPES]


def _means():
  """What each of three replicas gets of three all-reduces; in a process of its own."""
  cpus = [tf.config.LogicalDeviceConfiguration()] * REPLICAS
  tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], cpus
  )
  strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])
  options = joined.communication_options("ring", 16, 60.0)

  @tf.function
  def reduce(all_reduce):
    def in_replica():
      replica = tf.distribute.get_replica_context().replica_id_in_sync_group
      choices = zip(*map(tensors_of, range(REPLICAS)))
      tensors = [tf.gather(tf.stack(choice), replica) for choice in choices]
      return all_reduce(tensors, NAMES, tf.constant(0))[0]

    return strategy.run(in_replica)

  means = {}
  for name, all_reduce in {
    "whole": MeanAllReduce(),
    "packs": MeanAllReduce(options),
    "float16": MeanAllReduce(
      options, dtype=tf.float16, full_precision=FullPrecision(0, "^d")
    ),
  }.items():
    results = map(strategy.experimental_local_results, reduce(all_reduce))
    means[name] = [[value.numpy() for value in replica] for replica in zip(*results)]
  return means


class MeanAllReduceTest(tf.test.TestCase, parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    (cls.means,) = run_workers(_means, 1)
    inputs = zip(*map(tensors_of, range(REPLICAS)))
    cls.expected = [np.mean(choice, axis=0, dtype="f8") for choice in inputs]

  def test_every_replica_gets_numpys_mean(self):
    for replicas in (self.means["whole"], self.means["packs"]):
      for replica in replicas:
        for mean, reference in zip(replica, self.expected):
          self.assertAllClose(mean, reference, rtol=1e-6, atol=1e-7)

  def test_all_replicas_have_the_same_bits(self):
    for replicas in self.means.values():
      self.assertLen(replicas, REPLICAS)
      for replica in replicas:
        self.assertEqual([mean.shape for mean in replica], SHAPES)
        for mean, first in zip(replica, replicas[0]):
          self.assertDTypeEqual(mean, np.float32)
          self.assertAllEqual(mean, first)

  def test_float16_is_for_matrices_that_are_not_excepted(self):
    means = dict(zip(NAMES, self.means["float16"][0]))
    expected = dict(zip(NAMES, self.expected))
    for name in ("b", "c", "d"):  # scalar, vector, by its name
      self.assertAllClose(means[name], expected[name], rtol=1e-6, atol=1e-7)
    # Three numbers below 4 and two sums are rounded to 11 bits, then their third.
    self.assertAllClose(means["a"], expected["a"], rtol=0, atol=5 * 4 * 2.0**-11)
    self.assertNotAllClose(means["a"], expected["a"], rtol=0, atol=1e-5)
    self.assertAllEqual(means["a"], means["a"].astype("f2"))

  def test_one_replica_gets_its_own(self):
    means, _ = MeanAllReduce()(tensors_of(0), NAMES, tf.constant(0))
    self.assertIsInstance(means, list)
    for mean, own in zip(means, tensors_of(0)):
      self.assertAllEqual(mean, own)

  @parameterized.parameters((1, 0), (2, 4 * 1000), (4, 6 * 1000), (5, 6400))
  def test_bytes_of_a_ring(self, num_workers, expected):
    # Each of the M - 1 steps of the reduce-scatter and of the all-gather sends one of
    # M chunks of a vector of 1,000 float32 numbers.
    chunk = 4 * 1000 / num_workers
    self.assertEqual(expected, 2 * (num_workers - 1) * chunk)
    sent = MeanAllReduce().bytes_sent([tf.Variable(tf.zeros([10, 100]))], num_workers)
    self.assertEqual(sent, expected)
    self.assertIsInstance(sent, int)

  @parameterized.parameters((1, 0), (2, 4016), (4, 6024), (8, 7028))
  def test_bytes_of_float16(self, num_workers, expected):
    # 2,000 values of 2 bytes and 4 of 4 bytes.
    self.assertEqual(expected, 4016 * 2 * (num_workers - 1) / num_workers)
    variables = [tf.TensorSpec([20, 100], name="a"), tf.TensorSpec([4], name="b")]
    sent = MeanAllReduce(dtype=tf.float16).bytes_sent(variables, num_workers)
    self.assertEqual(sent, expected)


class FullPrecisionTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    # Vectors and scalars always; matrices only by size or by name.
    (0, "", "bias", [10_000], True), (0, "", "scale", [], True),
    (0, "", "kernel", [2, 3], False), (0, "", "kernel", [0, 3], False),
    (6, "", "kernel", [2, 3], False), (7, "", "kernel", [2, 3], True),
    (7, "", "kernel", [1, 1, 2, 3], True), (1000, "", "kernel", [100, 10], False),
    (0, "head", "net/head/kernel:0", [90, 90], True),
    (0, "^head", "net/head/kernel:0", [90, 90], False),
    (0, "^conv|out.*kernel", "output/kernel:0", [90, 90], True),
    (0, "head", "body/kernel:0", [90, 90], False),
    (9, "head", "body/kernel:0", [2, 3], True),
  )  # fmt: skip
  def test_by_rank_size_and_name(self, below, names, name, shape, expected):
    rule = FullPrecision(below, names)
    self.assertIs(rule(name, tf.TensorShape(shape)), expected)

  def test_by_default_what_is_smaller_than_a_bucket(self):
    rule = FullPrecision()
    self.assertTrue(rule("kernel", tf.TensorShape([31, 33])))
    self.assertFalse(rule("kernel", tf.TensorShape([32, 32])))
