"""Who attacks what, and that nothing is attacked twice."""

from __future__ import annotations

import os
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.attacks import LInfinity
from dat_tf.data import framing, shards
from dat_tf.evaluation import Outcome, Survey, survey

SIZES = (5, 40, 1, 7)
# Of the second file record 3 is bad.
SEGMENTS = ([(0, 5)], [(0, 3), (4, 36)], [(0, 1)], [(0, 7)])
COUNT = 52


def whole():
  return shards.Shard(
    tuple(
      shards.Slice(
        f"file{i}", i, 0, 1, tuple(framing.Segment(9 * a, a, n) for a, n in segments)
      )
      for i, segments in enumerate(SEGMENTS)
    )
  )


def ids(shard):
  """The examples of a shard, read as `shards.Slice` says."""
  return [
    piece.file_number * 2**32 + number
    for piece in shard.slices
    for _, first, count in piece.segments
    for number in range(first, first + count)
    if number % piece.stride == piece.first
  ]


class DealingTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 7, 60)
  def test_each_example_is_dealt_once_and_evenly(self, num_workers):
    hands = [ids(survey.share(whole(), i, num_workers)) for i in range(num_workers)]
    self.assertCountEqual(sum(hands, []), ids(whole()))
    sizes = list(map(len, hands))
    # A bad record was one of somebody's.
    self.assertLessEqual(max(sizes) - min(sizes), 2)

  @parameterized.parameters(1, 5, 6, 9, 45, 46, 51, 52, 1000)
  def test_the_first_examples(self, most):
    part = survey.first_examples(whole(), most)
    self.assertEqual(ids(part), ids(whole())[:most])
    self.assertEqual(part.num_examples, min(most, COUNT))

  def test_zero_means_all(self):
    self.assertEqual(ids(survey.first_examples(whole(), 0)), ids(whole()))


class FakeEvaluator:
  """Breaks examples by their ids, and writes down which it was given."""

  seen: list = []
  most_calls = 1000

  def __init__(self, classifier, attacks, batch_size, seed):
    (self._name,) = attacks

  def __call__(self, images, labels, example_ids, advance):
    if len(self.seen) == self.most_calls:
      raise KeyboardInterrupt
    self.seen.append(list(example_ids))
    advance()
    broken = example_ids % 3 == 0
    norm = np.where(broken, 0.05, np.inf)
    prediction = np.where(broken, labels + 1, labels)
    attack = np.where(broken, 0, -1)
    return labels, {self._name: Outcome(norm, broken, attack, prediction, images)}


class SurveyTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = os.path.join(tempfile.mkdtemp(dir=self.get_temp_dir()), "evaluation")
    patched = mock.patch.object(survey, "Evaluator", FakeEvaluator)
    patched.start()
    self.addCleanup(patched.stop)
    self.forget()

  def forget(self, most_calls=1000):
    FakeEvaluator.seen, FakeEvaluator.most_calls = [], most_calls

  def seen(self):
    return sum(FakeEvaluator.seen, [])

  def batches(self, shard, batch_size):
    self.assertNotEmpty(shard.slices)  # as the pipeline wants it
    numbers = np.array(ids(shard))
    for start in range(0, len(numbers), batch_size):
      part = numbers[start : start + batch_size]
      filled = np.resize(part, batch_size)
      weight = np.arange(batch_size) < len(part)
      columns = {
        "image": np.zeros((batch_size, 2, 2, 1), "f4"),
        "label": (filled % 7).astype("i8"),
        "weight": weight.astype("f4"),
        "example_id": filled,
      }
      yield {name: tf.constant(column) for name, column in columns.items()}

  def survey(self, worker=0, num_workers=1, most=0, weights="w"):
    data = survey.Data(survey.first_examples(whole(), most), self.batches, 2)
    return Survey(
      self.folder, None, LInfinity(0.1), "linf", data, 0, [weights], worker, num_workers
    )

  def attack(self, num_workers, **settings):
    for worker in range(num_workers):
      self.survey(worker, num_workers, **settings).attack("pgd-5")
    return self.survey(**settings).merge("pgd-5")

  def assert_whole(self, rows):
    self.assertAllEqual(rows["example_id"], ids(whole()))
    self.assertAllEqual(rows["label"], rows["example_id"] % 7)
    self.assertAllEqual(np.isfinite(rows["norm"]), rows["example_id"] % 3 == 0)

  @parameterized.parameters(1, 2, 3, 60)
  def test_all_is_attacked_once_on_any_number_of_workers(self, num_workers):
    rows = self.attack(num_workers)
    self.assert_whole(rows)
    self.assertCountEqual(self.seen(), ids(whole()))
    self.assertLessEqual(max(map(len, FakeEvaluator.seen)), 8)

  def test_a_run_that_was_stopped_goes_on_with_what_is_missing(self):
    self.forget(most_calls=3)
    with self.assertRaises(KeyboardInterrupt):
      self.attack(2)
    done = self.seen()
    self.assertLen(done, 24)
    self.forget()
    self.assert_whole(self.attack(3))
    self.assertCountEqual(self.seen() + done, ids(whole()))

  def test_more_examples_later(self):
    self.assertAllEqual(self.attack(2, most=10)["example_id"], ids(whole())[:10])
    self.assertLen(self.seen(), 10)
    self.assert_whole(self.attack(1))
    self.assertCountEqual(self.seen(), ids(whole()))
    self.assertAllEqual(self.attack(2, most=10)["example_id"], ids(whole())[:10])
    self.assertLen(self.seen(), COUNT)

  def test_what_is_done(self):
    rows = self.attack(2, most=10)
    done = self.survey(most=10).done(["fgsm", "pgd-5"])
    self.assertCountEqual(done, ["pgd-5"])
    self.assertAllEqual(done["pgd-5"]["sequence"], ["pgd-5"])
    self.assertAllEqual(done["pgd-5"]["norm"], rows["norm"])
    self.assertAllEqual(
      self.survey(most=4).done(["pgd-5"])["pgd-5"]["norm"], rows["norm"][:4]
    )
    for other in ({}, {"most": 10, "weights": "v"}):
      self.assertEqual(self.survey(**other).done(["pgd-5"]), {})

  def test_other_weights_start_anew(self):
    self.attack(1)
    self.attack(1, weights="v")
    self.assertLen(self.seen(), 2 * COUNT)

  def test_progress_reaches_its_end_also_when_resumed(self):
    for _ in range(2):
      work = self.survey(1, 2)
      advance = mock.Mock()
      work.attack("pgd-5", advance)
      self.assertEqual(advance.call_count, work.steps("pgd-5"))

  def test_the_fingerprint_depends_on_all_that_matters(self):
    def of(ball=None, seed=0, batch_size=2, weights="w"):
      data = survey.Data(whole(), self.batches, batch_size)
      return Survey(
        self.folder, None, ball or LInfinity(0.1), "linf", data, seed, [weights]
      ).fingerprint

    prints = [of(), of(LInfinity(0.2)), of(seed=1), of(batch_size=4), of(weights="v")]
    self.assertLen(set(prints), 5)
    self.assertEqual(of(), prints[0])
