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
  """Two layers: in TensorFlow by a call, in NumPy, float64, by `logits`."""

  def __init__(self, shape, classes=3, hidden=8):
    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    self.first, self.second = (
      rng.normal(size=(size, hidden)),
      rng.normal(size=(hidden, classes)),
    )

  def __call__(self, images):
    first, second = (tf.constant(w, tf.float32) for w in (self.first, self.second))
    flat = tf.reshape(images, [-1, len(self.first)])
    return tf.tanh(flat @ first) @ second

  def logits(self, images):
    return np.tanh(images.reshape(len(images), -1) @ self.first) @ self.second

  def gradient(self, images, by_logits):
    """By the images, of what has the gradient `by_logits`, [B, classes]."""
    hidden = np.tanh(images.reshape(len(images), -1) @ self.first)
    slope = (by_logits @ self.second.T * (1 - hidden**2)) @ self.first.T
    return slope.reshape(images.shape)
