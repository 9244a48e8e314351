"""TF_CONFIG, and whom it names."""

from __future__ import annotations

import json
import os
import unittest
from unittest import mock

import pytest

from dat_tf.base.errors import UserError
from dat_tf.workers.cluster import Cluster

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
