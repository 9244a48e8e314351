"""Sums over examples against NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dat_tf.objectives import Batch
from dat_tf.objectives.sums import Sums

LABELS = np.array([0, 1, 2, 0, 1, 2])
WEIGHTS = np.array([1, 0.5, 2, 1, 0, 1], np.float32)  # one is padding
IS_LABELED = np.array([1, 1, 1, 0, 1, 1], np.float32)
CLEAN = np.array([0, 1, 0, 0, 1, 2])  # predictions
ROBUST = np.array([0, 2, 2, 1, 1, 0])
CERTIFIED = np.array([True, False, False, True, True, True])


def sums(chosen, certified=CERTIFIED):
  labels, weights, is_labeled, clean, robust = (
    tf.constant(x[chosen]) for x in (LABELS, WEIGHTS, IS_LABELED, CLEAN, ROBUST)
  )
  size = len(labels)
  keys = tf.zeros([size, 2], tf.uint32)
  batch = Batch(tf.zeros([size, 2, 2, 1]), labels, weights, keys, is_labeled)
  logits = (tf.one_hot(clean, 3), tf.one_hot(robust, 3))
  certified = None if certified is None else tf.constant(certified[chosen])
  return Sums.of(batch, 2.0 * tf.reduce_sum(weights), *logits, certified)


class SumsTest(tf.test.TestCase):
  def test_means_are_over_the_weighted_labelled_examples(self):
    # Of two batches of unlike size, as from two workers.
    parts = [sums(slice(0, 2)).stacked(), sums(slice(2, 6)).stacked()]
    total = Sums.unstacked(tf.add_n(parts))
    counted = WEIGHTS * IS_LABELED
    means = total.means(attacked=True)
    self.assertAllClose(total.weight, WEIGHTS.sum())
    self.assertAllClose(means.pop("loss"), 2.0)
    accuracy = np.average(CLEAN == LABELS, weights=counted)
    self.assertAllClose(means.pop("accuracy"), accuracy)
    robust = np.average(ROBUST == LABELS, weights=counted)
    self.assertAllClose(means.pop("robust_accuracy"), robust)
    self.assertEmpty(means)
    certified = np.average(CERTIFIED, weights=counted)
    self.assertAllClose(total.certified_accuracy, certified)

  def test_of_no_examples_and_without_an_attack(self):
    nothing = sums(slice(4, 5), certified=None)  # padding alone
    means = nothing.means(attacked=False)
    self.assertEqual(means.keys(), {"loss", "accuracy"})
    self.assertAllEqual([*means.values(), nothing.certified_accuracy], [0, 0, 0])


if __name__ == "__main__":
  tf.test.main()
