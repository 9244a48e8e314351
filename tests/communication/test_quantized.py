"""The quantized mean against NumPy, on real workers and their local replicas."""

from __future__ import annotations

import os
import tempfile
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from quantized_reference import (
  CASES,
  FEEDBACK,
  IN_PACKS,
  NARROW,
  ONE_SIDED,
  OWN,
  SIZE,
  TENSORS,
  TWO_SIDED,
  WIDE,
  flat,
  gradients,
  mean_in_numpy,
)
from tensorflow.python.distribute.collective_all_reduce_strategy import (
  CollectiveAllReduceExtended,
)

from dat_tf.base import hashing
from dat_tf.communication.collectives import Group
from dat_tf.workers import cluster as cluster_lib
from dat_tf.workers import joined
from workers import run_workers

STEPS = (0, 7)
DRAWS = 100
FEEDBACK_STEPS = 100


def _runner(strategy, replicas, all_reduce):
  """A step from {name: [all replicas, ...]} to local replicas' (means, figures)."""

  @tf.function(autograph=False)
  def run(stacks, step):
    def in_replica():
      replica = tf.distribute.get_replica_context().replica_id_in_sync_group
      tensors = [stack[replica] for stack in stacks.values()]
      means, figures = all_reduce(tensors, list(stacks), step)
      return dict(zip(stacks, means)), figures

    return strategy.run(in_replica)

  def local(outcome, replica):
    return tf.nest.map_structure(
      lambda value: strategy.experimental_local_results(value)[replica].numpy(), outcome
    )

  def step(stacks, number):
    stacks = {name: tf.constant(stack) for name, stack in stacks.items()}
    outcome = run(stacks, tf.constant(number, tf.int64))
    return [local(outcome, replica) for replica in range(replicas)]

  return step


def _with_bytes(function):
  """What it returns, and the bytes that go to other workers in what it traces."""
  sent = []

  def counting(method):
    def exchange(group, x):
      sent.append(4 * (group.size - 1) * x.shape[-1])  # a row to each of the others
      return method(group, x)

    return exchange

  methods = {
    name: counting(getattr(Group, name)) for name in ("all_to_all", "all_gather")
  }
  with mock.patch.multiple(Group, **methods):
    result = function()
  return result, sum(sent)


def _residual(strategy, all_reduce):
  """[local replicas, SIZE]"""
  tensors = {
    name: np.stack([v.numpy() for v in strategy.experimental_local_results(variable)])
    for name, variable in zip(NARROW, all_reduce.residual)
  }
  return flat(tensors)


def _feedback(strategy, replicas, case, stacks, path):
  all_reduce, restored = case.all_reduce(), case.all_reduce()
  step = _runner(strategy, replicas, all_reduce)
  total = np.zeros(SIZE)
  for number in range(FEEDBACK_STEPS):
    outcomes = step(stacks, number)
    total += flat(outcomes[0][0])
  tf.train.Checkpoint(residual=all_reduce).write(path)
  with strategy.scope():
    restored.build(list(map(tf.TensorShape, TENSORS.values())), list(TENSORS))
  status = tf.train.Checkpoint(residual=restored).read(path)
  status.assert_existing_objects_matched()
  return {
    "last": outcomes,
    "total": total,
    "residual": _residual(strategy, all_reduce),
    "restored": _residual(strategy, restored),
  }


def _on_a_worker(strategy, replicas, names, feedback, path):
  """What the claims below are checked on."""
  stacks = gradients(strategy.num_replicas_in_sync)
  broken = {name: stack.copy() for name, stack in stacks.items()}
  broken["dense"][-1, -1, -1] = np.inf
  broken["block/filter"][-1, 0, 0, 0] = np.nan
  results = {}
  for name in names:
    step = _runner(strategy, replicas, CASES[name].all_reduce())
    first, sent = _with_bytes(lambda step=step: step(stacks, STEPS[0]))
    results[name] = {
      "steps": [first, *(step(stacks, number) for number in STEPS[1:])],
      "broken": step(broken, 1),
      "bytes": sent,
    }
    if name == names[0]:
      draws = [flat(step(stacks, number)[0][0]) for number in range(DRAWS)]
      results["mean"] = np.mean(draws, axis=0, dtype="f8")
      results["variance"] = np.var(draws, axis=0, dtype="f8", ddof=1)
  if feedback:
    case = FEEDBACK[feedback]
    results["feedback"] = _feedback(strategy, replicas, case, stacks, path)
  return results


def _in_process(replicas, names, feedback, directory):
  """In a process of its own, which has as many CPU devices as replicas."""
  tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * replicas,
  )

  def devices(self, resolver, worker_device):
    return [f"{worker_device}/device:CPU:{i}" for i in range(replicas)], "CPU"

  cluster = cluster_lib.Cluster.from_environment()
  options = joined.communication_options("ring", 0, 60)
  with mock.patch.object(
    CollectiveAllReduceExtended, "_initialize_local_devices", devices
  ):
    strategy = joined.join(cluster, options).strategy
  path = os.path.join(directory, str(cluster.index))
  return _on_a_worker(strategy, replicas, names, feedback, path)


class Claims:
  """What holds for any number of workers and local replicas."""

  WORKERS, REPLICAS = 1, 1
  NAMES: tuple[str, ...] = ()
  FEEDBACK = None

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    directory = tempfile.TemporaryDirectory()
    cls.addClassCleanup(directory.cleanup)
    cls.directory = directory.name
    cls.workers = cls.results()
    cls.stacks = gradients(cls.WORKERS * cls.REPLICAS)
    cls.true_mean = flat(cls.stacks).mean(axis=0, dtype="f8")

  @classmethod
  def results(cls):
    settings = (cls.REPLICAS, cls.NAMES, cls.FEEDBACK, cls.directory)
    return run_workers(_in_process, cls.WORKERS, *settings)

  def all_steps(self):
    """Case, step, and the (means, figures) of all replicas."""
    for name in self.NAMES:
      for index, step in enumerate(STEPS):
        outcomes = [worker[name]["steps"][index] for worker in self.workers]
        yield CASES[name], step, sum(outcomes, [])

  def test_equals_the_numpy_reference(self):
    values = flat(self.stacks).reshape(self.WORKERS, self.REPLICAS, SIZE)
    for case, step, outcomes in self.all_steps():
      expected = mean_in_numpy(case, values, step)
      self.assertLen(outcomes, self.WORKERS * self.REPLICAS)
      for means, _ in outcomes:
        self.assertAllClose(flat(means), expected, rtol=0, atol=1e-6)
      # It is a mean, and something is lost, on a lone worker too.
      self.assertGreater(np.corrcoef(expected, self.true_mean)[0, 1], 0.3)
      self.assertNotAllClose(expected, self.true_mean, atol=1e-4)

  def test_all_replicas_have_the_same_bits(self):
    groups = [outcomes for _, _, outcomes in self.all_steps()]
    groups += [
      sum([w[name]["broken"] for w in self.workers], []) for name in self.NAMES
    ]
    if self.FEEDBACK:
      groups.append(sum([worker["feedback"]["last"] for worker in self.workers], []))
    for (first, _), *others in groups:
      for means, _ in others:
        for name in TENSORS:
          self.assertEqual(means[name].tobytes(), first[name].tobytes())

  def test_full_precision_is_exact(self):
    for _, _, outcomes in self.all_steps():
      for means, _ in outcomes:
        for name, shape in TENSORS.items():
          self.assertEqual((means[name].dtype, means[name].shape), (np.float32, shape))
        for name in WIDE:
          mean = self.stacks[name].mean(axis=0, keepdims=True, dtype="f8")
          self.assertAllClose(means[name][np.newaxis], mean, rtol=1e-6, atol=1e-7)

  def test_what_is_not_finite_on_one_replica_reaches_all(self):
    for name in set(self.NAMES) - {OWN}:
      for worker in self.workers:
        for means, _ in worker[name]["broken"]:
          self.assertFalse(np.isfinite(means["dense"][-1, -1]))
          self.assertFalse(np.isfinite(means["block/filter"][0, 0, 0]))
          self.assertAllEqual(np.isfinite(means["block/kernel"][:8]), np.ones((8, 20)))

  def test_figures(self):
    times = {"encode_ms", "exchange_ms", "decode_ms", "reduction_ms"}
    for case, _, outcomes in self.all_steps():
      for replica, (_, figures) in enumerate(outcomes):
        self.assertEqual(set(figures), times | {"quantization_error"})
        for name in times:
          self.assertBetween(figures[name], 0.0, 60_000.0)
        values = flat({name: self.stacks[name][replica] for name in NARROW})
        values = np.pad(values, [0, -SIZE % 128])
        error = case.in_numpy(values, hashing.stream_keys(0, replica)) - values
        expected = np.linalg.norm(error) / np.linalg.norm(values)
        self.assertBetween(figures["quantization_error"] / expected, 0.9, 1.1)

  def test_is_unbiased(self):
    for worker in self.workers:
      error, variance = worker["mean"] - self.true_mean, worker["variance"] / DRAWS
      # Sums over 2,300 values, whose relative deviation is √(2 / 2,300) = 0.03.
      self.assertAllClose(np.sum(error**2) / np.sum(variance), 1.0, atol=0.2)
      allowed = 5 * np.sqrt(np.sum(variance * self.true_mean**2))
      self.assertLess(abs(np.sum(error * self.true_mean)), allowed)


class BytesClaims(Claims):
  """Of several local replicas, the shares are padded one by one: a little more."""

  def test_counts_the_bytes_that_are_sent(self):
    variables = [tf.TensorSpec(shape, name=name) for name, shape in TENSORS.items()]
    ring = 4 * (1 + 7 + 9 + 100) * 2 * (self.WORKERS - 1) / self.WORKERS
    for name in self.NAMES:
      counted = CASES[name].all_reduce().bytes_sent(variables, self.WORKERS)
      self.assertIsInstance(counted, int)
      for worker in self.workers:
        self.assertAllClose(counted, worker[name]["bytes"] + ring, rtol=0, atol=0.5)


class FeedbackClaims(Claims):
  FEEDBACK = TWO_SIDED

  def test_the_residual_is_what_the_means_lack(self):
    lacking = FEEDBACK_STEPS * self.true_mean - self.workers[0]["feedback"]["total"]
    residuals = [worker["feedback"]["residual"] for worker in self.workers]
    residual = np.concatenate(residuals).mean(axis=0, dtype="f8")
    self.assertAllClose(residual, lacking, rtol=0, atol=1e-3)
    # It has the size of a gradient, as after the first steps.
    self.assertLess(np.linalg.norm(residual), 10 * np.linalg.norm(self.true_mean))

  def test_a_checkpoint_holds_the_mean_residual(self):
    before = np.concatenate([w["feedback"]["residual"] for w in self.workers])
    after = np.concatenate([w["feedback"]["restored"] for w in self.workers])
    mean = before.mean(axis=0, dtype="f8")
    self.assertGreater(np.abs(mean).max(), 1e-4)
    self.assertAllClose(after.mean(axis=0, dtype="f8"), mean, rtol=0, atol=1e-5)
    # For another number of workers too.
    alone = FEEDBACK[self.FEEDBACK].all_reduce()
    alone.build(list(map(tf.TensorShape, TENSORS.values())), list(TENSORS))
    checkpoint = tf.train.Checkpoint(residual=alone)
    status = checkpoint.read(os.path.join(self.directory, "0"))
    status.assert_existing_objects_matched()
    residual = _residual(tf.distribute.get_strategy(), alone)
    self.assertAllClose(residual, mean[np.newaxis], rtol=0, atol=1e-5)


class OneWorkerTest(BytesClaims, FeedbackClaims, tf.test.TestCase):
  NAMES = (TWO_SIDED, IN_PACKS, ONE_SIDED, OWN)

  @classmethod
  def results(cls):
    path = os.path.join(cls.directory, "0")
    strategy = tf.distribute.get_strategy()
    return [_on_a_worker(strategy, 1, cls.NAMES, cls.FEEDBACK, path)]


class TwoReplicasTest(Claims, tf.test.TestCase):
  REPLICAS = 2
  NAMES = (TWO_SIDED,)


class TwoWorkersTest(BytesClaims, FeedbackClaims, tf.test.TestCase):
  WORKERS = 2
  NAMES = (TWO_SIDED, ONE_SIDED)


class TwoWorkersOfTwoReplicasTest(FeedbackClaims, tf.test.TestCase):
  WORKERS, REPLICAS = 2, 2
  NAMES, FEEDBACK = (TWO_SIDED,), ONE_SIDED


class ThreeWorkersTest(BytesClaims, tf.test.TestCase):
  WORKERS = 3
  NAMES = (IN_PACKS, OWN)


class FourWorkersTest(BytesClaims, FeedbackClaims, tf.test.TestCase):
  WORKERS = 4
  NAMES, FEEDBACK = (TWO_SIDED, OWN), OWN


@pytest.mark.long
class EightWorkersTest(BytesClaims, FeedbackClaims, tf.test.TestCase):
  WORKERS = 8
  NAMES = (TWO_SIDED, IN_PACKS, ONE_SIDED, OWN)
