"""Tests of the balls; of the l1 ball against a projection and counts in NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from numpy_attacks import l1_project

from dat_tf.attacks import L1, L2, NFGSM, PGD, WRM, Free, LInfinity
from dat_tf.attacks.apgd import APGD, SparseAPGD
from dat_tf.attacks.ascent import Ascent
from dat_tf.attacks.ddn import DDN
from dat_tf.attacks.square import Square
from dat_tf.base import hashing
from dat_tf.base.errors import UserError


class DivergedTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(LInfinity(0.1), L2(1.0), L1(2.0))
  def test_a_gradient_that_is_no_number_leads_nowhere(self, ball):
    # Also where the processor's maximum of a number and none is none.
    images = np.random.default_rng(0).uniform(size=(2, 4, 5, 3)).astype("f4")
    gradient = np.ones_like(images)
    gradient[0] = np.nan
    direction = ball.steepest(tf.constant(gradient)).numpy()
    self.assertAllEqual(direction[0], np.zeros((4, 5, 3)))
    self.assertGreater(direction[1].min(), 0)


class BorderTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    (lambda: LInfinity(8), r"LInfinity\(8\).*8/255\?"),
    (lambda: LInfinity(300.0), r"LInfinity\(300\): pixels lie in \[0, 1\]"),
    (lambda: LInfinity(0), "epsilon=0"),
    (lambda: L2(-1.0), "epsilon=-1"),
    (lambda: L1(float("nan")), "epsilon=nan"),
    (lambda: L1(3.0, density=1.5), "density=1.5"),
    (lambda: NFGSM(8), "8/255"),
    (lambda: PGD(L2(1.0), 0.0, 3), "step_size=0"),
    (lambda: PGD(L2(1.0), 0.1, 0), "steps=0"),
    (lambda: WRM(gamma=0.0), "gamma=0"),
    (lambda: Free(L2(1.0), (2, 4, 4, 1), step_size=-0.1), "step_size=-0.1"),
    (lambda: APGD(L2(1.0), steps=0), "steps=0"),
    (lambda: APGD(L2(1.0), restarts=0), "restarts=0"),
    (lambda: APGD(L1(1.0)), "APGD is not for L1: use SparseAPGD"),
    (lambda: SparseAPGD(L2(1.0)), "SparseAPGD is not for L2: use APGD"),
    (lambda: SparseAPGD(L1(1.0), samples=0), "samples=0"),
    (lambda: Ascent(L2(1.0), -1.0, 3), "step_size=-1"),
    (lambda: DDN(L2(1.0), steps=-2), "steps=-2"),
    (lambda: Square(L2(1.0), steps=0), "steps=0"),
  )
  def test_what_cannot_be_is_refused_where_it_is_made(self, make, message):
    with self.assertRaisesRegex(UserError, message):
      make()

  def test_a_radius_may_be_a_tensor(self):
    for ball in (LInfinity, L2, L1):
      ball(tf.constant(0.5))


class L1Test(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.rng = np.random.default_rng(0)
    shape = 8, 5, 4, 3
    # Some pixels lie on the ends of their range.
    self.images = np.clip(self.rng.uniform(-0.2, 1.2, shape), 0, 1).astype("f4")

  @parameterized.parameters(0.3, 2.0, 12.0, 100.0)
  def test_the_projection_is_that_of_numpy(self, radius):
    for scale in (0.01, 0.3, 3.0):
      moved = self.images + self.rng.normal(0, scale, self.images.shape).astype("f4")
      projected = L1(radius).project(tf.constant(self.images), tf.constant(moved))
      expected = [
        l1_project(image.ravel().astype("f8"), other.ravel(), radius)
        for image, other in zip(self.images, moved)
      ]
      expected = np.reshape(expected, projected.shape)
      self.assertAllClose(projected, expected, rtol=0, atol=2e-6)
      norms = np.abs(projected.numpy().astype("f8") - self.images).sum(axis=(1, 2, 3))
      self.assertAllLessEqual(norms, radius + 1e-6)
      self.assertAllInRange(projected, 0.0, 1.0)

  def test_each_example_has_its_own_radius(self):
    moved = tf.constant(self.images) + self.rng.normal(size=self.images.shape)
    radius = np.linspace(0.5, 4, len(self.images)).astype("f4")
    together = L1(1.0).project(tf.constant(self.images), moved, tf.constant(radius))
    for index, own in enumerate(radius):
      part = slice(index, index + 1)
      alone = L1(float(own)).project(tf.constant(self.images[part]), moved[part])
      self.assertAllClose(together[part], alone, rtol=0, atol=1e-6)

  def test_a_point_inside_stays(self):
    image = tf.constant(self.images)
    self.assertAllClose(L1(1.0).project(image, image), image, rtol=0, atol=0)

  def test_the_steepest_step_moves_the_largest_entries(self):
    gradient = self.rng.normal(size=self.images.shape).astype("f4")
    for density, count in ((0.05, 3), (0.5, 30), (1.0, 60), (0.001, 1)):
      step = L1(1.0, density).steepest(tf.constant(gradient)).numpy()
      for own, moves in zip(gradient.reshape(8, -1), step.reshape(8, -1)):
        largest = np.argsort(-np.abs(own))[:count]
        expected = np.zeros(60)
        expected[largest] = np.sign(own[largest]) / count
        self.assertAllClose(moves, expected, atol=1e-6)
    self.assertAllEqual(
      L1(1.0).steepest(tf.zeros([2, 3, 3, 1])), np.zeros([2, 3, 3, 1])
    )

  def test_the_start_is_uniform_in_the_ball(self):
    keys = hashing.stream_keys(3, tf.range(20_000))
    grey = tf.fill([20_000, 1, 2, 1], 0.5)
    delta = (L1(0.4).random_start(keys, grey) - grey).numpy().reshape(-1, 2) / 0.4
    # In two dimensions the squared norm is uniform, and so is the place on the side.
    norms = np.abs(delta).sum(axis=1)
    for sample in (norms**2, np.abs(delta[:, 0]) / norms):
      counts = np.histogram(sample, bins=20, range=(0, 1))[0]
      self.assertAllInRange(counts, 1000 - 5 * 32, 1000 + 5 * 32)
    quadrants = np.unique(delta > 0, axis=0, return_counts=True)[1]
    self.assertAllInRange(quadrants, 5000 - 5 * 62, 5000 + 5 * 62)

  def test_pgd_fills_the_ball(self):
    weights = tf.constant(self.rng.normal(size=(60, 3)).astype("f4"))
    keys = hashing.stream_keys(0, tf.range(8))
    labels = tf.constant(self.rng.integers(0, 3, 8))
    attack = PGD(L1(2.0), step_size=0.5, steps=20)
    adversarial = attack(
      lambda x: tf.reshape(x, [-1, 60]) @ weights,
      tf.constant(self.images),
      labels,
      keys,
    )
    norms = np.abs(adversarial.numpy() - self.images).sum(axis=(1, 2, 3))
    self.assertAllClose(norms, np.full(8, 2.0), atol=1e-4)
