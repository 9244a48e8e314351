"""Square's random search against a reference in NumPy, and that it asks no more."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.attacks import L1, L2, LInfinity, iterative, norms, square
from dat_tf.attacks.iterative import Examples
from dat_tf.attacks.square import Square
from dat_tf.base import hashing

SHAPE, COUNT = (9, 9, 2), 6


def length(x, ball, axis=None):
  if isinstance(ball, L1):
    return np.abs(x).sum(axis=axis)
  return np.sqrt((x**2).sum(axis=axis))


def rectangles(height, width, ball):
  """Each a frame larger than the one before, and worth less."""
  power = 4 if isinstance(ball, L1) else 2
  hill = np.zeros((height, width))
  for m in range(max(height // 2, width // 2) + 1):
    rows = slice(max(height // 2 - m, 0), height // 2 + m + 1)
    hill[rows, max(width // 2 - m, 0) : width // 2 + m + 1] += 1 / (m + 1) ** power
  return hill / length(hill, ball)


def two_hills(side, ball):
  upper = rectangles(side // 2, side, ball)
  both = np.concatenate([upper, -rectangles(side - side // 2, side, ball)])
  return both / length(both, ball)


class SquareTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.examples = self.examples_of(SHAPE)

  def examples_of(self, shape):
    images = np.random.default_rng(0).uniform(0.3, 0.7, (COUNT, *shape))
    labels = tf.zeros(COUNT, tf.int32)
    keys = hashing.stream_keys(0, np.arange(COUNT))
    return Examples(
      tf.constant(images, tf.float32), labels, keys, tf.zeros([COUNT, 3]), labels
    )

  @parameterized.product(side=[3, 5, 7, 9], ball=[L1(1.0), L2(1.0)])
  def test_hills(self, side, ball):
    hills = square._two_hills(side, is_l1=isinstance(ball, L1))
    self.assertAllClose(hills, two_hills(side, ball), atol=1e-6)

  @parameterized.product(ball=[L1(4.0), L2(1.5)], k=[0, 30], channels=[1, 3, 4])
  def test_a_window_takes_what_two_had_and_what_is_left(self, ball, k, channels):
    """Algorithm 3 of the paper: what two windows had counts channel by channel."""
    shape = (*SHAPE[:2], channels)
    examples = self.examples_of(shape)
    images = examples.images.numpy()
    attack = Square(ball, steps=60, share=0.3)
    rng = np.random.default_rng(1)
    best = images + rng.uniform(-0.02, 0.02, images.shape).astype("f4")
    steps = tf.fill([COUNT], k)
    signs = norms.signs(examples.step_keys(steps, stream=1), [1, 1, channels])
    places = hashing.uniform(examples.step_keys(steps, stream=2), [5]).numpy()
    side = attack._sides(SHAPE[:2])[k]
    expected = []
    for image, point, sign, place in zip(images, best, signs.numpy(), places):
      perturbation = (point - image).astype("f8")
      rows, columns, other_rows, other_columns = (
        slice(first, first + side) for first in (place[:4] * (10 - side)).astype(int)
      )
      both = np.zeros(shape)
      both[rows, columns] = perturbation[rows, columns]
      both[other_rows, other_columns] = perturbation[other_rows, other_columns]
      had = length(both, ball, axis=(0, 1))  # of each channel
      hill = two_hills(side, ball)
      hill = hill.T if place[4] > 0.5 else hill
      new = np.zeros((side, side, channels))
      for channel in range(channels):
        old = perturbation[rows, columns, channel]
        mixed = hill * sign[0, 0, channel] + old / length(old, ball)
        new[..., channel] = mixed / length(mixed, ball)
      if isinstance(ball, L1):
        left = max(ball.epsilon - length(perturbation, ball), 0)
        new *= (left / channels + had) * channels
      else:
        left = max(ball.epsilon**2 - length(perturbation, ball) ** 2, 0)
        new *= np.sqrt(left / channels + had**2)
      perturbation[other_rows, other_columns] = 0
      perturbation[rows, columns] = new
      if isinstance(ball, L2):  # as far as the ball allows
        perturbation *= ball.epsilon / length(perturbation, ball)
      expected.append(image + perturbation)
    expected = np.stack(expected).astype("f4")
    expected = ball.project(tf.constant(images), tf.constant(expected))
    changed = attack._changed(examples, tf.constant(best), steps)
    self.assertAllClose(changed, expected, atol=2e-5)
    self.assertNotAllClose(changed, best, atol=1e-2)

  def test_what_is_known_is_not_asked_again(self):
    class AsksAll(Square):
      def _next(self, examples, best, k):
        return {"candidate": self._changed(examples, best, k)}

    weights = np.random.default_rng(2).normal(size=(np.prod(SHAPE), 3)).astype("f4")

    def classifier(images):  # never fooled, so that all queries are made
      logits = tf.reshape(images, [len(images), -1]) @ weights
      return logits + [100.0, 0.0, 0.0]

    results = {}
    for kind in (Square, AsksAll):
      attack = kind(LInfinity(0.1), steps=60, share=0.3)
      state = attack.start(self.examples)
      results[kind] = [state]
      for _ in range(60):
        state = iterative.advanced(attack, classifier, self.examples, state)
        results[kind].append(state)
    saving, asking = results.values()
    saved = 0
    for before, after in zip(saving, saving[1:]):
      for i, k in enumerate(after["k"].numpy()):
        same = asking[min(k, 60)]["adversarial"]
        self.assertAllEqual(after["adversarial"][i], same[i])
        saved += int(k - before["k"][i] == 2)
    self.assertGreater(saved, 0)

  @parameterized.parameters(L1(4.0), L2(1.5))
  def test_the_start_is_tiled_with_hills_of_both_directions(self, ball):
    big = Examples(
      tf.fill([8, 20, 20, 1], 0.5),
      *self.examples[1:2],
      hashing.stream_keys(0, range(8)),
      *self.examples[3:],
    )
    noise = (Square(ball).start(big)["candidate"] - 0.5).numpy()
    self.assertAllClose(ball.norm(noise), np.full(8, ball.epsilon), rtol=1e-4)
    found = set()
    for image in noise[..., 0]:
      for row in range(0, 20, 4):
        for column in range(0, 20, 4):
          one = np.abs(image[row : row + 4, column : column + 4])
          found.add(np.unravel_index(one.argmax(), one.shape))
    # The peaks of a hill above another, and of one beside another.
    self.assertContainsSubset({(1, 2), (2, 1)}, found)


if __name__ == "__main__":
  tf.test.main()
