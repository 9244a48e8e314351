"""Tests of APGD against its paper's algorithm, written in NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from numpy_attacks import TanhNetwork, l1_project

from dat_tf.attacks import L1, L2, LInfinity, iterative
from dat_tf.attacks.apgd import APGD, SparseAPGD
from dat_tf.base import hashing

SHAPE, COUNT, STEPS = (4, 4, 2), 8, 40
# As the authors' program rounds p_j, of 0.22 and then 0.03 less each time, times 40.
CHECKPOINTS = (8, 15, 21, 26, 30, 33, 35, 37, 39)
# So far they are compared, and how closely: rounding grows on the way, and where all
# has converged it decides what is a rise.
COMPARED = {12: 1e-5, 27: 1e-3}
SPARSE_COMPARED = 10, 30, 50, 75, 110  # in all stages
SPARSE_STEPS = 150


def numpy_loss(image, label, network):
  """Cross-entropy and its gradient, of one flat image."""
  batch = image[None], [label]
  return network.losses(*batch)[0], network.gradient(*batch)[0]


def numpy_project(ball, image, moved):
  delta = moved - image
  if isinstance(ball, LInfinity):
    delta = np.clip(delta, -ball.epsilon, ball.epsilon)
  else:
    delta = delta * min(1, ball.epsilon / max(np.linalg.norm(delta), 1e-12))
  return np.clip(image + delta, 0, 1)


def numpy_apgd(ball, image, start, label, *, network, steps):
  """Algorithm 1 of Croce & Hein 2020: the best point, and the last step size."""
  step_size = 2 * ball.epsilon
  point = previous = start
  loss, gradient = numpy_loss(start, label, network)
  best = loss, start, gradient
  last, rises, halved, checked = 0, 0, True, loss
  for k in range(steps):
    direction = np.sign(gradient)
    if isinstance(ball, L2):
      direction = gradient / np.linalg.norm(gradient)
    z = numpy_project(ball, image, point + step_size * direction)
    if k:
      z = point + 0.75 * (z - point) + 0.25 * (point - previous)
    before, previous = loss, point
    point = numpy_project(ball, image, z)
    loss, gradient = numpy_loss(point, label, network)
    rises += loss > before
    if loss > best[0]:
      best = loss, point, gradient
    if k + 1 in CHECKPOINTS:
      few = rises <= 0.75 * (k + 1 - last)
      stuck = not halved and checked == best[0]
      halved = few or stuck
      last, rises, checked = k + 1, 0, best[0]
      if halved:
        step_size /= 2
        _, point, gradient = best
  return best, step_size


def numpy_sparse_apgd(ball, image, start, label, network):
  """Croce & Hein 2021: after each evaluation the largest loss, and the step size."""
  early, history, point = int(np.ceil(0.3 * SPARSE_STEPS)), [], start
  stages = (3, early), (2, early), (1, SPARSE_STEPS - 2 * early)
  for radius, steps in ((factor * ball.epsilon, steps) for factor, steps in stages):

    def moved(point):
      return np.count_nonzero(np.abs(point - image) > 1e-7)

    point = l1_project(image, point, radius)
    loss, gradient = numpy_loss(point, label, network)
    best, step_size, before = (loss, point, gradient), radius, moved(point)
    density = before / image.size / 1.5
    history.append((loss, step_size))
    window = max(int(0.04 * steps), 1)
    for k in range(1, steps + 1):
      largest = np.argsort(-np.abs(gradient))[: max(int(density * image.size), 1)]
      direction = np.zeros(image.size)
      direction[largest] = np.sign(gradient[largest]) / len(largest)
      point = l1_project(image, point + step_size * direction, radius)
      loss, gradient = numpy_loss(point, label, network)
      if loss > best[0]:
        best = loss, point, gradient
      if k % window == 0:
        now = moved(best[1])
        if now < 0.95 * before:
          step_size = radius
          _, point, gradient = best
        else:
          step_size = max(step_size / 1.5, radius / 10)
        density, before = now / image.size / 1.5, now
      history.append((best[0], step_size))
    point = best[1]
  return history


class APGDTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.classifier = TanhNetwork(rng, np.prod(SHAPE), 3)
    self.images = np.clip(rng.uniform(-0.2, 1.2, size=(COUNT, *SHAPE)), 0, 1)
    self.images = self.images.astype("f4")
    self.labels = rng.integers(0, 3, size=COUNT).astype("i4")

  def examples(self):
    return iterative.Examples(
      tf.constant(self.images),
      tf.constant(self.labels),
      hashing.stream_keys(0, tf.range(COUNT)),
      self.classifier(self.images),
      tf.zeros(COUNT, tf.int32),
    )

  def state_after(self, attack, num_steps):
    examples = self.examples()
    start = attack.start(examples)
    own = {name: value for name, value in start.items() if name != "k"}

    @tf.function
    def run(state):
      # Not `iterative.run`, which keeps what fools first.
      for k in tf.range(num_steps):
        state = attack.step(self.classifier, examples, state, tf.fill([COUNT], k))
      return state

    return start, run(own)

  @parameterized.product(
    ball=[LInfinity(0.1), LInfinity(0.4), L2(0.5), L2(1.0)],
    compared=list(COMPARED.items()),
  )
  def test_it_is_that_of_the_paper(self, ball, compared):
    steps, tolerance = compared
    start, state = self.state_after(APGD(ball, steps=STEPS), steps + 1)
    halvings = set()
    for index, image in enumerate(self.images.reshape(COUNT, -1).astype("f8")):
      (loss, point, _), step_size = numpy_apgd(
        ball,
        image,
        start["point"][index].numpy().ravel().astype("f8"),
        self.labels[index],
        network=self.classifier,
        steps=steps,
      )
      self.assertAllClose(state["best_loss"][index], loss, rtol=tolerance)
      self.assertAllClose(state["step_size"][index], step_size, rtol=1e-6)
      self.assertAllClose(np.ravel(state["best"][index]), point, atol=1e-2)
      halvings.add(step_size)
    if steps == max(COMPARED):
      self.assertGreater(len(halvings), 1)

  def test_in_l1_it_is_that_of_its_paper(self):
    attack = SparseAPGD(L1(1.5), steps=SPARSE_STEPS)
    start = attack.start(self.examples())["point"].numpy().astype("f8")
    histories = np.array(
      [
        numpy_sparse_apgd(
          attack.ball, image, start[index].ravel(), self.labels[index], self.classifier
        )
        for index, image in enumerate(self.images.reshape(COUNT, -1).astype("f8"))
      ]
    )
    self.assertEqual(histories.shape[1], attack.num_steps(np.prod(SHAPE)))
    for count in SPARSE_COMPARED:
      _, state = self.state_after(attack, count)
      for name, expected in zip(("best_loss", "step_size"), histories[:, count - 1].T):
        same = np.isclose(state[name], expected, rtol=1e-5)
        # Whether the last crumbs of an entry count as a change, rounding decides.
        self.assertGreaterEqual(same.sum(), COUNT - 1, (name, count))

  def test_in_l1_it_ends_with_a_sparse_perturbation_that_fills_the_ball(self):
    attack = SparseAPGD(L1(1.5), steps=STEPS)
    _, state = self.state_after(attack, attack.num_steps(np.prod(SHAPE)))
    delta = (state["best"].numpy() - self.images).reshape(COUNT, -1)
    self.assertAllClose(np.abs(delta).sum(axis=1), np.full(COUNT, 1.5), atol=1e-4)
    counts = (np.abs(delta) > 1e-6).sum(axis=1)
    self.assertAllLessEqual(counts, 12)
    self.assertAllLessEqual(state["step_size"], 1.5)
    self.assertAllGreaterEqual(state["step_size"], 0.15)
