"""The geometry of attacks in NumPy, images [B, H, W, C]."""

import numpy as np

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
