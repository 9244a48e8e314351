"""What two real workers exchange, and how long they wait for each other."""

from __future__ import annotations

import os
import time

import numpy as np
import tensorflow as tf

from dat_tf.communication.collectives import groups
from dat_tf.workers import cluster as cluster_lib
from dat_tf.workers import joined
from workers import run_workers


def _exchange(strategy, worker):
  layout = {}

  @tf.function(autograph=False)
  def run(rows, row):
    def in_replica():
      across, within = groups()
      layout.update(
        across=(across.size, across.rank), within=(within.size, within.rank)
      )
      return {
        "all_to_all": across.all_to_all(rows),
        "all_gather": across.all_gather(row),
        "sum": across.sum(row),
        "within": within.all_gather(within.sum(row)),
        "once more": across.all_to_all(rows + 1),
      }

    return strategy.run(in_replica)

  results = []
  for dtype in (np.int32, np.float32):
    rows = np.arange(6, dtype=dtype).reshape(2, 3) + 10 * worker
    result = run(rows, rows[0])
    results.append({name: value.numpy() for name, value in result.items()})
  return layout, results


def _sums(strategy, sizes, timeout):
  """Sums of batches over the workers; a batch of a new size is traced anew."""
  options = joined.communication_options("ring", 0, timeout)

  @tf.function(autograph=False)
  def run(batch):
    return strategy.run(lambda: groups(options)[0].sum(tf.reduce_sum(batch)[None]))

  try:
    return [float(run(tf.ones(size))[0]) for size in sizes]
  except tf.errors.OpError as error:
    return type(error).__name__


def _on_a_worker(directory):
  cluster = cluster_lib.Cluster.from_environment()
  options = joined.communication_options("ring", 0, 60)
  strategy, worker = joined.join(cluster, options).strategy, cluster.index
  layout, results = _exchange(strategy, worker)
  result = {"layout": layout, "results": results}
  result["sums"] = _sums(strategy, [[4], [4], [4]] if worker else [[4], [3], [4]], 10)
  done = os.path.join(directory, "done")
  if worker == 0:
    result["alone"] = _sums(strategy, [[5]], 0.5)
    open(done, "w").close()
  for _ in range(600):
    if not os.path.exists(done):
      time.sleep(0.1)
  return result


class GroupTest(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workers = run_workers(_on_a_worker, 2, tf.compat.v1.test.get_temp_dir())

  def test_exchanges(self):
    for rank, worker in enumerate(self.workers):
      self.assertEqual(worker["layout"], {"across": (2, rank), "within": (1, 0)})
      for dtype, result in zip((np.int32, np.float32), worker["results"]):
        # Worker i has the rows 10 i + (0, 1, 2) and 10 i + (3, 4, 5).
        mine = np.arange(3, dtype=dtype) + 3 * rank
        self.assertAllEqual(result["all_to_all"], [mine, mine + 10])
        self.assertAllEqual(result["all_gather"], [[0, 1, 2], [10, 11, 12]])
        self.assertAllEqual(result["sum"], [10, 12, 14])
        self.assertAllEqual(result["within"], [np.arange(3) + 10 * rank])
        self.assertAllEqual(result["once more"], [mine + 1, mine + 11])
        self.assertEqual({value.dtype for value in result.values()}, {np.dtype(dtype)})

  def test_one_worker_may_trace_anew(self):
    for worker in self.workers:
      self.assertEqual(worker["sums"], [8.0, 7.0, 8.0])

  def test_who_waits_alone_gives_up(self):
    self.assertEqual(self.workers[0]["alone"], "DeadlineExceededError")
