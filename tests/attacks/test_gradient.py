"""Tests of FGSM and PGD against references written in NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from numpy_attacks import TanhNetwork, l1_project

from dat_tf.attacks import L1, L2, PGD, LInfinity, fgsm, from_image
from dat_tf.base import hashing

SHAPE = (4, 4, 2)


def numpy_pgd(images, start, labels, network, *, ball, step_size, steps):
  """Projected gradient ascent, written from the equations."""
  moved = start
  for _ in range(steps):
    gradient = network.gradient(moved, labels)
    if isinstance(ball, LInfinity):
      moved = moved + step_size * np.sign(gradient)
      delta = np.clip(moved - images, -ball.epsilon, ball.epsilon)
    elif isinstance(ball, L1):
      moved = np.array(
        [l1_step(*each, ball, step_size) for each in zip(images, moved, gradient)]
      )
      continue
    else:
      norms = np.sqrt((gradient**2).sum(axis=(1, 2, 3), keepdims=True))
      delta = moved + step_size * gradient / norms - images
      norms = np.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))
      delta = delta * np.minimum(1, ball.epsilon / norms)
    moved = np.clip(images + delta, 0, 1)
  return moved


def l1_step(image, moved, gradient, ball, step_size):
  """The largest entries that have a way to go, each by as much."""
  image, moved, gradient = image.ravel(), moved.ravel(), gradient.ravel()
  room = np.where(gradient > 0, 1 - moved, moved) > 1e-5
  largest = np.argsort(-np.abs(gradient) * room)[: int(ball.density * image.size)]
  direction = np.zeros(image.size)
  direction[largest] = np.sign(gradient[largest]) / len(largest)
  return l1_project(image, moved + step_size * direction, ball.epsilon).reshape(SHAPE)


class GradientAttackTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.classifier = TanhNetwork(rng, np.prod(SHAPE), 3)
    # Some pixels lie on the ends of their range.
    self.images = np.clip(rng.uniform(-0.2, 1.2, size=(6, *SHAPE)), 0, 1).astype("f4")
    self.labels = rng.integers(0, 3, size=6)
    self.keys = hashing.stream_keys(0, 0, tf.range(6))

  def attacked(self, attack):
    run = tf.function(lambda x: attack(self.classifier, x, self.labels, self.keys))
    return run(tf.constant(self.images)).numpy()

  @parameterized.parameters(
    (LInfinity(0.1), 0.03, 1),
    (LInfinity(0.1), 0.03, 7),
    (L2(0.5), 0.2, 1),
    (L2(0.5), 0.2, 7),
    (L1(3.0, density=0.1), 1.0, 1),
    (L1(3.0, density=0.1), 1.0, 7),
  )
  def test_pgd_is_that_of_numpy(self, ball, step_size, steps):
    start = ball.random_start(self.keys, tf.constant(self.images)).numpy()
    expected = numpy_pgd(
      self.images.astype("f8"),
      start.astype("f8"),
      self.labels,
      self.classifier,
      ball=ball,
      step_size=step_size,
      steps=steps,
    )
    self.assertAllClose(
      self.attacked(PGD(ball, step_size, steps)), expected, rtol=0, atol=2e-6
    )

  def test_pgd_without_random_start(self):
    images = self.images.astype("f8")
    expected = numpy_pgd(
      images,
      images,
      self.labels,
      self.classifier,
      ball=L2(0.5),
      step_size=0.2,
      steps=3,
    )
    attack = PGD(L2(0.5), 0.2, 3, from_image)
    self.assertAllClose(self.attacked(attack), expected, rtol=0, atol=2e-6)

  def test_fgsm_is_one_step_of_five_quarters_epsilon(self):
    ball = LInfinity(0.1)
    start = ball.random_start(self.keys, tf.constant(self.images)).numpy()
    expected = numpy_pgd(
      self.images.astype("f8"),
      start.astype("f8"),
      self.labels,
      self.classifier,
      ball=ball,
      step_size=0.125,
      steps=1,
    )
    self.assertAllClose(self.attacked(fgsm(ball)), expected, rtol=0, atol=2e-6)

  @parameterized.parameters(LInfinity(0.1), LInfinity(1.0), L2(0.05), L2(3.0))
  def test_every_perturbation_is_in_the_ball_and_the_pixel_range(self, ball):
    for attack in (fgsm(ball), PGD(ball, 0.7 * ball.epsilon, 5)):
      adversarial = self.attacked(attack)
      delta = (adversarial.astype("f8") - self.images).reshape(len(self.images), -1)
      norms = (
        np.abs(delta).max(axis=1)
        if isinstance(ball, LInfinity)
        else np.sqrt((delta**2).sum(axis=1))
      )
      self.assertAllLessEqual(norms, ball.epsilon + 1e-6)
      self.assertAllInRange(adversarial, 0.0, 1.0)
      # The attack uses the room that it has.
      self.assertGreater(norms.max(), 0.9 * min(ball.epsilon, 1.0))

  def test_an_attack_that_leaves_the_ball_is_caught(self):

    class Leaky(LInfinity):
      def project(self, images, moved):
        return moved

    with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "perturbation of norm"):
      self.attacked(PGD(Leaky(0.1), 0.1, 3))

  def test_without_a_gradient_it_goes_at_random_from_the_image_only(self):
    images, flat = tf.constant(self.images), lambda x: 0.0 * self.classifier(x)
    for ball in (LInfinity(0.1), L2(0.5)):
      attack = PGD(ball, 0.1, 2)
      moved = attack(flat, images, self.labels, self.keys)
      self.assertAllEqual(moved, ball.random_start(self.keys, images))
      attack = PGD(ball, 0.1, 2, from_image)
      moved = attack(flat, images, self.labels, self.keys)
      self.assertAllGreater(ball.norm(moved - images), 0.02)
      # An example's direction is its own, and where there is a gradient none is taken.
      part = attack(flat, images[4:], self.labels[4:], self.keys[4:])
      self.assertAllEqual(moved[4:], part)
      first = tf.range(len(images))[:, None] == 0

      def half_flat(x, first=first):
        return tf.where(first, 0.0, 1.0) * self.classifier(x)

      moved = attack(half_flat, images, self.labels, self.keys)
      rest = attack(self.classifier, images[1:], self.labels[1:], self.keys[1:])
      self.assertAllClose(moved[1:], rest, atol=1e-6)
      self.assertGreater(ball.norm(moved - images)[0], 0.02)

  def test_the_random_start_is_the_examples_own(self):
    images = tf.constant(self.images)
    for ball in (LInfinity(0.1), L2(0.5)):
      whole = ball.random_start(self.keys, images)
      part = ball.random_start(self.keys[4:], images[4:])
      self.assertAllEqual(whole[4:], part)
      other_epoch = hashing.stream_keys(0, 1, tf.range(6))
      self.assertNotAllClose(whole, ball.random_start(other_epoch, images))

  def test_the_l2_start_is_uniform_in_the_ball(self):
    keys = hashing.stream_keys(3, tf.range(20_000))
    grey = tf.fill([20_000, 1, 2, 1], 0.5)
    delta = (L2(0.4).random_start(keys, grey) - grey).numpy().reshape(-1, 2) / 0.4
    # In two dimensions the squared radius is uniform, and so is the angle.
    for sample in ((delta**2).sum(axis=1), np.arctan2(*delta.T) / (2 * np.pi) + 0.5):
      counts = np.histogram(sample, bins=20, range=(0, 1))[0]
      self.assertAllInRange(counts, 1000 - 5 * 32, 1000 + 5 * 32)
