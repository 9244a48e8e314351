"""Tests of APGD against its paper's algorithm, written in NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf import hashing
from dat_tf.attacks import L1, L2, LInfinity, iterative
from dat_tf.attacks.apgd import APGD

SHAPE, COUNT, STEPS = (4, 4, 2), 8, 40
# As the authors' program rounds p_j, of 0.22 and then 0.03 less each time, times 40.
CHECKPOINTS = (8, 15, 21, 26, 30, 33, 35, 37, 39)
# So far they are compared: where all has converged rounding decides what is a rise.
COMPARED = 27


def numpy_loss(image, label, weights):
  """Cross-entropy of a two-layer tanh network and its gradient; of one flat image."""
  first, second = weights
  hidden = np.tanh(image @ first)
  logits = hidden @ second
  shifted = np.exp(logits - logits.max())
  probabilities = shifted / shifted.sum()
  error = probabilities - np.eye(len(logits))[label]
  gradient = first @ ((second @ error) * (1 - hidden**2))
  return -np.log(probabilities[label]), gradient


def numpy_project(ball, image, moved):
  delta = moved - image
  if isinstance(ball, LInfinity):
    delta = np.clip(delta, -ball.epsilon, ball.epsilon)
  else:
    delta = delta * min(1, ball.epsilon / max(np.linalg.norm(delta), 1e-12))
  return np.clip(image + delta, 0, 1)


def numpy_apgd(ball, image, start, label, weights):
  """Algorithm 1 of Croce & Hein 2020: the best point, and the last step size."""
  step_size = 2 * ball.epsilon
  point = previous = start
  loss, gradient = numpy_loss(start, label, weights)
  best = loss, start, gradient
  last, rises, halved, checked = 0, 0, True, loss
  for k in range(COMPARED):
    direction = np.sign(gradient)
    if isinstance(ball, L2):
      direction = gradient / np.linalg.norm(gradient)
    z = numpy_project(ball, image, point + step_size * direction)
    if k:
      z = point + 0.75 * (z - point) + 0.25 * (point - previous)
    before, previous = loss, point
    point = numpy_project(ball, image, z)
    loss, gradient = numpy_loss(point, label, weights)
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


class APGDTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.weights = rng.normal(size=(np.prod(SHAPE), 8)), rng.normal(size=(8, 3))
    self.images = np.clip(rng.uniform(-0.2, 1.2, size=(COUNT, *SHAPE)), 0, 1)
    self.images = self.images.astype("f4")
    self.labels = rng.integers(0, 3, size=COUNT).astype("i4")

  def classifier(self, images):
    first, second = (tf.constant(w, tf.float32) for w in self.weights)
    return tf.tanh(tf.reshape(images, [-1, np.prod(SHAPE)]) @ first) @ second

  def state_after(self, attack, num_steps):
    images = tf.constant(self.images)
    examples = iterative.Examples(
      images,
      tf.constant(self.labels),
      hashing.stream_keys(0, tf.range(COUNT)),
      self.classifier(images),
      tf.zeros(COUNT, tf.int32),
    )
    start = attack.start(examples)

    @tf.function
    def run(state):
      # Not `iterative.run`, which keeps what fools first.
      for k in range(num_steps):
        state = attack.step(self.classifier, examples, state, tf.fill([COUNT], k))
      return state

    return start, run(start)

  @parameterized.parameters(LInfinity(0.1), LInfinity(0.4), L2(0.5), L2(1.0))
  def test_it_is_that_of_the_paper(self, ball):
    start, state = self.state_after(APGD(ball, steps=STEPS), COMPARED + 1)
    halvings = set()
    for index, image in enumerate(self.images.reshape(COUNT, -1).astype("f8")):
      (loss, point, _), step_size = numpy_apgd(
        ball,
        image,
        start["point"][index].numpy().ravel().astype("f8"),
        self.labels[index],
        self.weights,
      )
      self.assertAllClose(state["best_loss"][index], loss, rtol=1e-5)
      self.assertAllClose(state["step_size"][index], step_size, rtol=1e-6)
      self.assertAllClose(np.ravel(state["best"][index]), point, atol=1e-2)
      halvings.add(step_size)
    self.assertGreater(len(halvings), 1)

  def test_in_l1_it_ends_with_a_sparse_perturbation_that_fills_the_ball(self):
    attack = APGD(L1(1.5), steps=STEPS)
    _, state = self.state_after(attack, attack.num_steps)
    delta = (state["best"].numpy() - self.images).reshape(COUNT, -1)
    self.assertAllClose(np.abs(delta).sum(axis=1), np.full(COUNT, 1.5), atol=1e-4)
    counts = (np.abs(delta) > 1e-6).sum(axis=1)
    self.assertAllLessEqual(counts, 12)
    self.assertAllLessEqual(state["step_size"], 1.5)
    self.assertAllGreaterEqual(state["step_size"], 0.15)
