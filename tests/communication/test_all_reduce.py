"""The mean of all replicas' tensors, and what it costs."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf import cluster as cluster_lib
from dat_tf.communication import MeanAllReduce
from workers import run_workers

REPLICAS = 3
SHAPES = [(3, 5), (), (7,), (2, 1, 4), (0,)]
NAMES = ["a", "b", "c", "d", "e"]


def tensors_of(replica):
  rng = np.random.default_rng(replica)
  return [rng.normal(size=shape).astype("f4") for shape in SHAPES]


def _means():
  """What each of three replicas gets, whole and in packs; in a process of its own."""
  cpus = [tf.config.LogicalDeviceConfiguration()] * REPLICAS
  tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], cpus
  )
  strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])
  options = cluster_lib.communication_options("ring", 16, 60.0)

  @tf.function
  def reduce(all_reduce):
    def in_replica():
      replica = tf.distribute.get_replica_context().replica_id_in_sync_group
      choices = zip(*map(tensors_of, range(REPLICAS)))
      tensors = [tf.gather(tf.stack(choice), replica) for choice in choices]
      return all_reduce(tensors, NAMES, tf.constant(0))[0]

    return strategy.run(in_replica)

  means = []
  for all_reduce in (MeanAllReduce(), MeanAllReduce(options)):
    results = map(strategy.experimental_local_results, reduce(all_reduce))
    means.append([[value.numpy() for value in replica] for replica in zip(*results)])
  return means


class MeanAllReduceTest(tf.test.TestCase, parameterized.TestCase):
  def test_every_replica_gets_numpys_mean(self):
    inputs = zip(*map(tensors_of, range(REPLICAS)))
    expected = [np.mean(choice, axis=0, dtype="f8") for choice in inputs]
    (results,) = run_workers(_means, 1)
    for replicas in results:
      self.assertLen(replicas, REPLICAS)
      for replica in replicas:
        self.assertEqual([mean.shape for mean in replica], SHAPES)
        for mean, reference, first in zip(replica, expected, replicas[0]):
          self.assertDTypeEqual(mean, np.float32)
          self.assertAllClose(mean, reference, rtol=1e-6, atol=1e-7)
          self.assertAllEqual(mean, first)

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
