"""Tests of losses and objectives against NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.objectives import (
  AdversarialTraining,
  Batch,
  SemiSupervised,
  correct,
  cross_entropy,
)


def numpy_cross_entropy(logits, rows):
  """Of rows that may add up to something else than 1."""
  return -(rows * np.log(softmax(logits))).sum(axis=1)


class ObjectivesTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.weights = rng.normal(size=(12, 3)).astype("f4")
    self.images, self.adversarial = rng.uniform(size=(2, 5, 2, 2, 3)).astype("f4")
    self.labels = rng.integers(0, 3, size=5)
    self.modes = []
    ones = tf.ones(5)
    self.batch = Batch(self.images, tf.constant(self.labels), ones, None, ones)

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

  def test_the_gradient_of_what_is_all_but_certain_is_not_lost(self):
    """Else PGD would follow the other classes alone, and miss."""
    logits = tf.constant([[30.0, 1.0, 0.0]])
    rest = np.exp([-29.0, -30.0])
    for labels in ([0], [[1.0, 0.0, 0.0]]):
      with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = cross_entropy(logits, tf.constant(labels))
      self.assertAllClose(losses, [rest.sum()], rtol=1e-3, atol=0)
      expected = [[-rest.sum(), *rest]]
      self.assertAllClose(tape.gradient(losses, logits), expected, rtol=1e-3, atol=0)

  def test_the_gradient_of_rows_that_do_not_add_up_to_one(self):
    """None for zeros, twice as much for the sum of two labels."""
    logits = tf.constant(self.logits(self.images)[:3])
    rows = np.array([[0, 0, 0], [1, 0, 1], [0.5, 0.25, 0.25]], "f4")
    with tf.GradientTape() as tape:
      tape.watch(logits)
      losses = cross_entropy(logits, rows)
    expected = rows.sum(axis=1, keepdims=True) * softmax(logits.numpy()) - rows
    self.assertAllClose(tape.gradient(losses, logits), expected, atol=1e-6)
    self.assertAllClose(losses[0], 0.0)

  def test_correct(self):
    logits = tf.constant([[1.0, 2.0], [3.0, 0.0]])
    self.assertAllEqual(correct(logits, tf.constant([1, 1])), [1.0, 0.0])
    self.assertAllEqual(
      correct(logits, tf.constant([[0.1, 0.9], [0.6, 0.4]])), [1.0, 1.0]
    )

  def test_clean_and_adversarial_loss_in_one_pass(self):
    objective = AdversarialTraining(clean_weight=0.5)
    result = objective(self.classifier, self.batch, self.adversarial)
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
    result = objective(self.classifier, self.batch, self.adversarial)
    expected = numpy_cross_entropy(
      self.logits(self.adversarial), np.eye(3)[self.labels]
    )
    self.assertAllClose(result.losses, expected)
    self.assertAllClose(result.clean_logits, self.logits(self.images))
    self.assertEqual(self.modes, [(5, True), (5, False)])


def softmax(logits):
  powers = np.exp(logits.astype("f8"))
  return powers / powers.sum(axis=1, keepdims=True)


class SemiSupervisedTest(tf.test.TestCase, parameterized.TestCase):
  """Rows 0 and 1 have labels, 2 and 3 pseudo-labels, 4 and 5 none."""

  LABELS = np.array([2, 0, 1, 2, -1, -1])
  IS_LABELED = np.array([1, 1, 0, 0, 0, 0], "f4")

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.kernel = rng.normal(size=(12, 3)).astype("f4")
    self.images, self.adversarial = rng.uniform(size=(2, 6, 2, 2, 3)).astype("f4")
    rows = np.eye(4)[self.LABELS][:, :3]  # -1 is the fourth
    self.rows = rows.astype("f4")

  def classifier(self, images, *, training=False):
    del training
    return tf.reshape(images, [-1, 12]) @ self.kernel

  def logits(self, images):
    return np.reshape(images, [-1, 12]).astype("f8") @ self.kernel

  def batch(self, labels, step=0):
    ones = tf.ones(6)
    return Batch(
      self.images, tf.constant(labels), ones, None, tf.constant(self.IS_LABELED), step
    )

  def expected(self, objective, i, grown=1.0):
    """The loss of one example, by the equations."""
    clean, adversarial = self.logits(self.images), self.logits(self.adversarial)
    log_p, log_q = np.log(softmax(clean))[i], np.log(softmax(adversarial))[i]
    if self.IS_LABELED[i]:
      y = self.LABELS[i]
      return -objective.clean_weight * log_p[y] - log_q[y]
    loss = 0.0
    if objective.pseudo_labels and self.LABELS[i] >= 0:
      z = np.full(3, objective.label_smoothing / 3)
      z[self.LABELS[i]] += 1 - objective.label_smoothing
      loss -= objective.clean_weight * z @ log_p + z @ log_q
    if objective.consistency:
      loss += grown * np.exp(log_p) @ (log_p - log_q)
    return objective.unlabeled_weight * loss

  @parameterized.product(
    pseudo_labels=[True, False], consistency=[True, False], soft=[True, False]
  )
  def test_each_example_has_its_loss(self, pseudo_labels, consistency, soft):
    objective = SemiSupervised(0.5, 0.3, pseudo_labels, consistency, 0.15)
    batch = self.batch(self.rows if soft else self.LABELS)
    losses, clean, adversarial = objective(self.classifier, batch, self.adversarial)
    expected = [self.expected(objective, i) for i in range(6)]
    self.assertAllClose(losses, expected, rtol=1e-5, atol=1e-6)
    self.assertAllClose(clean, self.logits(self.images), rtol=1e-5)
    self.assertAllClose(adversarial, self.logits(self.adversarial), rtol=1e-5)

  @parameterized.parameters((0, 0.25), (2, 0.75), (3, 1.0), (9, 1.0))
  def test_consistency_grows(self, step, grown):
    objective = SemiSupervised(0.5, 0.3, consistency=True, consistency_growing=4)
    batch = self.batch(self.LABELS, tf.constant(step, tf.int64))
    losses = objective(self.classifier, batch, self.adversarial).losses
    expected = [self.expected(objective, i, grown) for i in range(6)]
    self.assertAllClose(losses, expected, rtol=1e-5, atol=1e-6)

  @parameterized.product(
    pseudo_labels=[True, False], consistency=[True, False], growing=[0, 4]
  )
  def test_the_attacker_climbs_the_adversarial_part(
    self, pseudo_labels, consistency, growing
  ):
    objective = SemiSupervised(
      0.0, 1.0, pseudo_labels, consistency, consistency_growing=growing
    )
    batch = self.batch(self.LABELS)
    adversarial = tf.constant(self.adversarial)
    targets = objective.attack_targets(self.classifier, batch)
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(adversarial)
      inner = objective.attack_loss(self.classifier(adversarial), targets)
      outer = objective(self.classifier, batch, adversarial).losses
    inner, outer = (tape.gradient(loss, adversarial) for loss in (inner, outer))
    self.assertAllClose(inner, outer, rtol=1e-5, atol=1e-6)
    self.assertNotAllClose(inner[0], tf.zeros_like(inner[0]))

  @parameterized.product(pseudo_labels=[True, False], consistency=[True, False])
  def test_the_model_descends_the_loss(self, pseudo_labels, consistency):
    objective = SemiSupervised(0.5, 0.3, pseudo_labels, consistency)
    batch, start = self.batch(self.LABELS), self.kernel
    kernel = tf.Variable(start)

    def classifier(images, training):
      return tf.reshape(images, [-1, 12]) @ kernel

    with tf.GradientTape() as tape:
      losses = objective(classifier, batch, self.adversarial).losses
    gradient = tape.gradient(losses, kernel)
    direction = np.random.default_rng(1).normal(size=start.shape)
    # The targets of consistency stand still.
    predictions = softmax(self.logits(self.images))

    def total(h):
      self.kernel = start + h * direction
      clean, moved = self.logits(self.images), self.logits(self.adversarial)
      rows = self.rows * (1.0 if pseudo_labels else self.IS_LABELED[:, None])
      losses = 0.5 * numpy_cross_entropy(clean, rows)
      losses += numpy_cross_entropy(moved, rows)
      if consistency:
        unlabeled = 1 - self.IS_LABELED[:, None]
        losses += numpy_cross_entropy(moved, unlabeled * predictions)
      return np.sum(np.where(self.IS_LABELED > 0, 1.0, 0.3) * losses)

    slope = (total(1e-5) - total(-1e-5)) / 2e-5
    self.assertAllClose(np.sum(gradient * direction), slope, rtol=1e-4)

  def test_no_gradient_flows_through_the_consistency_target(self):
    objective = SemiSupervised(0.0, 1.0, pseudo_labels=False, consistency=True)
    images = tf.constant(self.images)
    with tf.GradientTape() as tape:
      tape.watch(images)
      batch = self.batch(self.LABELS)._replace(images=images)
      losses = objective(self.classifier, batch, self.adversarial).losses[4:]
    self.assertAllEqual(tape.gradient(losses, images), tf.zeros_like(images))

  def test_a_labeled_batch_trains_as_adversarial_training(self):
    batch = self.batch(np.abs(self.LABELS))._replace(is_labeled=tf.ones(6))
    mine, theirs = (
      objective(self.classifier, batch, self.adversarial).losses
      for objective in (SemiSupervised(0.7), AdversarialTraining(0.7))
    )
    self.assertAllClose(mine, theirs)
