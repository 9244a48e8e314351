"""A network of two layers, in TensorFlow and in NumPy, for tests of objectives.

The loss is compared with the published equation in float64, and its gradient by the
weights with differences of that equation: a term through which no gradient flows, or
one through which it should not, would be seen.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.objectives import Batch

SHAPE, SIZE, CLASSES = (2, 2, 3), 6, 4


class Network:
  """tanh(x A) B, in TensorFlow; remembers how it was called."""

  def __init__(self, weights):
    self.trainable_variables = [tf.Variable(w, dtype=tf.float32) for w in weights]
    self.calls = []

  def __call__(self, images, *, training=False):
    self.calls.append((int(images.shape[0]), training))
    first, second = self.trainable_variables
    return tf.tanh(tf.reshape(images, [-1, np.prod(SHAPE)]) @ first) @ second


def logits_of(weights, images):
  return np.tanh(images.reshape(len(images), -1) @ weights[0]) @ weights[1]


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def cross_entropy(weights, images, rows):
  return -(rows * log_softmax(logits_of(weights, images))).sum(axis=1)


def kl(weights, images, others):
  log_p, log_q = (log_softmax(logits_of(weights, x)) for x in (images, others))
  return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def gradient(weights, images, rows):
  """Of each example's cross-entropy, flat: [B, D]."""
  hidden = np.tanh(images.reshape(len(images), -1) @ weights[0])
  logits = hidden @ weights[1]
  error = np.exp(log_softmax(logits)) * rows.sum(axis=1, keepdims=True) - rows
  return (error @ weights[1].T * (1 - hidden**2)) @ weights[0].T


def dot(x, y):
  return (x.reshape(len(x), -1) * y.reshape(len(y), -1)).sum(axis=1)


class Setting(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.weights = [rng.normal(size=(12, 7)), rng.normal(size=(7, CLASSES))]
    self.images = rng.uniform(0.2, 0.8, size=(SIZE, *SHAPE)).astype("f4")
    noise = rng.uniform(-0.15, 0.15, size=(SIZE, *SHAPE))
    self.adversarial = (self.images + noise).astype("f4")
    self.labels = rng.integers(0, CLASSES, size=SIZE)
    self.keys = hashing.stream_keys(5, tf.range(SIZE))
    self.direction = [rng.normal(size=w.shape) for w in self.weights]

  def batch(self, labels, weights=None):
    ones = tf.ones(SIZE)
    return Batch(
      tf.constant(self.images),
      tf.constant(labels),
      ones if weights is None else tf.constant(weights, tf.float32),
      self.keys,
      ones,
    )

  def check(self, objective, expected, labels=None):
    """`expected`: weights, x, x', rows (all float64) -> losses."""
    rows = np.eye(CLASSES)[self.labels] if labels is None else labels
    labels = self.labels if labels is None else labels.astype("f4")
    network = Network(self.weights)
    with tf.GradientTape() as tape:
      evaluated = objective(network, self.batch(labels), tf.constant(self.adversarial))
      total = tf.reduce_sum(evaluated.losses)
    slope = sum(
      (g.numpy().astype("f8") * d).sum()
      for g, d in zip(tape.gradient(total, network.trainable_variables), self.direction)
    )
    x, moved = self.images.astype("f8"), self.adversarial.astype("f8")
    values = expected(self.weights, x, moved, rows)
    self.assertAllClose(evaluated.losses, values, rtol=1e-5, atol=1e-5)
    h = 1e-6
    ahead, behind = (
      expected(
        [w + s * h * d for w, d in zip(self.weights, self.direction)], x, moved, rows
      ).sum()
      for s in (1, -1)
    )
    self.assertAllClose(slope, (ahead - behind) / (2 * h), rtol=1e-4)
    return network, evaluated

  def soft_rows(self):
    return 0.7 * np.eye(CLASSES)[self.labels] + 0.3 / CLASSES
