"""TF_CONFIG, and numbers that workers agree on."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import unittest
from unittest import mock

import pytest
import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.workers import cluster as cluster_lib
from dat_tf.workers.cluster import Cluster
from workers import run_workers

WORKERS = ["a:1", "b.example.org:65535", "[::1]:2222"]


def _environ(cluster, job="worker", index=0):
  task = {"type": job, "index": index}
  return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


class FromEnvironmentTest(unittest.TestCase):
  def test_without_tf_config_there_is_one_worker(self):
    for environ in ({}, {"TF_CONFIG": ""}, {"TF_CONFIG": " \n"}):
      cluster = Cluster.from_environment(environ)
      self.assertEqual((cluster.num_workers, cluster.index), (1, 0))
      self.assertEqual(cluster.addresses, ())
      self.assertTrue(cluster.is_chief)

  def test_reads_the_process_environment(self):
    with mock.patch.dict(os.environ, _environ({"worker": WORKERS}, index=2)):
      self.assertEqual(Cluster.from_environment(), Cluster(tuple(WORKERS), 2))

  def test_workers(self):
    for index in range(3):
      cluster = Cluster.from_environment(_environ({"worker": WORKERS}, index=index))
      self.assertEqual(cluster.addresses, tuple(WORKERS))
      self.assertEqual((cluster.num_workers, cluster.index), (3, index))
      self.assertEqual(cluster.is_chief, index == 0)

  def test_an_index_may_be_a_string(self):
    cluster = Cluster.from_environment(_environ({"worker": WORKERS}, index="2"))
    self.assertEqual(cluster, Cluster(tuple(WORKERS), 2))

  def test_a_chief_is_worker_0(self):
    jobs = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    indices = [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)]
    for job, index, expected in indices:
      cluster = Cluster.from_environment(_environ(jobs, job, index))
      self.assertEqual(cluster, Cluster(("a:1", "b:1", "c:1"), expected))


ONE = {"worker": ["a:1"]}


@pytest.mark.parametrize(
  "text, fault",
  [
    ("{'cluster': {}}", "is not JSON"),
    ("{", "is not JSON"),
    ("[]", "no object 'cluster'"),
    ("3", "no object 'cluster'"),
    ("{}", "no object 'cluster'"),
    ('{"cluster": ["a:1"], "task": {}}', "no object 'cluster'"),
    ('{"cluster": {"worker": ["a:1"]}}', "no object 'task'"),
    ('{"cluster": {"worker": ["a:1"]}, "task": 0}', "no object 'task'"),
    (_environ({}), "no job 'worker'"),
    (_environ(ONE, "chief"), "no job 'chief'"),
    (_environ(ONE, "ps"), "type 'ps'"),
    (_environ(ONE, "evaluator"), "type 'evaluator'"),
    (_environ(ONE, None), "type None"),
    (_environ(ONE, ["worker"]), "type ['worker']"),
    (_environ({"worker": ["a:1"], "ps": ["b:1"]}), "job 'ps'"),
    (_environ(ONE, index=1), "index 1"),
    (_environ(ONE, index=-1), "index -1"),
    (_environ(ONE, index="1"), "index 1"),
    (_environ(ONE, index="٠"), "index '٠'"),
    (_environ(ONE, index="9" * 9999), "index '999"),
    (_environ(ONE, "w" * 9999), "type 'www"),
    ('{"cluster": ' + "[" * 100_000, "is not JSON"),
    (_environ({"worker": ["a:٢٢"]}), "'a:٢٢'"),
    (_environ({"worker": ["[:::::]:22"]}), "'[:::::]:22'"),
    (_environ({"worker": ["a" * 9999]}), "'aaa"),
    (_environ({"worker": ["a:1"], "p" * 9999: []}), "job 'ppp"),
    (_environ(ONE, index=True), "index True"),
    (_environ(ONE, index=0.0), "index 0.0"),
    (_environ(ONE, index=None), "index None"),
    (_environ({"worker": ["b:1"], "chief": ["a:1"]}, index=1), "index 1"),
    (_environ({"worker": "a:1"}), "no list"),
    (_environ({"worker": {"0": "a:1"}}), "no list"),
    (_environ({"worker": ["a"]}), "'a'"),
    (_environ({"worker": ["a:"]}), "'a:'"),
    (_environ({"worker": [":1"]}), "':1'"),
    (_environ({"worker": ["a:0"]}), "'a:0'"),
    (_environ({"worker": ["a:65536"]}), "'a:65536'"),
    (_environ({"worker": ["grpc://a:1"]}), "'grpc://a:1'"),
    (_environ({"worker": [1]}), "lists 1 "),
    (_environ({"worker": ["a:1", "b:1", "a:1"]}), "'a:1' twice"),
    (_environ({"worker": ["a:1"], "chief": ["a:1"]}), "'a:1' twice"),
    (_environ({"worker": ["a:1"], "chief": ["b:1", "c:1"]}), "2 chiefs"),
  ],
)
def test_a_mistake_in_tf_config_is_one_line_that_names_it(text, fault):
  environ = text if isinstance(text, dict) else {"TF_CONFIG": text}
  with pytest.raises(UserError) as error:
    Cluster.from_environment(environ)
  message = str(error.value)
  assert message.startswith("TF_CONFIG") and fault in message
  assert "\n" not in message and len(message) < 300


class CommunicationOptionsTest(unittest.TestCase):
  def test_options_are_tensorflows(self):
    implementation = tf.distribute.experimental.CommunicationImplementation
    for name, expected in (
      ("auto", implementation.AUTO),
      ("ring", implementation.RING),
      ("nccl", implementation.NCCL),
    ):
      options = cluster_lib.communication_options(name, 1 << 20, 30.0)
      self.assertEqual(options.implementation, expected)
      self.assertEqual(options.bytes_per_pack, 1 << 20)
      self.assertEqual(options.timeout_seconds, 30.0)


def _strategy(cluster):
  options = cluster_lib.communication_options("ring", 0, 60.0)
  return cluster_lib.make_strategy(cluster, options)


def _agree(values):
  """In one worker: replicas, maxima, texts, and whether SIGTERM would end it."""
  cluster = Cluster.from_environment()
  strategy = _strategy(cluster)
  maxima = [cluster_lib.all_workers_max(strategy, n) for n in values[cluster.index]]
  texts = cluster_lib.all_workers_texts(strategy, "ε" * (3 * cluster.index + 1))
  return strategy.num_replicas_in_sync, maxima, texts, not _catches(signal.SIGTERM)


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
  strategies = [_strategy(Cluster.from_environment()), _strategy(Cluster())]
  del os.environ["TF_CONFIG"]  # which the next line would read
  several = tf.distribute.MultiWorkerMirroredStrategy._from_local_devices(
    ["CPU:0", "CPU:1", "CPU:2"]
  )
  return [
    (
      strategy.num_replicas_in_sync,
      cluster_lib.all_workers_max(strategy, 5),
      cluster_lib.all_workers_texts(strategy, "five"),
    )
    for strategy in [*strategies, several]
  ]


def _fail(index):
  """Fails in one worker; the other waits for it."""
  if Cluster.from_environment().index == index:
    raise ValueError("as it should")
  _strategy(Cluster.from_environment())


class RunWorkersTest(unittest.TestCase):
  def test_a_failure_shows_what_the_worker_wrote(self):
    with self.assertRaisesRegex(RuntimeError, r"\[worker 1\] ValueError: as it should"):
      run_workers(_fail, 2, 1)


class AllWorkersMaxTest(unittest.TestCase):
  def test_two_workers_agree(self):
    values = [[3, 8, -5, 2**40], [7, 1, -2, 0]]
    expected = (2, [7, 8, -2, 2**40], ["ε", "εεεε"], True)
    self.assertEqual(run_workers(_agree, 2, values), [expected] * 2)

  def test_one_worker_and_several_local_replicas(self):
    expected = [(replicas, 5, ["five"]) for replicas in (1, 1, 3)]
    self.assertEqual(run_workers(_agree_alone, 1), [expected])
