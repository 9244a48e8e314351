"""Adversarial weight perturbation against NumPy, on a network of two layers."""

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
  log_softmax,
)

from dat_tf.objectives import (
  MART,
  TRADES,
  AdversarialTraining,
  CleanTraining,
  SemiSupervised,
  WeightPerturbation,
)


class WeightPerturbationTest(Setting, parameterized.TestCase):
  @parameterized.product(
    inner=[AdversarialTraining(1.0), TRADES(), MART(), SemiSupervised()],
    compiled=[True, False],
  )
  def test_loss_and_gradient_are_those_at_the_worst_weights_nearby(
    self, inner, compiled
  ):
    gamma, moved = 0.05, tf.constant(self.adversarial)
    batch = self.batch(self.labels, np.array([1, 1, 0.5, 1, 1, 0]))

    def evaluate(objective, network):
      with tf.GradientTape() as tape:
        evaluated = objective(network, batch, moved)
        loss = tf.reduce_sum(batch.weights * evaluated.losses)
      return evaluated, tape.gradient(loss, network.trainable_variables)

    # By hand: the gradient, the move, and a network with the moved weights.
    plain = Network(self.weights)
    _, gradients = evaluate(inner, plain)
    worst = [
      w + gamma * np.linalg.norm(w) / np.linalg.norm(g) * g.numpy()
      for w, g in zip(self.weights, gradients)
    ]
    expected, expected_gradients = evaluate(inner, Network(worst))

    network = Network(self.weights)
    run = lambda: evaluate(WeightPerturbation(inner, gamma), network)  # noqa: E731
    result, gradients = tf.function(run)() if compiled else run()
    self.assertAllClose(result.losses, expected.losses, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(gradients, expected_gradients):
      self.assertAllClose(mine, theirs, rtol=1e-3, atol=1e-5)
    # And the weights are as they were, to the last bit.
    for mine, theirs in zip(network.trainable_variables, plain.trainable_variables):
      self.assertAllEqual(mine, theirs)

  def test_biases_stay(self):
    rng = np.random.default_rng(1)
    inputs = tf.keras.Input(SHAPE)
    network = tf.keras.Model(
      inputs, tf.keras.layers.Dense(CLASSES)(tf.keras.layers.Flatten()(inputs))
    )
    kernel, bias = rng.normal(size=(12, CLASSES)), rng.normal(size=CLASSES)
    network.set_weights([kernel, bias])
    batch = self.batch(self.labels)
    x = self.images.reshape(SIZE, -1).astype("f8")
    rows = np.eye(CLASSES)[self.labels]
    slope = x.T @ (np.exp(log_softmax(x @ kernel + bias)) - rows)
    kernel = kernel + 0.1 * np.linalg.norm(kernel) / np.linalg.norm(slope) * slope
    expected = -(rows * log_softmax(x @ kernel + bias)).sum(axis=1)
    losses = WeightPerturbation(CleanTraining(), 0.1)(
      network, batch, batch.images
    ).losses
    self.assertAllClose(losses, expected, rtol=1e-5)
