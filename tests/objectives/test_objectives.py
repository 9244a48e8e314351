"""Tests of losses and objectives against NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dat_tf.objectives import AdversarialTraining, cross_entropy, hits


def numpy_cross_entropy(logits, probabilities):
  logits = logits.astype("f8")
  log_sum = np.log(np.exp(logits).sum(axis=1))
  return log_sum - (probabilities * logits).sum(axis=1)


class ObjectivesTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.weights = rng.normal(size=(12, 3)).astype("f4")
    self.images, self.adversarial = rng.uniform(size=(2, 5, 2, 2, 3)).astype("f4")
    self.labels = rng.integers(0, 3, size=5)
    self.modes = []

  def classifier(self, images, training):
    self.modes.append((len(images), training))
    return tf.reshape(images, [-1, 12]) @ self.weights

  def logits(self, images):
    return images.reshape(-1, 12) @ self.weights

  def test_cross_entropy_takes_class_numbers_and_probabilities(self):
    logits, rows = self.logits(self.images), np.eye(3)[self.labels]
    expected = numpy_cross_entropy(logits, rows)
    self.assertAllClose(cross_entropy(logits, tf.constant(self.labels)), expected)
    soft = 0.8 * rows + 0.2 / 3
    self.assertAllClose(
      cross_entropy(logits, tf.constant(soft)), numpy_cross_entropy(logits, soft)
    )

  def test_hits(self):
    logits = tf.constant([[1.0, 2.0], [3.0, 0.0]])
    self.assertAllEqual(hits(logits, tf.constant([1, 1])), [1.0, 0.0])
    self.assertAllEqual(hits(logits, tf.constant([[0.1, 0.9], [0.6, 0.4]])), [1.0, 1.0])

  def test_clean_and_adversarial_loss_in_one_pass(self):
    objective = AdversarialTraining(clean_weight=0.5)
    result = objective(self.classifier, self.images, self.adversarial, self.labels)
    clean, adversarial = self.logits(self.images), self.logits(self.adversarial)
    rows = np.eye(3)[self.labels]
    expected = 0.5 * numpy_cross_entropy(clean, rows) + numpy_cross_entropy(
      adversarial, rows
    )
    self.assertAllClose(result.losses, expected)
    self.assertAllClose(result.clean_logits, clean)
    self.assertAllClose(result.adversarial_logits, adversarial)
    self.assertEqual(self.modes, [(10, True)])

  def test_without_clean_weight_only_adversarial_images_train(self):
    objective = AdversarialTraining(clean_weight=0)
    result = objective(self.classifier, self.images, self.adversarial, self.labels)
    expected = numpy_cross_entropy(
      self.logits(self.adversarial), np.eye(3)[self.labels]
    )
    self.assertAllClose(result.losses, expected)
    self.assertAllClose(result.clean_logits, self.logits(self.images))
    self.assertEqual(self.modes, [(5, True), (5, False)])
