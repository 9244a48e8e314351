"""Tests of the pieces of iterative attacks against references written in NumPy."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.attacks import L1, L2, LInfinity, hyperplane, losses, square
from dat_tf.attacks.apgd import APGD, SparseAPGD


def brute_force_way(ball, point, normal, value):
  """The smallest |d| with value + normal d = 0 in the box, by general solvers."""
  size = len(point)
  if isinstance(ball, L2):
    solution = scipy.optimize.minimize(
      lambda d: d @ d,
      np.zeros(size),
      jac=lambda d: 2 * d,
      bounds=list(zip(-point, 1 - point)),
      constraints={
        "type": "eq",
        "fun": lambda d: value + normal @ d,
        "jac": lambda d: normal,
      },
      options={"ftol": 1e-12, "maxiter": 500},
    )
    return solution.x
  # Linear programs: d = up - down, and in l-infinity a bound on all of them.
  bounds = [*((0, room) for room in 1 - point), *((0, room) for room in point)]
  costs = np.ones(2 * size)
  equation, limits = np.concatenate([normal, -normal])[None], None
  if isinstance(ball, LInfinity):
    costs, bounds = np.append(np.zeros(2 * size), 1), [*bounds, (0, 1)]
    limits = np.hstack([np.eye(2 * size), -np.ones((2 * size, 1))])
    equation = np.append(equation, 0)[None]
  solution = scipy.optimize.linprog(
    costs,
    limits,
    None if limits is None else np.zeros(2 * size),
    equation,
    [-value],
    bounds,
  )
  return solution.x[:size] - solution.x[size : 2 * size]


class HyperplaneTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(LInfinity(1.0), L2(1.0), L1(1.0))
  def test_the_way_is_the_shortest(self, ball):
    rng = np.random.default_rng(0)
    points = np.clip(rng.uniform(-0.3, 1.3, (20, 3, 2, 2)), 0, 1).astype("f4")
    normals = rng.normal(size=points.shape).astype("f4")
    normals[0, 0] = 0.0
    values = rng.uniform(-1.5, 1.5, 20).astype("f4")
    ways = hyperplane.shortest_way(
      ball, points_ := tf.constant(points), normals, values
    )
    self.assertAllInRange(points_ + ways, -1e-6, 1 + 1e-6)
    for point, normal, value, way in zip(points, normals, values, ways.numpy()):
      point, normal = point.ravel().astype("f8"), normal.ravel().astype("f8")
      expected = brute_force_way(ball, point, normal, value)
      self.assertAllClose(value + normal @ way.ravel(), 0.0, atol=1e-5)
      order = {LInfinity: np.inf, L2: 2, L1: 1}[type(ball)]
      self.assertAllClose(
        np.linalg.norm(way.ravel(), order), np.linalg.norm(expected, order), rtol=1e-4
      )

  @parameterized.parameters(LInfinity(1.0), L2(1.0), L1(1.0))
  def test_out_of_reach_it_goes_as_far_as_it_can(self, ball):
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(4, 3, 3, 1)).astype("f4")
    normals = rng.normal(size=points.shape).astype("f4")
    for value in (100.0, -100.0):
      ways = hyperplane.shortest_way(
        ball, tf.constant(points), tf.constant(normals), tf.fill([4], value)
      )
      corner = np.where(normals * value < 0, 1.0, 0.0)
      self.assertAllClose(points + ways, corner, atol=1e-5)

  @parameterized.parameters(LInfinity(1.0), L2(1.0), L1(1.0))
  def test_on_the_hyperplane_or_without_gradient_nothing_moves(self, ball):
    points = tf.fill([2, 3, 3, 1], 0.5)
    normals = tf.stack([tf.ones([3, 3, 1]), tf.zeros([3, 3, 1])])
    ways = hyperplane.shortest_way(ball, points, normals, tf.constant([0.0, 1.0]))
    self.assertAllEqual(ways, tf.zeros_like(points))


class LossesTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.logits, self.labels = rng.normal(size=(50, 6)), rng.integers(0, 6, 50)

  def test_dlr(self):
    for loss in (losses.dlr, lambda x, y: losses.dlr(7.0 * x + 3.0, y)):
      expected = []
      for logits, label in zip(self.logits, self.labels):
        ordered = np.sort(logits)[::-1]
        best_other = np.delete(logits, label).max()
        expected.append(-(logits[label] - best_other) / (ordered[0] - ordered[2]))
      self.assertAllClose(loss(self.logits, self.labels), expected)

  def test_targeted_dlr(self):
    targets = (self.labels + 2) % 6
    expected = []
    for logits, label, target in zip(self.logits, self.labels, targets):
      first, _, third, fourth = np.sort(logits)[::-1][:4]
      scale = first - 0.5 * (third + fourth)
      expected.append(-(logits[label] - logits[target]) / scale)
    self.assertAllClose(
      losses.targeted_dlr(self.logits, self.labels, targets), expected
    )


class ScheduleTest(tf.test.TestCase):
  def test_apgd_checks_when_the_paper_says(self):
    windows = APGD(L2(1.0), steps=100)._schedule().window
    # w_j = ceil(100 p_j), p_0 = 0, p_1 = 0.22,
    # p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)
    expected = [22, 41, 57, 70, 80, 87, 93, 99]
    self.assertAllEqual(np.flatnonzero(windows), expected)
    self.assertAllEqual(windows[expected], np.diff([0, *expected]))

  def test_apgd_in_l1_comes_from_larger_balls(self):
    schedule = SparseAPGD(L1(1.0), steps=100)._schedule()
    # Each stage looks at its start too.
    radii = np.repeat([3.0, 2.0, 1.0], [31, 31, 41])
    self.assertAllEqual(schedule.radius, radii)
    self.assertAllEqual(np.flatnonzero(schedule.first), [0, 31, 62])
    self.assertAllEqual(np.flatnonzero(schedule.last), [30, 61, 102])
    self.assertAllEqual(schedule.window, np.where(schedule.first, 0, 1))

  def test_squares_shrink_when_the_paper_says(self):
    sides = square.Square(LInfinity(0.1))._sides(tf.TensorShape([32, 32]))
    ends = [0, 10, 50, 200, 500, 1000, 2000, 4000, 5000]
    shares = 0.8 / 2 ** np.arange(8)
    for first, last, share in zip(ends, ends[1:], shares):
      expected = np.full(last - first, round(np.sqrt(share * 32 * 32)))
      self.assertAllEqual(
        sides[first + 1 : last + 1], expected[: len(sides) - first - 1]
      )
    odd = square.Square(L2(1.0))._sides(tf.TensorShape([32, 32]))
    self.assertAllEqual(odd % 2, np.ones_like(odd))
    self.assertAllGreaterEqual(odd, 3)
