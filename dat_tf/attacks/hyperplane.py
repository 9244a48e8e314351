"""The nearest boundary as a hyperplane, and the shortest way to it inside [0, 1].

Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
attack", ICML 2020, section 2.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from dat_tf.attacks import losses, norms
from dat_tf.attacks.iterative import Classifier, Examples

# How many wrong classes are looked at, the likeliest first, as in DeepFool's program.
CANDIDATES = 10


class Boundary(NamedTuple):
  """The boundary to another class, taken for a hyperplane.

  Attributes:
    logits: [B, classes], at the points.
    value: [B], the other class's logit less the label's.
    gradient: [B, H, W, C], its gradient.
    distance: [B], to the hyperplane, in the ball's norm.
  """

  logits: tf.Tensor
  value: tf.Tensor
  gradient: tf.Tensor
  distance: tf.Tensor


def nearest(
  ball: norms.Ball,
  classifier: Classifier,
  examples: Examples,
  points: tf.Tensor,
  candidates: int = CANDIDATES,
) -> Boundary:
  """The nearest boundary, of those to the likeliest wrong classes.

  Args:
    ball: in whose norm it is nearest.
    classifier: from images to logits.
    examples: whose labels, and whose likeliest wrong classes.
    points: float32 [B, H, W, C], where the hyperplanes are taken.
    candidates: how many classes, or as many as there are.
  """
  wrong = losses.others(examples.logits, examples.labels)
  classes = tf.math.top_k(wrong, min(candidates, wrong.shape[1] - 1)).indices
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(points)
    logits = classifier(points)
    values = tf.gather(logits, classes, batch_dims=1)
    values -= losses.chosen(logits, examples.labels)[:, None]
  gradients = tape.batch_jacobian(values, points)  # all classes in one pass
  distances = tf.abs(values) / tf.maximum(ball.dual_norm(gradients), 1e-12)
  index = tf.argmin(distances, axis=1)
  value, gradient, distance = (
    tf.gather(x, index, batch_dims=1) for x in (values, gradients, distances)
  )
  return Boundary(logits, value, gradient, distance)


def shortest_way(
  ball: norms.Ball, points: tf.Tensor, normals: tf.Tensor, values: tf.Tensor
) -> tf.Tensor:
  """The smallest move to where a linear function, 0 at the hyperplane, vanishes.

      minimise |d|   subject to   value + normal . d = 0   and   0 <= point + d <= 1

  Where no point of [0, 1] lies on the hyperplane, the one nearest to it is moved to.

  Args:
    ball: whose norm counts; not its radius.
    points: float32 [B, H, W, C] in [0, 1].
    normals: float32 [B, H, W, C], the gradient.
    values: float32 [B], of the function at the points.

  Returns:
    float32 [B, H, W, C].
  """
  size = points.shape[1:].num_elements()
  up = -tf.sign(normals) * tf.sign(values)[:, None, None, None]
  headroom = tf.where(up > 0.0, 1.0 - points, points) * tf.abs(up)
  headroom = tf.reshape(headroom, [-1, size])
  weights, target = tf.reshape(tf.abs(normals), [-1, size]), tf.abs(values)
  if isinstance(ball, norms.L1):
    move = _largest_first(weights, headroom, target)
  elif isinstance(ball, norms.L2):
    kinks = tf.math.divide_no_nan(headroom, weights)
    move = tf.minimum(_level(weights**2, kinks, target) * weights, headroom)
  else:
    move = tf.minimum(_level(weights, headroom, target), headroom)
  return up * tf.reshape(move, tf.shape(points))


def _largest_first(
  weights: tf.Tensor, headroom: tf.Tensor, target: tf.Tensor
) -> tf.Tensor:
  """Moves the entries of the largest weights as far as they go; [B, D]."""
  ranked, order = tf.math.top_k(weights, weights.shape[1])
  gains = ranked * tf.gather(headroom, order, batch_dims=1)
  before = tf.cumsum(gains, axis=1, exclusive=True)
  gains = tf.clip_by_value(target[:, None] - before, 0.0, gains)
  moves = tf.math.divide_no_nan(gains, ranked)
  return tf.gather(moves, tf.argsort(order, axis=1), batch_dims=1)


def _level(slopes: tf.Tensor, kinks: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
  """The t for which sum_i slopes_i min(t, kinks_i) is the target; [B, 1].

  The largest number, which times 0 is 0, if the sum never gets there.
  """
  falling, order = tf.math.top_k(-kinks, kinks.shape[1])
  kinks, slopes = -falling, tf.gather(slopes, order, batch_dims=1)
  reached = tf.cumsum(slopes * kinks, axis=1, exclusive=True)
  rising = tf.cumsum(slopes, axis=1, reverse=True)
  sums = reached + rising * kinks
  piece = tf.reduce_sum(tf.cast(sums < target[:, None], tf.int32), axis=1)
  last = tf.minimum(piece, kinks.shape[1] - 1)
  reached, rising = (tf.gather(x, last, batch_dims=1) for x in (reached, rising))
  level = tf.math.divide_no_nan(target - reached, rising)
  return tf.where(piece > last, level.dtype.max, level)[:, None]
