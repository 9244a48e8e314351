"""Workers that are joined, and what they agree on."""

from __future__ import annotations

import os
import re
import signal
import sys
import unittest

import tensorflow as tf

from dat_tf.workers import joined
from dat_tf.workers.cluster import Cluster
from workers import run_workers


class CommunicationOptionsTest(unittest.TestCase):
  def test_options_are_tensorflows(self):
    implementation = tf.distribute.experimental.CommunicationImplementation
    for name, expected in (
      ("auto", implementation.AUTO),
      ("ring", implementation.RING),
      ("nccl", implementation.NCCL),
    ):
      options = joined.communication_options(name, 1 << 20, 30.0)
      self.assertEqual(options.implementation, expected)
      self.assertEqual(options.bytes_per_pack, 1 << 20)
      self.assertEqual(options.timeout_seconds, 30.0)


def _join(cluster):
  return joined.join(cluster, joined.communication_options("ring", 0, 60.0))


def _agree(values):
  """In one worker: replicas, maxima, texts, and whether SIGTERM would end it."""
  workers = _join(Cluster.from_environment())
  index = workers.cluster.index
  maxima = [workers.largest(n) for n in values[index]]
  texts = workers.texts("ε" * (3 * index + 1))
  return workers.num_replicas, maxima, texts, not _catches(signal.SIGTERM)


def _catches(number):
  """Whether this process has a handler for a signal, Python's or another."""
  if sys.platform != "linux":
    return False
  with open("/proc/self/status") as file:
    caught = re.search(r"SigCgt:\s*(\w+)", file.read())[1]
  return bool(int(caught, 16) >> (number - 1) & 1)


def _agree_alone():
  """In the only worker: replicas and agreed maximum, for three strategies."""
  tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 3,
  )
  all_alone = [_join(Cluster.from_environment()), _join(Cluster())]
  del os.environ["TF_CONFIG"]  # which the next line would read
  several = tf.distribute.MultiWorkerMirroredStrategy._from_local_devices(
    ["CPU:0", "CPU:1", "CPU:2"]
  )
  return [
    (workers.num_replicas, workers.largest(5), workers.texts("five"))
    for workers in [*all_alone, joined.Workers(Cluster(), several)]
  ]


def _fail(index):
  """Fails in one worker; the other waits for it."""
  if Cluster.from_environment().index == index:
    raise ValueError("as it should")
  _join(Cluster.from_environment())


class RunWorkersTest(unittest.TestCase):
  def test_a_failure_shows_what_the_worker_wrote(self):
    with self.assertRaisesRegex(RuntimeError, r"\[worker 1\] ValueError: as it should"):
      run_workers(_fail, 2, 1)


class WorkersTest(unittest.TestCase):
  def test_two_workers_agree(self):
    values = [[3, 8, -5, 2**40], [7, 1, -2, 0]]
    expected = (2, [7, 8, -2, 2**40], ["ε", "εεεε"], True)
    self.assertEqual(run_workers(_agree, 2, values), [expected] * 2)

  def test_one_worker_and_several_local_replicas(self):
    expected = [(replicas, 5, ["five"]) for replicas in (1, 1, 3)]
    self.assertEqual(run_workers(_agree_alone, 1), [expected])


if __name__ == "__main__":
  unittest.main()
