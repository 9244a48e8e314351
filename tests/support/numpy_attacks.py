"""The geometry of attacks in NumPy, images [B, H, W, C]."""

import numpy as np
import tensorflow as tf

from dat_tf.attacks import LInfinity


def length(x):
  return np.sqrt((x**2).sum(axis=(1, 2, 3), keepdims=True))


def steepest(ball, g):
  return np.sign(g) if isinstance(ball, LInfinity) else g / length(g)


def project(ball, x, moved):
  if isinstance(ball, LInfinity):
    delta = np.clip(moved - x, -ball.epsilon, ball.epsilon)
  else:
    delta = moved - x
    delta = delta * np.minimum(1, ball.epsilon / np.maximum(length(delta), 1e-12))
  return np.clip(x + delta, 0, 1)


def l1_project(image, moved, radius):
  """Of one flat image: all changes shrink alike, but for what the range cuts off."""
  delta = moved - image
  room = np.where(delta > 0, 1 - image, image)

  def shrunk(by):
    return np.minimum(np.maximum(np.abs(delta) - by, 0), room)

  low, high = 0.0, np.abs(delta).max()
  if shrunk(low).sum() > radius:
    for _ in range(60):
      middle = (low + high) / 2
      low, high = (middle, high) if shrunk(middle).sum() > radius else (low, middle)
    low = high
  return image + np.sign(delta) * shrunk(low)


def numeric_gradient(function, x, h=1e-6):
  """Of each example's own value; x [B, ...]."""
  result = np.zeros_like(x)
  for index in np.ndindex(x.shape[1:]):
    ahead, behind = x.copy(), x.copy()
    ahead[(slice(None), *index)] += h
    behind[(slice(None), *index)] -= h
    result[(slice(None), *index)] = (function(ahead) - function(behind)) / (2 * h)
  return result


class TanhNetwork:
  """Two layers, drawn from rng: in TensorFlow by a call, else in NumPy, float64."""

  def __init__(self, rng, size, classes, hidden=8):
    self.first = rng.normal(size=(size, hidden))
    self.second = rng.normal(size=(hidden, classes))

  def __call__(self, images):
    first, second = (tf.constant(w, tf.float32) for w in (self.first, self.second))
    return tf.tanh(tf.reshape(images, [-1, len(self.first)]) @ first) @ second

  def logits(self, images):
    return self._hidden(images) @ self.second

  def losses(self, images, labels):
    """Cross-entropies, [B]."""
    return -self._log_p(images)[np.arange(len(images)), labels]

  def gradient(self, images, labels):
    """Of each image's own cross-entropy, as images."""
    error = np.exp(self._log_p(images)) - np.eye(self.second.shape[1])[labels]
    return self.pulled_back(images, error)

  def pulled_back(self, images, by_logits):
    """The gradient, as images, of what has the gradient `by_logits`, [B, classes]."""
    slope = by_logits @ self.second.T * (1 - self._hidden(images) ** 2)
    return (slope @ self.first.T).reshape(images.shape)

  def _hidden(self, images):
    return np.tanh(images.reshape(len(images), -1) @ self.first)

  def _log_p(self, images):
    logits = self.logits(images)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
