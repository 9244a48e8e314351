"""Penalties against NumPy, on a network of two layers."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from two_layers import (
  CLASSES,
  SHAPE,
  SIZE,
  Network,
  Setting,
  cross_entropy,
  dot,
  gradient,
  log_softmax,
)

from dat_tf.attacks import LInfinity
from dat_tf.base import hashing
from dat_tf.objectives import (
  TRADES,
  AdversarialTraining,
  AttributionNorm,
  CleanTraining,
  Curvature,
  GradientAlignment,
  InputGradient,
  LocalLinearity,
  Regularized,
  WeightPerturbation,
)


class PenaltiesTest(Setting, parameterized.TestCase):
  def check_penalty(self, penalty, expected, *, training=True):
    """`expected`: weights, x, x', rows -> penalties."""
    network, _ = self.check(
      Regularized(AdversarialTraining(0.0), penalty, training),
      lambda w, x, moved, rows: (
        cross_entropy(w, moved, rows) + expected(w, x, moved, rows)
      ),
    )
    # Of the rest only what is shown of the clean images, without a part in the loss, is
    # inferred.
    (_, *of_penalty), others = (
      [call for call in network.calls if call[1] == mode]
      for mode in (training, not training)
    )
    self.assertNotEmpty(of_penalty)
    self.assertEqual(others, [(SIZE, not training)])

  def test_input_gradient(self):
    def expected(w, x, moved, rows):
      return 2.5 * (gradient(w, x, rows) ** 2).sum(axis=1)

    self.check_penalty(InputGradient(2.5), expected)

  def test_with_batch_norm_the_gradient_is_that_of_the_whole_batch(self):
    # Keras' own layer, whose moments are functions of all images of the batch.
    network = tf.keras.Sequential(
      [
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(7, use_bias=False),
        tf.keras.layers.BatchNormalization(center=False, scale=False),
        tf.keras.layers.Activation("tanh"),
        tf.keras.layers.Dense(CLASSES, use_bias=False),
      ]
    )
    network.build((None, *SHAPE))
    for variable, weight in zip(network.trainable_variables, self.weights):
      variable.assign(weight)
    rows = np.eye(CLASSES)[self.labels]

    def total_loss(w, x):
      h = x.reshape(len(x), -1) @ w[0]
      h = (h - h.mean(axis=0)) / np.sqrt(h.var(axis=0) + 1e-3)
      return -(rows * log_softmax(np.tanh(h) @ w[1])).sum()

    def squared_norms(w):
      x, gradient = self.images.astype("f8"), np.zeros(self.images.shape)
      for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-5
        slope = total_loss(w, x + step) - total_loss(w, x - step)
        gradient[place] = slope / 2e-5
      return dot(gradient, gradient)

    objective = Regularized(CleanTraining(), InputGradient(2.5))
    losses = []
    with tf.GradientTape(persistent=True) as tape:
      for each in (objective, CleanTraining()):
        evaluated = each(
          network, self.batch(self.labels), tf.constant(self.adversarial)
        )
        losses.append(evaluated.losses)
      penalties = losses[0] - losses[1]
    self.assertAllClose(penalties, 2.5 * squared_norms(self.weights), rtol=1e-4)
    slope = sum(
      (g.numpy().astype("f8") * d).sum()
      for g, d in zip(
        tape.gradient(penalties, network.trainable_variables), self.direction
      )
    )
    ahead, behind = (
      squared_norms([w + h * d for w, d in zip(self.weights, self.direction)]).sum()
      for h in (1e-4, -1e-4)
    )
    self.assertAllClose(slope, 2.5 * (ahead - behind) / 2e-4, rtol=1e-3)

  def test_curvature(self):
    def expected(w, x, moved, rows):
      # The direction is a constant: that of the weights as they are.
      z = np.sign(gradient(self.weights, x, rows)) / np.sqrt(12)
      ahead = gradient(w, x + 0.3 * z.reshape(x.shape), rows)
      return 4 * ((ahead - gradient(w, x, rows)) ** 2).sum(axis=1)

    self.check_penalty(Curvature(4.0, step=0.3), expected)

  def test_gradient_alignment(self):
    ball = LInfinity(0.1)
    keys = hashing.stream_keys(2, self.keys[:, 0], self.keys[:, 1])
    start = ball.random_start(keys, tf.constant(self.images)).numpy().astype("f8")
    self.assertNotAllClose(
      start, ball.random_start(self.keys, tf.constant(self.images)), atol=0.01
    )

    def expected(w, x, moved, rows):
      one, other = gradient(w, x, rows), gradient(w, start, rows)
      cosine = dot(one, other) / np.sqrt(dot(one, one) * dot(other, other))
      return 0.2 * (1 - cosine)

    for training in (False, True):
      self.check_penalty(
        GradientAlignment(ball.random_start), expected, training=training
      )

  def test_a_zero_gradient_is_aligned_with_everything(self):
    network = Network([self.weights[0], 0 * self.weights[1]])
    objective = Regularized(
      CleanTraining(), GradientAlignment(LInfinity(0.1).random_start)
    )
    with tf.GradientTape() as tape:
      evaluated = objective(
        network, self.batch(self.labels), tf.constant(self.adversarial)
      )
    self.assertAllClose(evaluated.losses, np.full(SIZE, np.log(CLASSES)))
    for slope in tape.gradient(evaluated.losses, network.trainable_variables):
      self.assertAllInRange(slope, -100, 100)  # no NaN

  def test_local_linearity(self):
    def expected(w, x, moved, rows):
      change = dot(moved - x, gradient(w, x, rows))
      rest = cross_entropy(w, moved, rows) - cross_entropy(w, x, rows) - change
      return 4 * np.abs(rest) + 3 * np.abs(change)

    self.check_penalty(LocalLinearity(), expected)

  @parameterized.parameters(1, 7)
  def test_attribution_norm(self, points):
    def expected(w, x, moved, rows):
      mean = sum(
        gradient(w, x + k / points * (moved - x), rows) for k in range(1, points + 1)
      )
      flat = (moved - x).reshape(SIZE, -1)
      return 1.5 * np.abs(flat * mean / points).sum(axis=1)

    self.check_penalty(AttributionNorm(1.5, points), expected)

  def test_attributions_add_up_to_the_loss(self):
    # Completeness of integrated gradients, for class probabilities too.
    network = Network(self.weights)
    rows = self.soft_rows()
    x, moved = self.images.astype("f8"), self.adversarial.astype("f8")
    delta = np.zeros_like(x)
    delta[:, 0, 0, 0] = (moved - x)[:, 0, 0, 0]  # one pixel: the norm is the sum
    penalty = AttributionNorm(1.0, 400)
    batch = self.batch(rows.astype("f4"))
    total = penalty(network, batch, tf.constant((x + delta).astype("f4")))
    change = cross_entropy(self.weights, x + delta, rows)
    change -= cross_entropy(self.weights, x, rows)
    self.assertAllClose(total, np.abs(change), rtol=0.01, atol=1e-4)

  def test_certificates_are_those_of_the_objective(self):
    held = tf.constant([True, False, True, True, False, True])

    class Certifying(TRADES):
      def certified(self, classifier, batch):
        return held

    network, batch = Network(self.weights), self.batch(self.labels)
    inner = Certifying()
    for outer in (Regularized(inner, InputGradient(1.0)), WeightPerturbation(inner)):
      self.assertAllEqual(outer.certified(network, batch), held)

  def test_the_attacker_is_that_of_the_objective(self):
    network, batch = Network(self.weights), self.batch(self.labels)
    inner = TRADES()
    for outer in (Regularized(inner, InputGradient(1.0)), WeightPerturbation(inner)):
      targets = outer.attack_targets(network, batch)
      self.assertAllEqual(targets, inner.attack_targets(network, batch))
      logits = network(batch.images)
      self.assertAllEqual(
        outer.attack_loss(logits, targets), inner.attack_loss(logits, targets)
      )
