"""Smoothed and mixed batches."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base import hashing
from dat_tf.objectives.mixing import CutMix, LabelSmoothing, Mixup, beta_quantile
from dat_tf.objectives.objective import Batch

CLASSES = 4


def batch_of(size, shape=(6, 6, 2), labels=None, first=0, **changes):
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(size, *shape)).astype("f4")
  labels = rng.integers(0, CLASSES, size=size) if labels is None else labels
  ones = tf.ones(size)
  keys = hashing.stream_keys(1, tf.range(first, first + size))
  batch = Batch(tf.constant(images), tf.constant(labels), ones, keys, ones)
  return batch._replace(**changes)


class MixingTest(tf.test.TestCase, parameterized.TestCase):
  def test_label_smoothing(self):
    labels = np.array([2, 0, -1])
    smooth = LabelSmoothing(CLASSES, 0.2)(batch_of(3, labels=labels)).labels
    expected = [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05], [0] * 4]
    self.assertAllClose(smooth, expected)
    soft = np.array([[0.5, 0.5, 0, 0]], "f4")
    smooth = LabelSmoothing(CLASSES, 0.2)(batch_of(1, labels=soft)).labels
    self.assertAllClose(smooth, [[0.45, 0.45, 0.05, 0.05]])

  @parameterized.parameters(0.2, 1.0, 3.0)
  def test_the_share_has_a_beta_distribution(self, alpha):
    u = hashing.uniform(hashing.stream_keys(tf.range(20_000)), [1])[:, 0]
    share = beta_quantile(u, alpha).numpy()
    self.assertAllInRange(share, 0.0, 1.0)
    self.assertAllClose(share.mean(), 0.5, atol=0.02)
    self.assertAllClose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.04)
    # Against samples of NumPy's, quantile by quantile.
    theirs = np.random.default_rng(0).beta(alpha, alpha, size=200_000)
    at = np.linspace(0.05, 0.95, 10)
    self.assertAllClose(np.quantile(share, at), np.quantile(theirs, at), atol=0.02)

  @parameterized.parameters(False, True)
  def test_mixup_is_a_mean_of_neighbours(self, soft):
    batch = batch_of(7)
    rows = np.eye(CLASSES, dtype="f4")[batch.labels]
    if soft:
      rows = 0.7 * rows + 0.3 / CLASSES
      batch = batch._replace(labels=tf.constant(rows))
    mixed = Mixup(CLASSES, alpha=1.0)(batch)
    for i in range(7):
      one, other = batch.images[i].numpy(), batch.images[(i + 1) % 7].numpy()
      share = np.mean((mixed.images[i] - other) / (one - other))
      self.assertBetween(share, 0.0, 1.0)
      self.assertAllClose(
        mixed.images[i], share * one + (1 - share) * other, rtol=1e-3, atol=1e-4
      )
      expected = share * rows[i] + (1 - share) * rows[(i + 1) % 7]
      self.assertAllClose(mixed.labels[i], expected, rtol=1e-3, atol=1e-3)

  def test_cutmix_pastes_a_window(self):
    batch = batch_of(200, shape=(8, 12, 1))
    mixed = CutMix(CLASSES)(batch)
    rows = np.eye(CLASSES)[batch.labels]
    areas = []
    for i in range(200):
      one, other = batch.images[i].numpy(), batch.images[(i + 1) % 200].numpy()
      pasted = (mixed.images[i].numpy() != one)[..., 0]
      self.assertAllEqual(mixed.images[i].numpy()[pasted], other[pasted])
      # A rectangle: all the rows that have any have the same columns.
      if pasted.any():
        block = pasted[np.ix_(pasted.any(axis=1), pasted.any(axis=0))]
        self.assertTrue(block.all())
      share = 1 - pasted.mean()
      expected = share * rows[i] + (1 - share) * rows[(i + 1) % 200]
      self.assertAllClose(mixed.labels[i], expected, atol=1e-6)
      areas.append(pasted.mean())
    # Uniform for alpha = 1, less what hangs over the edge.
    self.assertBetween(np.mean(areas), 0.2, 0.45)
    self.assertGreater(np.max(areas), 0.7)

  @parameterized.parameters(Mixup, CutMix)
  def test_only_like_is_mixed_with_like(self, method):
    # labelled, labelled, pseudo, pseudo, none, none, labelled, padding
    labels = np.array([0, 1, 2, 3, -1, -1, 1, 0])
    is_labeled = tf.constant([1, 1, 0, 0, 0, 0, 1, 1.0])
    weights = tf.constant([1, 1, 1, 1, 1, 1, 1, 0.0])
    batch = batch_of(8, labels=labels, is_labeled=is_labeled, weights=weights)
    mixed = method(CLASSES, alpha=5.0)(batch)
    changed = np.abs(mixed.images - batch.images).max(axis=(1, 2, 3)) > 0
    # The last is padding itself, and may be mixed: it counts for nothing.
    self.assertAllEqual(changed[:7], [True, False, True, False, True, False, False])
    sums = tf.reduce_sum(mixed.labels, axis=-1)[:7]
    self.assertAllClose(sums, [1, 1, 1, 1, 0, 0, 1])

  @parameterized.parameters(Mixup, CutMix)
  def test_an_examples_random_numbers_are_its_own(self, method):
    whole = batch_of(6)
    part = Batch(*(None if x is None else x[2:5] for x in whole._replace(step=None)))
    one, other = (method(CLASSES)(x) for x in (whole, part))
    self.assertAllEqual(one.images[2:4], other.images[:2])
    later = whole._replace(keys=hashing.stream_keys(2, tf.range(6)))
    self.assertNotAllClose(one.labels, method(CLASSES)(later).labels)
