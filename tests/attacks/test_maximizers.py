"""Inner maximisers of training against NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from numpy_attacks import TanhNetwork, length, numeric_gradient, project, steepest

from dat_tf import config as config_lib
from dat_tf.attacks import L1, L2, NFGSM, PGD, WRM, LInfinity, Momentum, from_image
from dat_tf.attacks.dynamic import Curriculum, DynamicPGD, WarmStart
from dat_tf.attacks.pgd import from_random
from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.objectives import Batch, attribution_norm, linearity_violation

SHAPE, SIZE, CLASSES = (3, 3, 2), 5, 4


class MaximizersTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.classifier = TanhNetwork(rng, np.prod(SHAPE), CLASSES, hidden=7)
    images = np.clip(rng.uniform(-0.1, 1.1, size=(SIZE, *SHAPE)), 0, 1)
    self.images = images.astype("f4")
    self.x = self.images.astype("f8")
    self.labels = rng.integers(0, CLASSES, size=SIZE)
    self.keys = hashing.stream_keys(3, tf.range(SIZE))

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
    expected = noisy + 0.1 * np.sign(self.classifier.gradient(noisy, self.labels))
    result = self.attacked(NFGSM(0.1, noise=2.0))
    self.assertAllClose(result, np.clip(expected, 0, 1), rtol=0, atol=2e-6)
    # It leaves the ball of FGSM, and may.
    self.assertGreater(np.abs(result - self.images).max(), 0.2)

  @parameterized.product(ball=[LInfinity(0.1), L2(0.4)], random_start=[True, False])
  def test_momentum_pgd(self, ball, random_start):
    moved = self.start(ball) if random_start else self.x
    momentum = 0
    for _ in range(4):
      g = self.classifier.gradient(moved, self.labels)
      momentum = 0.9 * momentum + g / np.abs(g).sum(axis=(1, 2, 3), keepdims=True)
      moved = project(ball, self.x, moved + 0.05 * steepest(ball, momentum))
    start = from_random if random_start else from_image
    attack = PGD(ball, 0.05, 4, start, Momentum(0.9))
    self.assertAllClose(self.attacked(attack), moved, rtol=0, atol=5e-6)

  def test_without_memory_momentum_pgd_is_pgd(self):
    for ball in (LInfinity(0.1), L2(0.4)):
      self.assertAllClose(
        self.attacked(PGD(ball, 0.05, 4, direction=Momentum(0.0))),
        self.attacked(PGD(ball, 0.05, 4)),
        rtol=0,
        atol=1e-6,
      )

  @parameterized.parameters(LInfinity(0.1), L2(0.4))
  def test_ascent_of_the_linearity_violation(self, ball):
    clean = self.classifier.losses(self.x, self.labels)
    slope = self.classifier.gradient(self.x, self.labels)

    def gain(moved):
      change = (slope * (moved - self.x)).sum(axis=(1, 2, 3))
      return np.abs(self.classifier.losses(moved, self.labels) - clean - change)

    moved = self.start(ball)
    for _ in range(3):
      moved = project(
        ball, self.x, moved + 0.05 * steepest(ball, numeric_gradient(gain, moved))
      )
    result = self.attacked(PGD(ball, 0.05, 3, gain=linearity_violation))
    self.assertAllClose(result, moved, rtol=0, atol=2e-5)

  @parameterized.parameters(1, 3)
  def test_the_linearity_violation_is_nearly_that_of_the_authors_adam(self, channels):
    """Adam(0.1) x 10, projected, as in DeepMind's local_linearity_regularizer."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 0.5, (3, 3, channels, 12)).astype("f4")
    dense = rng.normal(0, 0.3, (6 * 6 * 12, 10)).astype("f4")

    def network(images):
      features = tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "VALID"))
      return tf.reshape(features, [-1, len(dense)]) @ dense

    images = tf.constant(rng.uniform(0, 1, (48, 8, 8, channels)), tf.float32)
    labels, keys = tf.argmax(network(images), 1), hashing.stream_keys(0, tf.range(48))
    ball = LInfinity(8 / 255)
    gain = linearity_violation(network, images, labels)
    moved = ball.random_start(keys, images)
    mean, square = tf.zeros_like(moved), tf.zeros_like(moved)
    for t in range(1, 11):
      with tf.GradientTape() as tape:
        tape.watch(moved)
        total = tf.reduce_sum(gain(moved))
      slope = tape.gradient(total, moved)
      mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
      rate = mean / (1 - 0.9**t) / (tf.sqrt(square / (1 - 0.999**t)) + 1e-8)
      delta = tf.clip_by_value(moved + 0.1 * rate - images, -8 / 255, 8 / 255)
      moved = tf.clip_by_value(images + delta, 0.0, 1.0)
    config = config_lib.parse(
      ["run", "--model_dir=m", "--train_data=a", "--test_data=b", "--objective=llr"]
      + ["--epsilon=8/255"]
    )
    attack = PGD(ball, config.step_size, config.attack_steps, gain=linearity_violation)
    found = gain(attack(network, images, labels, keys))
    share = float(tf.reduce_mean(found) / tf.reduce_mean(gain(moved)))
    self.assertGreater(share, 0.9)

  def test_ascent_of_the_attribution_norm(self):
    ball = L2(0.4)

    def gain(moved):
      delta = moved - self.x
      mean = sum(
        self.classifier.gradient(self.x + k / 10 * delta, self.labels)
        for k in range(1, 11)
      )
      return np.abs(delta * mean / 10).sum(axis=(1, 2, 3))

    moved = self.start(ball)
    for _ in range(2):
      slope = numeric_gradient(gain, moved)
      moved = project(ball, self.x, moved + 0.1 * steepest(ball, slope))
    result = self.attacked(PGD(ball, 0.1, 2, gain=attribution_norm))
    self.assertAllClose(result, moved, rtol=0, atol=2e-5)

  def test_penalized_ascent(self):
    gamma, moved = 0.7, self.x
    for t in range(6):
      phi = self.classifier.gradient(moved, self.labels) - 2 * gamma * (moved - self.x)
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
      g = self.classifier.gradient(moved, self.labels)
      ahead = project(ball, self.x, moved + 0.05 * steepest(ball, g))
      moved = np.where(active[:, None, None, None], ahead, moved)
      taken += active
      criteria.append(condition(moved, self.classifier.gradient(moved, self.labels)))
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
      g = self.classifier.gradient(moved, self.labels)
      moved = project(ball, self.x, moved + 0.2 * epsilon * np.sign(g))
    result = self.attacked(attack.for_batch(self.batch(step)))
    self.assertAllClose(result, moved, rtol=0, atol=5e-6)

  def test_what_does_not_grow_is_full_from_the_start(self):
    full = PGD(L2(0.4), 0.1, 5)
    attack = Curriculum(full)
    for one in (attack, attack.for_batch(self.batch(0))):
      self.assertAllClose(self.attacked(one), self.attacked(full), atol=1e-6)

  @parameterized.parameters(L2(3.0), L1(5.0))
  def test_what_is_kept_is_as_exact_in_every_ball(self, ball):
    attack = WarmStart(PGD(ball, 0.1 * ball.epsilon, 2), SHAPE)
    ids = np.arange(SIZE)
    ended = self.attacked(attack.for_batch(self.batch(0, ids)))
    warm = attack._start(tf.constant(ids), self.keys, tf.constant(self.images))
    largest = np.abs(ended - self.images).max(axis=(1, 2, 3), keepdims=True)
    self.assertAllLessEqual(np.abs(warm - ended) / largest, 0.5 / 127 + 1e-5)

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
      g = self.classifier.gradient(moved, self.labels)
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
      PGD(ball, pgd.step_size, 4, direction=Momentum()),
      PGD(ball, pgd.step_size, 4, gain=linearity_violation),
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
