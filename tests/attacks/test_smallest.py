"""DDN, C&W, L-BFGS, FAB and JSMA, which look for small perturbations, in NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from numpy_attacks import TanhNetwork, length

from dat_tf.attacks import L1, L2, LInfinity, iterative, jsma, penalized
from dat_tf.attacks.ddn import DDN
from dat_tf.attacks.fab import FAB
from dat_tf.attacks.jsma import JSMA
from dat_tf.attacks.penalized import CarliniWagner
from dat_tf.base import hashing

SHAPE, COUNT, CLASSES = (4, 4, 1), 6, 3


class SmallestTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(1)
    self.network = TanhNetwork(np.random.default_rng(0), np.prod(SHAPE), CLASSES)
    self.images = rng.uniform(0.1, 0.9, size=(COUNT, *SHAPE)).astype("f4")
    self.labels = self.network.logits(self.images).argmax(axis=1).astype("i4")
    self.is_label = np.eye(CLASSES)[self.labels]

  def state_after(self, attack, num_steps):
    images = tf.constant(self.images)
    examples = iterative.Examples(
      images,
      tf.constant(self.labels),
      hashing.stream_keys(0, tf.range(COUNT)),
      self.network(images),
      tf.zeros(COUNT, tf.int32),
    )

    @tf.function
    def run():
      return iterative.run(
        attack, self.network, examples, attack.start(examples), num_steps
      )

    return run()

  @parameterized.parameters(10, 41)
  def test_ddn(self, evaluations):
    attack = DDN(L2(0.01), steps=40, change=0.1, first_radius=0.5)
    state = self.state_after(attack, evaluations)
    point, images = self.images.astype("f8"), self.images.astype("f8")
    smallest, radius = np.full(COUNT, np.inf), np.full((COUNT, 1, 1, 1), 0.5)
    for k in range(evaluations):
      logits = self.network.logits(point)
      fooled = logits.argmax(axis=1) != self.labels
      norm = length(point - images)[:, 0, 0, 0]
      smallest = np.where(fooled, np.minimum(norm, smallest), smallest)
      gradient = self.network.gradient(point, self.labels)
      step = 0.01 + 0.99 * (1 + np.cos(np.pi * k / 40)) / 2
      delta = point - images + step * gradient / length(gradient)
      radius = radius * np.where(fooled, 0.9, 1.1)[:, None, None, None]
      point = np.clip(images + radius * delta / length(delta), 0, 1)
    self.assertTrue(np.isfinite(smallest).any())
    self.assertAllClose(state["norm"], smallest, rtol=1e-4)
    self.assertAllClose(state["radius"], radius[:, 0, 0, 0], rtol=1e-5)
    self.assertAllClose(state["point"], point, atol=1e-4)

  def test_carlini_and_wagners_steps(self):
    attack = CarliniWagner(L2(0.01), steps=30, weights=1, first_weight=3.0)
    state = self.state_after(attack, 30)
    images = self.images.astype("f8")
    w = np.arctanh((2 * images - 1) * 0.999999)
    mean, square, smallest = np.zeros_like(w), np.zeros_like(w), np.full(COUNT, np.inf)
    for t in range(1, 31):
      moved = (np.tanh(w) + 1) / 2
      logits = self.network.logits(moved)
      other = np.where(self.is_label > 0, -np.inf, logits).argmax(axis=1)
      by_logits = self.is_label - np.eye(CLASSES)[other]
      wins = (by_logits * logits).sum(axis=1) > 0
      norm = length(moved - images)[:, 0, 0, 0]
      smallest = np.where(wins, smallest, np.minimum(norm, smallest))
      gradient = 2 * (moved - images)
      gradient += 3.0 * self.network.pulled_back(moved, by_logits * wins[:, None])
      gradient *= (1 - np.tanh(w) ** 2) / 2
      mean = 0.9 * mean + 0.1 * gradient
      square = 0.999 * square + 0.001 * gradient**2
      w -= 0.01 * mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
    self.assertTrue(np.isfinite(smallest).any())
    self.assertAllClose(state["norm"], smallest, rtol=1e-4)
    self.assertAllClose(state["point"], w, atol=1e-4)

  def test_the_weight_is_raised_tenfold_and_then_halved_in_between(self):
    enough = np.array([0.3, 7.0, 45.0])
    state = penalized._first_weight(np.zeros((3, *SHAPE), "f4"), 0.01)
    low, high, weight = np.zeros(3), np.full(3, np.inf), np.full(3, 0.01)
    for _ in range(12):
      fooled = weight >= enough
      low, high = np.where(fooled, low, weight), np.where(fooled, weight, high)
      weight = np.where(np.isinf(high), 10 * weight, (low + np.minimum(high, 1e9)) / 2)
      state["fooled"] = tf.constant(fooled)
      state = penalized._next_weight(state, tf.constant(True))
      self.assertAllClose(state["weight"], weight, rtol=1e-5)
    self.assertAllLess((high - low) / enough, 0.1)

  @parameterized.parameters(1, 3, 5)
  def test_the_way_of_lbfgs_is_that_of_the_matrix_it_stands_for(self, known):
    rng = np.random.default_rng(0)
    size, memory = int(np.prod(SHAPE)), 5
    root = rng.normal(size=(size, size))
    hessian = root @ root.T / size + np.eye(size)
    moves = np.zeros((memory, size))
    moves[:known] = rng.normal(size=(known, size))
    changes, gradient = moves @ hessian, rng.normal(size=size)
    # The BFGS formula for the inverse, from the oldest pair to the latest.
    inverse = np.eye(size) * (moves[0] @ changes[0]) / (changes[0] @ changes[0])
    for move, change in zip(moves[:known][::-1], changes[:known][::-1]):
      rho = 1 / (move @ change)
      turn = np.eye(size) - rho * np.outer(move, change)
      inverse = turn @ inverse @ turn.T + rho * np.outer(move, move)
    way = penalized._newton_way(
      tf.constant(gradient.reshape(1, *SHAPE), tf.float32),
      tf.constant(moves.reshape(1, memory, *SHAPE), tf.float32),
      tf.constant(changes.reshape(1, memory, *SHAPE), tf.float32),
    )
    self.assertAllClose(np.ravel(way), inverse @ gradient, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(LInfinity(0.2), L2(0.8), L1(2.0))
  def test_fab_starts_anew_half_way_to_the_edge_of_the_ball(self, ball):
    attack = FAB(ball, targets=0, restarts=3)
    self.assertEqual(attack.num_rounds(10), 3)
    images = tf.fill([COUNT, *SHAPE], 0.5)
    points = []
    for number in range(3):
      examples = iterative.Examples(
        images,
        tf.constant(self.labels),
        hashing.stream_keys(number, tf.range(COUNT)),
        self.network(images),
        tf.fill([COUNT], number),
      )
      points.append(attack.start(examples)["point"].numpy())
      norms = ball.norm(points[-1] - images)
      expected = 0.5 * ball.epsilon if number else 0.0
      self.assertAllClose(norms, np.full(COUNT, expected), rtol=1e-5)
    self.assertNotAllClose(points[1], points[2])

  @parameterized.parameters(LInfinity(0.2), L2(0.8))
  def test_without_a_target_fab_goes_to_the_nearest_boundary(self, ball):
    """Its first step, from the image, where both ways are the same."""
    attack = FAB(ball, targets=0)
    state = self.state_after(attack, 1)
    order = 1 if isinstance(ball, LInfinity) else 2
    for index, (image, label) in enumerate(zip(self.images, self.labels)):
      image = image[None].astype("f8")
      logits = self.network.logits(image)[0]
      ways = []
      for other in set(range(CLASSES)) - {label}:
        by_logits = np.eye(CLASSES)[other] - np.eye(CLASSES)[label]
        slope = self.network.pulled_back(image, by_logits[None])
        size = np.linalg.norm(slope.ravel(), order)
        away = np.sign(slope) if order == 1 else slope / size
        ways.append(((logits[label] - logits[other]) / size, away))
      distance, away = min(ways, key=lambda way: way[0])
      expected = image + 1.05 * distance * away
      if not (0 < expected).all() or not (expected < 1).all():
        continue  # the box has a say
      fooled = self.network.logits(expected)[0].argmax() != label
      point = image + (0.9 if fooled else 1.0) * (expected - image)
      self.assertAllClose(state["point"][index], point[0], atol=1e-4)

  @parameterized.parameters(1, 2, 3, 12, 48, 300)
  def test_the_pair_of_jsma_is_the_best_of_all(self, size):
    rng = np.random.default_rng(size)
    up, fall = rng.normal(size=(2, 40, size)).astype("f4")
    up[1], fall[2], up[3] = -1.0, -1.0, 0.0  # no pair there
    free = rng.random((40, size)) < 0.8
    chosen = jsma._best_pair(*map(tf.constant, (up, fall, free))).numpy()
    found = 0
    for index, row in enumerate(chosen):
      sums = [(x[index][:, None] + x[index]).astype("f8") for x in (up, fall)]
      taken = (sums[0] > 0) & (sums[1] > 0) & free[index] & free[index][:, None]
      if size > 1:
        taken &= ~np.eye(size, dtype=bool)
      gains = np.where(taken, sums[0] * sums[1], 0.0)
      if not taken.any():
        self.assertFalse(row.any())
        continue
      pair = np.flatnonzero(row)
      self.assertLen(pair, min(size, 2))
      self.assertAllClose(gains[pair[0], pair[-1]], gains.max(), rtol=1e-5)
      found += 1
    self.assertGreater(found, 3)

  @parameterized.parameters(
    ((28, 28, 1), 57), ((32, 32, 3), 223), ((2, 2, 1), 1), ((1, 1, 1), 1)
  )
  def test_jsma_changes_up_to_a_share_of_the_image(self, shape, pairs):
    # ceil(0.145 H W C / 2), and a look at the last point.
    self.assertEqual(JSMA(L2(1.0)).num_steps(int(np.prod(shape))), pairs + 1)
    self.assertEqual(JSMA(L2(1.0), steps=7).num_steps(int(np.prod(shape))), 8)

  @parameterized.parameters((1, 1, 1), (1, 1, 3))
  def test_jsma_on_one_pixel(self, *shape):
    def classifier(images):
      light = tf.reduce_mean(images, axis=[1, 2, 3])
      return tf.stack([0.7 - light, light - 0.7], axis=1)

    images, zeros = tf.fill([2, *shape], 0.5), tf.zeros(2, tf.int32)
    attack = iterative.OneShot(JSMA(L2(2.0), steps=2))
    moved = attack(classifier, images, zeros, hashing.stream_keys(0, tf.range(2)))
    self.assertAllEqual(tf.argmax(classifier(moved), axis=1), [1, 1])
