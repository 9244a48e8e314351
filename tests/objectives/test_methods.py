"""Objectives from the literature against NumPy, on a network of two layers.

The loss is compared with the published equation in float64, and its gradient by the
weights with differences of that equation: a term through which no gradient flows, or
one through which it should not, would be seen.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.attacks import LInfinity
from dat_tf.base import hashing
from dat_tf.objectives import (
  MART,
  TRADES,
  AdversarialLogitPairing,
  AdversarialTraining,
  AttributionNorm,
  Batch,
  CleanLogitPairing,
  CleanTraining,
  Curvature,
  GradientAlignment,
  InputGradient,
  LocalLinearity,
  Regularized,
  SemiSupervised,
  WeightPerturbation,
)

SHAPE, SIZE, CLASSES = (2, 2, 3), 6, 4


class Network:
  """tanh(x A) B, in TensorFlow; remembers how it was called."""

  def __init__(self, weights):
    self.trainable_variables = [tf.Variable(w, dtype=tf.float32) for w in weights]
    self.calls = []

  def __call__(self, images, *, training=False):
    self.calls.append((int(images.shape[0]), training))
    first, second = self.trainable_variables
    return tf.tanh(tf.reshape(images, [-1, np.prod(SHAPE)]) @ first) @ second


def logits_of(weights, images):
  return np.tanh(images.reshape(len(images), -1) @ weights[0]) @ weights[1]


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def cross_entropy(weights, images, rows):
  return -(rows * log_softmax(logits_of(weights, images))).sum(axis=1)


def kl(weights, images, others):
  log_p, log_q = (log_softmax(logits_of(weights, x)) for x in (images, others))
  return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def gradient(weights, images, rows):
  """Of each example's cross-entropy, flat: [B, D]."""
  hidden = np.tanh(images.reshape(len(images), -1) @ weights[0])
  logits = hidden @ weights[1]
  error = np.exp(log_softmax(logits)) * rows.sum(axis=1, keepdims=True) - rows
  return (error @ weights[1].T * (1 - hidden**2)) @ weights[0].T


def dot(x, y):
  return (x.reshape(len(x), -1) * y.reshape(len(y), -1)).sum(axis=1)


class Setting(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.weights = [rng.normal(size=(12, 7)), rng.normal(size=(7, CLASSES))]
    self.images = rng.uniform(0.2, 0.8, size=(SIZE, *SHAPE)).astype("f4")
    noise = rng.uniform(-0.15, 0.15, size=(SIZE, *SHAPE))
    self.adversarial = (self.images + noise).astype("f4")
    self.labels = rng.integers(0, CLASSES, size=SIZE)
    self.keys = hashing.stream_keys(5, tf.range(SIZE))
    self.direction = [rng.normal(size=w.shape) for w in self.weights]

  def batch(self, labels, weights=None):
    ones = tf.ones(SIZE)
    return Batch(
      tf.constant(self.images),
      tf.constant(labels),
      ones if weights is None else tf.constant(weights, tf.float32),
      self.keys,
      ones,
    )

  def check(self, objective, expected, labels=None):
    """`expected`: weights, x, x', rows (all float64) -> losses."""
    rows = np.eye(CLASSES)[self.labels] if labels is None else labels
    labels = self.labels if labels is None else labels.astype("f4")
    network = Network(self.weights)
    with tf.GradientTape() as tape:
      evaluated = objective(network, self.batch(labels), tf.constant(self.adversarial))
      total = tf.reduce_sum(evaluated.losses)
    slope = sum(
      (g.numpy().astype("f8") * d).sum()
      for g, d in zip(tape.gradient(total, network.trainable_variables), self.direction)
    )
    x, moved = self.images.astype("f8"), self.adversarial.astype("f8")
    values = expected(self.weights, x, moved, rows)
    self.assertAllClose(evaluated.losses, values, rtol=1e-5, atol=1e-5)
    h = 1e-6
    ahead, behind = (
      expected(
        [w + s * h * d for w, d in zip(self.weights, self.direction)], x, moved, rows
      ).sum()
      for s in (1, -1)
    )
    self.assertAllClose(slope, (ahead - behind) / (2 * h), rtol=1e-4)
    return network, evaluated

  def soft_rows(self):
    return 0.7 * np.eye(CLASSES)[self.labels] + 0.3 / CLASSES


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
