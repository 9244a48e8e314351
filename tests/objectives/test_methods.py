"""Objectives from the literature against NumPy, on a network of two layers."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from two_layers import (
  SHAPE,
  SIZE,
  Network,
  Setting,
  cross_entropy,
  gradient,
  kl,
  log_softmax,
  logits_of,
)

from dat_tf.base import hashing
from dat_tf.objectives import (
  MART,
  TRADES,
  AdversarialLogitPairing,
  CleanLogitPairing,
  CleanTraining,
)


class PairsTest(Setting, parameterized.TestCase):
  """Objectives that compare predictions on clean and adversarial images."""

  def test_clean_training(self):
    network, evaluated = self.check(
      CleanTraining(), lambda w, x, moved, rows: cross_entropy(w, x, rows)
    )
    self.assertEqual(network.calls, [(SIZE, True), (SIZE, False)])
    moved = self.adversarial.astype("f8")
    self.assertAllClose(
      evaluated.adversarial_logits, logits_of(self.weights, moved), rtol=1e-4
    )

  def test_without_an_attack_nothing_is_computed_twice(self):
    network, batch = Network(self.weights), self.batch(self.labels)
    for objective in (CleanTraining(), CleanLogitPairing()):
      network.calls.clear()
      objective(network, batch, batch.images)
      self.assertEqual(network.calls, [(SIZE, True)])

  @parameterized.parameters(False, True)
  def test_trades(self, soft):
    network, _ = self.check(
      TRADES(beta=3.0),
      lambda w, x, moved, rows: cross_entropy(w, x, rows) + 3 * kl(w, x, moved),
      self.soft_rows() if soft else None,
    )
    self.assertEqual(network.calls, [(2 * SIZE, True)])

  def test_the_attacker_of_trades_climbs_the_divergence(self):
    network, batch = Network(self.weights), self.batch(self.labels)
    moved = tf.constant(self.adversarial)
    objective = TRADES()
    targets = objective.attack_targets(network, batch)
    with tf.GradientTape() as tape:
      tape.watch(moved)
      gain = objective.attack_loss(network(moved), targets)
    slope = tape.gradient(gain, moved).numpy().reshape(SIZE, -1)
    # grad of KL(p || q) by x' is grad of the cross-entropy to p.
    x = self.images.astype("f8")
    rows = np.exp(log_softmax(logits_of(self.weights, x)))
    expected = gradient(self.weights, self.adversarial.astype("f8"), rows)
    self.assertAllClose(slope, expected, rtol=1e-4, atol=1e-6)
    # At delta = 0 there is nothing to climb.
    at_zero = gradient(self.weights, x, rows)
    self.assertAllClose(at_zero, np.zeros_like(at_zero), atol=1e-12)

  @parameterized.parameters(False, True)
  def test_mart(self, soft):
    def expected(w, x, moved, rows):
      clean, other = (np.exp(log_softmax(logits_of(w, i))) for i in (x, moved))
      y = rows.argmax(axis=1)
      rest = other.copy()
      rest[np.arange(SIZE), y] = -1
      boosted = cross_entropy(w, moved, rows) - np.log(1.0001 - rest.max(axis=1))
      return boosted + 5 * kl(w, x, moved) * (1 - (rows * clean).sum(axis=1))

    self.check(MART(), expected, self.soft_rows() if soft else None)

  def test_adversarial_logit_pairing(self):
    def expected(w, x, moved, rows):
      distance = (logits_of(w, x) - logits_of(w, moved)) ** 2
      losses = 0.3 * cross_entropy(w, x, rows) + cross_entropy(w, moved, rows)
      return losses + 0.5 * distance.mean(axis=1)

    self.check(AdversarialLogitPairing(0.5, clean_weight=0.3), expected)

  def test_clean_logit_pairing(self):
    noise = hashing.normal(self.keys, SHAPE).numpy().astype("f8")

    def expected(w, x, moved, rows):
      noisy = np.clip(x + 0.2 * noise, 0, 1)
      logits = logits_of(w, noisy)
      losses = cross_entropy(w, noisy, rows)
      # The pairs of the paper: (2 / m) sum over the first half of the batch.
      for i in range(SIZE // 2):
        distance = ((logits[i] - logits[i + SIZE // 2]) ** 2).mean()
        losses[[i, i + SIZE // 2]] += 0.7 * distance
      return losses

    self.check(CleanLogitPairing(0.7, deviation=0.2), expected)

  def test_padding_is_nobodys_partner(self):
    network = Network(self.weights)
    weights = np.array([1, 1, 1, 1, 1, 0])
    with_pairs, without = (
      CleanLogitPairing(w)(
        network, self.batch(self.labels, weights), tf.constant(self.adversarial)
      ).losses
      for w in (1.0, 0.0)
    )
    is_paired = (with_pairs - without).numpy() > 0
    self.assertAllEqual(is_paired, [True, True, False, True, True, True])
