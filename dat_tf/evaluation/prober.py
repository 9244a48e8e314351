"""PGD, noise and gradients of any size on a few images, with one graph for each."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dat_tf.attacks import iterative, norms
from dat_tf.base import hashing
from dat_tf.objectives.losses import cross_entropy

PGD_STEPS = 20


class Climbed(NamedTuple):
  """PGD's course: losses and fooled [K + 1, N], and the images of largest loss."""

  losses: np.ndarray
  fooled: np.ndarray
  worst: np.ndarray


class Prober:
  """Calls a classifier in batches of one shape."""

  def __init__(
    self, classifier: iterative.Classifier, ball: norms.Ball, batch_size: int
  ):
    self.ball, self._batch_size = ball, batch_size

    def gradient(
      images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = classifier(images)
        values = cross_entropy(logits, labels)
        total = tf.reduce_sum(values)
      zero = tf.UnconnectedGradients.ZERO  # a round() on the way, for instance
      return logits, values, tape.gradient(total, images, unconnected_gradients=zero)

    def around(epsilon: tf.Tensor) -> Any:
      return dataclasses.replace(ball, epsilon=epsilon)

    def step(
      images: tf.Tensor, labels: tf.Tensor, point: tf.Tensor, epsilon: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
      logits, values, input_gradient = gradient(point, labels)
      fooled = tf.argmax(logits, axis=1, output_type=tf.int32) != labels
      step_size = 2.5 * epsilon / PGD_STEPS
      moved = norms.ascend(around(epsilon), images, point, input_gradient, step_size)
      return values, fooled, moved

    def noisy(images: tf.Tensor, keys: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
      # A stream of its own: not PGD's start.
      keys = hashing.stream_keys(1, keys[:, 0], keys[:, 1])
      direction = ball.steepest(hashing.normal(keys, images.shape[1:]))
      return around(epsilon).project(images, images + epsilon * direction)

    # A lambda: tf.function would copy the attributes of a callable object over its own.
    self._classify = tf.function(lambda images: classifier(images))
    self._gradient = tf.function(gradient)
    self._step = tf.function(step)
    self._noisy = tf.function(noisy)
    self._start = tf.function(
      lambda images, keys, epsilon: around(epsilon).random_start(keys, images)
    )

  def _in_batches(self, function: Any, *arrays: np.ndarray) -> list[np.ndarray]:
    """Results of a function of batches, joined: one array [N, ...] for each."""
    count, size = len(arrays[0]), self._batch_size
    results = []
    for first in range(0, count, size):
      # Fillers, cut off below.
      parts = [np.resize(x[first : first + size], (size, *x.shape[1:])) for x in arrays]
      batch = [tf.constant(part) for part in parts]
      results.append([np.asarray(value) for value in function(*batch)])
    return [np.concatenate(values)[:count] for values in zip(*results)]

  def logits(self, images: np.ndarray) -> np.ndarray:
    return self._in_batches(lambda x: [self._classify(x)], images)[0]

  def losses(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return cross_entropy(self.logits(images), labels).numpy()

  def gradients(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gradients of the loss with respect to each image, [N, H, W, C]."""
    return self._in_batches(self._gradient, images, labels)[2]

  def noisy(self, images: np.ndarray, keys: np.ndarray, epsilon: float) -> np.ndarray:
    """Images moved in random directions, as far as the ball goes."""
    size = tf.constant(epsilon, tf.float32)
    return self._in_batches(lambda x, k: [self._noisy(x, k, size)], images, keys)[0]

  def starts(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The random points of the ball at which the first round of APGD begins."""
    size = tf.constant(self.ball.epsilon, tf.float32)

    def start(x: tf.Tensor, k: tf.Tensor) -> list[tf.Tensor]:
      return [self._start(x, hashing.stream_keys(0, k[:, 0], k[:, 1]), size)]

    return self._in_batches(start, images, keys)[0]

  def climb(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    keys: np.ndarray,
    epsilon: float,
    steps: int,
  ) -> Climbed:
    """PGD from a random start."""
    size = tf.constant(epsilon, tf.float32)

    def course(x: tf.Tensor, y: tf.Tensor, k: tf.Tensor) -> list[np.ndarray]:
      point, values, fooled = self._start(x, k, size), [], []
      worst, largest = x, tf.fill([len(x)], float("-inf"))
      for _ in range(steps + 1):
        value, is_fooled, moved = self._step(x, y, point, size)
        worst = iterative.select(value > largest, point, worst)
        largest, point = tf.maximum(value, largest), moved
        values.append(value.numpy())
        fooled.append(is_fooled.numpy())
      return [np.stack(values, axis=1), np.stack(fooled, axis=1), worst.numpy()]

    values, fooled, worst = self._in_batches(course, images, labels, keys)
    return Climbed(values.T, fooled.T, worst)
