"""Inner maximisers of training against NumPy, and the passes that they cost."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf import hashing
from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import L2, PGD, LInfinity, fgsm
from dat_tf.attacks.dynamic import Curriculum, DynamicPGD, WarmStart
from dat_tf.attacks.interleaved import YOPO, Free, replayed, split
from dat_tf.attacks.maximizers import (
  NFGSM,
  WRM,
  GainAscent,
  MomentumPGD,
)
from dat_tf.errors import UserError
from dat_tf.models import make_model
from dat_tf.objectives import (
  TRADES,
  AdversarialTraining,
  Batch,
  WeightPerturbation,
  attribution_norm,
  linearity_violation,
)

SHAPE, SIZE, CLASSES = (3, 3, 2), 5, 4
SGD = tf.keras.optimizers.legacy.SGD


class Tanh:
  """tanh(x A) B in NumPy, and its input gradients."""

  def __init__(self, weights):
    self.first, self.second = weights

  def log_p(self, x):
    logits = np.tanh(x.reshape(len(x), -1) @ self.first) @ self.second
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

  def losses(self, x, labels):
    return -self.log_p(x)[np.arange(len(x)), labels]

  def gradient(self, x, labels):
    hidden = np.tanh(x.reshape(len(x), -1) @ self.first)
    error = np.exp(self.log_p(x)) - np.eye(CLASSES)[labels]
    flat = (error @ self.second.T * (1 - hidden**2)) @ self.first.T
    return flat.reshape(x.shape)


def length(x):
  return np.sqrt((x**2).sum(axis=(1, 2, 3), keepdims=True))


def steepest(ball, g):
  return np.sign(g) if isinstance(ball, LInfinity) else g / length(g)


def project(ball, x, moved):
  if isinstance(ball, LInfinity):
    delta = np.clip(moved - x, -ball.epsilon, ball.epsilon)
  else:
    delta = moved - x
    delta = delta * np.minimum(1, ball.epsilon / np.maximum(length(delta), 1e-12))
  return np.clip(x + delta, 0, 1)


def numeric_gradient(function, x, h=1e-6):
  """Of each example's own value; x [B, ...]."""
  result = np.zeros_like(x)
  for index in np.ndindex(x.shape[1:]):
    ahead, behind = x.copy(), x.copy()
    ahead[(slice(None), *index)] += h
    behind[(slice(None), *index)] -= h
    result[(slice(None), *index)] = (function(ahead) - function(behind)) / (2 * h)
  return result


class MaximizersTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.weights = [rng.normal(size=(18, 7)), rng.normal(size=(7, CLASSES))]
    self.numpy = Tanh(self.weights)
    images = np.clip(rng.uniform(-0.1, 1.1, size=(SIZE, *SHAPE)), 0, 1)
    self.images = images.astype("f4")
    self.x = self.images.astype("f8")
    self.labels = rng.integers(0, CLASSES, size=SIZE)
    self.keys = hashing.stream_keys(3, tf.range(SIZE))

  def classifier(self, images):
    first, second = (tf.constant(w, tf.float32) for w in self.weights)
    return tf.tanh(tf.reshape(images, [-1, 18]) @ first) @ second

  def attacked(self, attack, keys=None):
    run = tf.function(
      lambda x: attack(
        self.classifier, x, self.labels, self.keys if keys is None else keys
      )
    )
    return run(tf.constant(self.images)).numpy()

  def start(self, ball):
    start = ball.random_start(self.keys, tf.constant(self.images))
    return start.numpy().astype("f8")

  def batch(self, step=0, example_ids=None, weights=None):
    ones = tf.ones(SIZE)
    return Batch(
      tf.constant(self.images),
      tf.constant(self.labels),
      ones if weights is None else tf.constant(weights, tf.float32),
      self.keys,
      ones,
      tf.constant(step, tf.int64),
      None if example_ids is None else tf.constant(example_ids, tf.int64),
    )

  def test_noise_fgsm(self):
    noise = 2 * hashing.uniform(self.keys, SHAPE).numpy().astype("f8") - 1
    noisy = np.clip(self.x + 0.2 * noise, 0, 1)
    expected = noisy + 0.1 * np.sign(self.numpy.gradient(noisy, self.labels))
    result = self.attacked(NFGSM(0.1, noise=2.0))
    self.assertAllClose(result, np.clip(expected, 0, 1), rtol=0, atol=2e-6)
    # It leaves the ball of FGSM, and may.
    self.assertGreater(np.abs(result - self.images).max(), 0.2)

  @parameterized.product(ball=[LInfinity(0.1), L2(0.4)], random_start=[True, False])
  def test_momentum_pgd(self, ball, random_start):
    moved = self.start(ball) if random_start else self.x
    momentum = 0
    for _ in range(4):
      g = self.numpy.gradient(moved, self.labels)
      momentum = 0.9 * momentum + g / np.abs(g).sum(axis=(1, 2, 3), keepdims=True)
      moved = project(ball, self.x, moved + 0.05 * steepest(ball, momentum))
    attack = MomentumPGD(ball, 0.05, 4, decay=0.9, random_start=random_start)
    self.assertAllClose(self.attacked(attack), moved, rtol=0, atol=5e-6)

  def test_without_memory_momentum_pgd_is_pgd(self):
    for ball in (LInfinity(0.1), L2(0.4)):
      self.assertAllClose(
        self.attacked(MomentumPGD(ball, 0.05, 4, decay=0.0)),
        self.attacked(PGD(ball, 0.05, 4)),
        rtol=0,
        atol=1e-6,
      )

  @parameterized.parameters(LInfinity(0.1), L2(0.4))
  def test_ascent_of_the_linearity_violation(self, ball):
    clean = self.numpy.losses(self.x, self.labels)
    slope = self.numpy.gradient(self.x, self.labels)

    def gain(moved):
      change = (slope * (moved - self.x)).sum(axis=(1, 2, 3))
      return np.abs(self.numpy.losses(moved, self.labels) - clean - change)

    moved = self.start(ball)
    for _ in range(3):
      moved = project(
        ball, self.x, moved + 0.05 * steepest(ball, numeric_gradient(gain, moved))
      )
    result = self.attacked(GainAscent(linearity_violation, ball, 0.05, 3))
    self.assertAllClose(result, moved, rtol=0, atol=2e-5)

  def test_ascent_of_the_attribution_norm(self):
    ball = L2(0.4)

    def gain(moved):
      delta = moved - self.x
      mean = sum(
        self.numpy.gradient(self.x + k / 10 * delta, self.labels) for k in range(1, 11)
      )
      return np.abs(delta * mean / 10).sum(axis=(1, 2, 3))

    moved = self.start(ball)
    for _ in range(2):
      slope = numeric_gradient(gain, moved)
      moved = project(ball, self.x, moved + 0.1 * steepest(ball, slope))
    result = self.attacked(GainAscent(attribution_norm, ball, 0.1, 2))
    self.assertAllClose(result, moved, rtol=0, atol=2e-5)

  def test_penalized_ascent(self):
    gamma, moved = 0.7, self.x
    for t in range(6):
      phi = self.numpy.gradient(moved, self.labels) - 2 * gamma * (moved - self.x)
      moved = np.clip(moved + phi / (2 * gamma) / np.sqrt(t + 1), 0, 1)
    result = self.attacked(WRM(gamma, 6))
    self.assertAllClose(result, moved, rtol=0, atol=1e-5)

  def test_a_high_price_keeps_images_where_they_are(self):
    distances = [
      length(self.attacked(WRM(gamma)) - self.images).mean()
      for gamma in (1.0, 10.0, 1000.0)
    ]
    self.assertGreater(distances[0], 2 * distances[1])
    self.assertLess(distances[2], 0.01)

  @parameterized.product(
    ball=[LInfinity(0.1), L2(0.4)], step=[0, 30, 500], steps=[1, 6]
  )
  def test_examples_stop_once_they_have_converged(self, ball, step, steps):
    start = self.start(ball)
    criteria = []

    def condition(moved, g):
      # max of <z - x_k, g> over the ball: epsilon times the dual norm, less the rest.
      dual = np.abs(g).sum((1, 2, 3)) if isinstance(ball, LInfinity) else length(g)
      reached = (g * (moved - self.x)).sum(axis=(1, 2, 3))
      return ball.epsilon * dual.reshape(-1) - reached

    threshold = 2.0 * max(0, 1 - step / 100)
    moved, active, taken = start, np.ones(SIZE, bool), np.zeros(SIZE, int)
    for _ in range(steps):
      g = self.numpy.gradient(moved, self.labels)
      ahead = project(ball, self.x, moved + 0.05 * steepest(ball, g))
      moved = np.where(active[:, None, None, None], ahead, moved)
      taken += active
      criteria.append(condition(moved, self.numpy.gradient(moved, self.labels)))
      active = active & (criteria[-1] > threshold)
    attack = DynamicPGD(PGD(ball, 0.05, steps), 100, criterion=2.0)
    result = self.attacked(attack.for_batch(self.batch(step)))
    self.assertAllClose(result, moved, rtol=0, atol=1e-5)
    if step == 30 and steps == 6:  # the case says something: some stop, some go on
      self.assertBetween(taken.min(), 1, 5)
      self.assertLess(taken.min(), taken.max())

  def test_a_batch_that_has_converged_costs_no_more_steps(self):
    calls = []

    def classifier(images):
      tf.py_function(lambda: calls.append(1), [], [])
      return self.classifier(images)

    for criterion, expected in ((1e6, 2), (0.0, 9)):
      calls.clear()
      attack = DynamicPGD(PGD(LInfinity(0.1), 0.01, 9), 100, criterion)
      attack.for_batch(self.batch())(
        classifier, tf.constant(self.images), self.labels, self.keys
      )
      self.assertLen(calls, expected)  # the second finds that all have stopped

  @parameterized.parameters(
    (0, 1, 0.01), (4, 2, 0.05), (9, 4, 0.1), (19, 7, 0.2), (29, 10, 0.2), (99, 10, 0.2)
  )
  def test_a_curriculum_grows(self, step, steps, epsilon):
    # K over 30 training steps, the radius over 20.
    attack = Curriculum(PGD(LInfinity(0.2), 0.04, 10), 30, 20)
    ball = LInfinity(epsilon)
    moved = self.start(ball)
    for _ in range(steps):
      g = self.numpy.gradient(moved, self.labels)
      moved = project(ball, self.x, moved + 0.2 * epsilon * np.sign(g))
    result = self.attacked(attack.for_batch(self.batch(step)))
    self.assertAllClose(result, moved, rtol=0, atol=5e-6)

  def test_what_does_not_grow_is_full_from_the_start(self):
    full = PGD(L2(0.4), 0.1, 5)
    attack = Curriculum(full)
    for one in (attack, attack.for_batch(self.batch(0))):
      self.assertAllClose(self.attacked(one), self.attacked(full), atol=1e-6)

  def test_a_warm_start_is_where_the_example_ended(self):
    attack = WarmStart(PGD(LInfinity(0.1), 0.02, 2), SHAPE)
    ids = [7, 2**33, 2**33 + 1, 4, 5]
    first = self.attacked(attack.for_batch(self.batch(0, ids)))
    self.assertAllClose(first, self.attacked(PGD(LInfinity(0.1), 0.02, 2)), atol=1e-6)
    # The next epoch: other examples' ids are met, in another order, one of them new.
    kept = first.astype("f8") - self.x
    order = [1, 0, 2, 3, 4]
    delta = kept[order]
    unknown = self.start(LInfinity(0.1))
    images = project(LInfinity(0.1), self.x, self.x + delta)
    images[4] = unknown[4]
    moved = images
    for _ in range(2):
      g = self.numpy.gradient(moved, self.labels)
      moved = project(LInfinity(0.1), self.x, moved + 0.02 * np.sign(g))
    next_ids = [ids[i] for i in order[:4]] + [99]
    second = self.attacked(attack.for_batch(self.batch(1, next_ids)))
    # A byte a pixel: half a 127th of epsilon.
    self.assertAllClose(second, moved, rtol=0, atol=0.1 / 250)
    self.assertGreater(np.abs(second - first).max(), 0.02)

  def test_padding_is_not_kept(self):
    attack = WarmStart(PGD(LInfinity(0.1), 0.02, 1), SHAPE)
    ids, weights = [1, 2, 3, 1, 1], [1, 1, 1, 0, 0]
    first = self.attacked(attack.for_batch(self.batch(0, ids, weights)))
    start = attack._start(
      tf.constant([1], tf.int64), self.keys[:1], tf.constant(self.images[:1])
    )
    self.assertAllClose(start[0], first[0], rtol=0, atol=0.1 / 250)

  def test_a_warm_start_needs_ids(self):
    attack = WarmStart(PGD(LInfinity(0.1), 0.02, 1), SHAPE)
    with self.assertRaisesRegex(UserError, "example_id"):
      attack.for_batch(self.batch())

  @parameterized.parameters(LInfinity(0.1), LInfinity(1.0), L2(0.05), L2(3.0))
  def test_every_perturbation_is_in_the_ball_and_the_pixel_range(self, ball):
    pgd = PGD(ball, 0.7 * ball.epsilon, 4)
    for attack in (
      MomentumPGD(ball, pgd.step_size, 4),
      GainAscent(linearity_violation, ball, pgd.step_size, 4),
      DynamicPGD(pgd, 10).for_batch(self.batch(3)),
      Curriculum(pgd, 9, 0).for_batch(self.batch(4)),
      WarmStart(pgd, SHAPE).for_batch(self.batch(0, np.arange(SIZE))),
    ):
      result = self.attacked(attack)
      delta = np.abs(result.astype("f8") - self.images)
      norm = delta.max() if isinstance(ball, LInfinity) else length(delta).max()
      self.assertLessEqual(norm, ball.epsilon + 1e-6)
      self.assertAllInRange(result, 0.0, 1.0)
      self.assertGreater(norm, 0.9 * min(ball.epsilon, 1.0))
    for attack in (NFGSM(0.3), WRM(0.1)):
      self.assertAllInRange(self.attacked(attack), 0.0, 1.0)


class Counting(tf.keras.layers.Layer):
  """Passes images on, and counts how many go forward and how many back."""

  def __init__(self):
    super().__init__()
    self.forward = self.backward = 0

  def call(self, images):
    @tf.custom_gradient
    def count(x):
      self.forward += x.shape[0] or 0

      def gradient(upstream):
        self.backward += x.shape[0] or 0
        return upstream

      return tf.identity(x), gradient

    return count(images)


def network(counting=False):
  """A convolution, then a dense layer; counters before the one and the other."""
  layers = tf.keras.layers
  inputs = tf.keras.Input((4, 4, 1))
  x = first = Counting() if counting else layers.Activation("linear")
  x = layers.Conv2D(3, 3, padding="same", name="stem")(first(inputs))
  rest = Counting() if counting else layers.Activation("linear")
  x = layers.Flatten()(layers.Activation("tanh")(rest(x)))
  return tf.keras.Model(inputs, layers.Dense(CLASSES)(x)), first, rest


class InterleavedTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    self.images = rng.uniform(size=(SIZE, 4, 4, 1)).astype("f4")
    self.other = rng.uniform(size=(SIZE, 4, 4, 1)).astype("f4")
    self.labels = rng.integers(0, CLASSES, size=SIZE)

  def data(self, *images, replays=1):
    elements = {
      "image": tf.constant(np.stack(images)),
      "label": tf.constant(np.stack([self.labels] * len(images))),
      "weight": tf.ones([len(images), SIZE]),
      "example_id": tf.reshape(
        tf.range(len(images) * SIZE, dtype=tf.int64), [-1, SIZE]
      ),
      "epoch": tf.zeros([len(images), SIZE], tf.int64),
    }
    return replayed(tf.data.Dataset.from_tensor_slices(elements), replays)

  def gradients(self, classifier, clean, moved, clean_weight):
    """Of the mean loss, by the weights and by the moved images; loss of each image."""
    moved = tf.constant(moved, tf.float32)
    with tf.GradientTape() as tape:
      tape.watch(moved)
      losses = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(self.labels, classifier(x))
        for x in (tf.constant(clean), moved)
      ]
      loss = tf.reduce_mean(clean_weight * losses[0] + losses[1])
    *weights, slope = tape.gradient(loss, [*classifier.trainable_variables, moved])
    return weights, slope.numpy(), float(loss)

  @parameterized.product(ball=[LInfinity(0.3), L2(1.5)], clean_weight=[0.0, 1.0])
  def test_free_training(self, ball, clean_weight):
    classifier, _, _ = network()
    reference, _, _ = network()
    reference.set_weights(classifier.get_weights())
    delta, losses = np.zeros_like(self.images, "f8"), []
    for x in (self.images, self.images, self.other, self.other):
      moved = project(ball, x.astype("f8"), x + delta)
      weights, slope, loss = self.gradients(reference, x, moved, clean_weight)
      for variable, g in zip(reference.trainable_variables, weights):
        variable.assign_sub(g)
      step = 0.4 * ball.epsilon * steepest(ball, slope.astype("f8"))
      delta = project(ball, x.astype("f8"), moved + step) - x
      losses.append(loss)
    model = AdversarialModel(
      classifier,
      Free(ball, (SIZE, 4, 4, 1), step_size=0.4 * ball.epsilon),
      AdversarialTraining(clean_weight),
      evaluation_attack=fgsm(ball),
    )
    model.compile(optimizer=SGD(1.0))
    data = self.data(self.images, self.other, replays=2)
    logs = model.fit(data, verbose=0).history
    for mine, theirs in zip(classifier.get_weights(), reference.get_weights()):
      self.assertAllClose(mine, theirs, rtol=0, atol=1e-5)
    self.assertAllClose(logs["loss"], [np.mean(losses)], rtol=1e-5)

  def test_the_step_of_free_training_is_epsilon_unless_given(self):
    free = Free(LInfinity(0.1), (SIZE, 4, 4, 1))
    self.assertEqual(free._step_size, 0.1)

  @parameterized.product(ball=[LInfinity(0.3), L2(1.5)], clean_weight=[0.0, 1.0])
  def test_yopo(self, ball, clean_weight):
    classifier, _, _ = network()
    first, _ = split(classifier)
    keys = hashing.stream_keys(0, 0, tf.range(SIZE))
    start = ball.random_start(keys, tf.constant(self.images)).numpy()
    sums, losses, moved = None, [], start.astype("f8")
    for _ in range(3):
      weights, _, loss = self.gradients(classifier, self.images, moved, clean_weight)
      sums = weights if sums is None else [a + b for a, b in zip(sums, weights)]
      losses.append(loss)
      # p: by differences of the loss of what follows the first layer.
      kernel, bias = (w.astype("f8") for w in classifier.get_weights()[:2])
      dense, offset = (w.astype("f8") for w in classifier.get_weights()[2:])

      def features(x, kernel=kernel, bias=bias):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        parts = [
          x[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3)
        ]
        return sum(parts) + bias

      def rest(z, dense=dense, offset=offset):
        logits = np.tanh(z).reshape(len(z), -1) @ dense + offset
        log_sum = np.log(np.exp(logits).sum(axis=1))
        return log_sum - logits[np.arange(len(z)), self.labels]

      p = numeric_gradient(rest, features(moved))
      for _ in range(4):
        hamiltonian = lambda x, p=p: (p * features(x)).sum(axis=(1, 2, 3))  # noqa: E731
        slope = numeric_gradient(hamiltonian, moved)
        moved = project(
          ball,
          self.images.astype("f8"),
          moved + 0.3 * ball.epsilon * steepest(ball, slope),
        )
    expected = [w - g.numpy() / 3 for w, g in zip(classifier.get_weights(), sums)]
    model = AdversarialModel(
      classifier,
      YOPO(classifier, ball, 0.3 * ball.epsilon, passes=3, inner_steps=4),
      AdversarialTraining(clean_weight),
      evaluation_attack=fgsm(ball),
    )
    model.compile(optimizer=SGD(1.0))
    logs = model.fit(self.data(self.images), verbose=0).history
    for mine, theirs in zip(classifier.get_weights(), expected):
      self.assertAllClose(mine, theirs, rtol=0, atol=1e-5)
    self.assertAllClose(logs["loss"], [np.mean(losses)], rtol=1e-5)

  @parameterized.parameters(
    # Through all layers: the attack's images, and the clean and adversarial ones that
    # train. Through the first layer only: those, and YOPO's own.
    ("fgsm", 1 + 2, 1 + 2),
    ("pgd-10", 10 + 2, 10 + 2),
    ("free", 2, 2),
    ("yopo-5-3", 5 * 2, 5 * 2 + 5 * 3),
  )
  def test_the_passes_are_those_of_the_papers(self, name, whole, through_first):
    ball = LInfinity(0.1)
    classifier, first, rest = network(counting=True)
    attack = {
      "fgsm": fgsm(ball),
      "pgd-10": PGD(ball, 0.02, 10),
      "free": Free(ball, (SIZE, 4, 4, 1)),
      "yopo-5-3": YOPO(classifier, ball, 0.02),
    }[name]
    model = AdversarialModel(classifier, attack, evaluation_attack=fgsm(ball))
    model.compile(optimizer=SGD(0.1), run_eagerly=True)
    first.forward = rest.forward = rest.backward = 0  # those of building
    model.fit(self.data(self.images), verbose=0)
    self.assertEqual(rest.forward, whole * SIZE)
    self.assertEqual(rest.backward, whole * SIZE)
    self.assertEqual(first.forward, through_first * SIZE)

  def test_yopo_refuses_what_it_cannot_split(self):
    layers = tf.keras.layers
    inputs = tf.keras.Input((4, 4, 1))
    both = layers.Concatenate()([layers.Conv2D(2, 3, padding="same")(inputs), inputs])
    passed_by = tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(both)))
    nested = tf.keras.Model(inputs, network()[0](inputs))
    without = tf.keras.Model(inputs, layers.Flatten()(inputs))
    for classifier in (passed_by, nested, without):
      with self.assertRaisesRegex(UserError, "YOPO cannot split.*choose"):
        YOPO(classifier, LInfinity(0.1), 0.02)

  def test_own_networks_can_be_split(self):
    images = np.random.default_rng(0).random((2, 8, 8, 1), "f4")
    for name in ("small_cnn", "preact_resnet18"):
      classifier = make_model(name, (8, 8, 1), 3)
      first, rest = split(classifier)
      self.assertAllClose(rest(first(images)), classifier(images))
      self.assertLen(first.trainable_weights, 1)

  def test_interleaved_objectives(self):
    ball = LInfinity(0.1)
    for objective in (TRADES(), WeightPerturbation(AdversarialTraining(0.0))):
      classifier, _, _ = network()
      for attack in (Free(ball, (SIZE, 4, 4, 1)), YOPO(classifier, ball, 0.02, 2, 2)):
        model = AdversarialModel(
          classifier, attack, objective, evaluation_attack=fgsm(ball)
        )
        model.compile(optimizer=SGD(0.1))
        before = classifier.get_weights()
        logs = model.fit(self.data(self.images, self.other), verbose=0).history
        self.assertAllInRange(logs["loss"], 0.1, 10)
        self.assertNotAllClose(before[0], classifier.get_weights()[0])

  def test_what_only_trains_needs_another_attack_to_evaluate_with(self):
    free = Free(LInfinity(0.1), (SIZE, 4, 4, 1))
    with self.assertRaisesRegex(UserError, "Free only trains"):
      AdversarialModel(network()[0], free)
    with self.assertRaisesRegex(UserError, "in parts"):
      AdversarialModel(
        network()[0], free, evaluation_attack=fgsm(LInfinity(0.1)), accumulation=2
      )


class TrainStepTest(tf.test.TestCase, parameterized.TestCase):
  """What the training step does with maximisers that change, and with parts."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.images = rng.uniform(size=(12, 4, 4, 1)).astype("f4")
    self.labels = rng.integers(0, CLASSES, size=12)

  def train(self, attack, epochs=3, rate=0.1, weights=None, size_known=True, **kwargs):
    tf.keras.utils.set_random_seed(0)
    classifier, _, _ = network()
    model = AdversarialModel(classifier, attack, **kwargs)
    model.compile(optimizer=SGD(rate))
    elements = {
      "image": self.images,
      "label": self.labels,
      "weight": np.ones(12, "f4") if weights is None else weights,
      "example_id": np.arange(12),
      "epoch": np.zeros(12, "i8"),
    }
    data = tf.data.Dataset.from_tensor_slices(elements).batch(
      12, drop_remainder=size_known
    )
    logs = model.fit(data, epochs=epochs, verbose=0).history
    return classifier.get_weights(), logs

  def test_the_maximiser_is_that_of_the_step(self):
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Spy(PGD):
      def for_batch(self, batch):
        tf.py_function(
          lambda *x: seen.append([int(x[0]), x[1].numpy().tolist()]),
          [batch.step, batch.example_ids],
          [],
        )
        return PGD(self.ball, self.step_size, self.steps)

    spied, _ = self.train(Spy(LInfinity(0.1), 0.05, 2))
    plain, _ = self.train(PGD(LInfinity(0.1), 0.05, 2))
    self.assertEqual(seen, [[step, list(range(12))] for step in range(3)])
    for a, b in zip(spied, plain):
      self.assertAllEqual(a, b)

  @parameterized.parameters(True, False)
  def test_parts_add_up_to_the_whole(self, size_known):
    weights = np.array([1, 1, 0.5, 1, 1, 2, 1, 1, 1, 1, 0, 0], "f4")
    attack = PGD(L2(0.4), 0.1, 2)
    whole, whole_logs = self.train(attack, weights=weights)
    for parts in (3, 12):
      cut, logs = self.train(
        attack, weights=weights, size_known=size_known, accumulation=parts
      )
      for a, b in zip(cut, whole):
        self.assertAllClose(a, b, rtol=0, atol=1e-6)
      for name in ("loss", "robust_accuracy", "gradient_norm"):
        self.assertAllClose(logs[name], whole_logs[name], rtol=1e-5)
    if size_known:
      with self.assertRaisesRegex(UserError, "12 images .* 5 equal parts"):
        self.train(attack, accumulation=5)

  @parameterized.parameters(True, False)
  def test_a_clipped_gradient_is_as_long_as_allowed(self, size_known):
    free, logs = self.train(None, epochs=1)
    norm = logs["gradient_norm"][0]
    self.assertGreater(norm, 0.2)
    start, _ = self.train(None, epochs=1, rate=0.0)
    clipped, logs = self.train(
      None, epochs=1, size_known=size_known, clip_norm=0.5 * norm
    )
    self.assertAllClose(logs["gradient_norm"], [0.5 * norm], rtol=1e-5)
    for a, b, c in zip(start, free, clipped):
      self.assertAllClose(c - a, 0.5 * (b - a), rtol=0, atol=1e-6)
    unclipped, _ = self.train(None, epochs=1, clip_norm=2 * norm)
    for a, b in zip(free, unclipped):
      self.assertAllClose(a, b, rtol=0, atol=1e-7)

  def test_batches_are_prepared_before_the_attack(self):
    darker = lambda batch: batch._replace(images=0.5 * batch.images)  # noqa: E731
    prepared, _ = self.train(PGD(LInfinity(0.1), 0.05, 2), prepare=darker)
    self.images = 0.5 * self.images
    expected, _ = self.train(PGD(LInfinity(0.1), 0.05, 2))
    for a, b in zip(prepared, expected):
      self.assertAllClose(a, b, rtol=0, atol=1e-6)
