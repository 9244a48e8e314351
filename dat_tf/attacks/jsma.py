"""JSMA: a few pixels, each changed as far as it goes.

Papernot et al., "The limitations of deep learning in adversarial settings", EuroS&P
2016; on logits, as Carlini & Wagner (S&P 2017) found it to work better.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Optional

import numpy as np
import tensorflow as tf

from dat_tf.attacks import losses, norms
from dat_tf.attacks.iterative import (
  Classifier,
  Examples,
  Smallest,
  State,
  keep_smaller,
  select,
  unfooled,
)
from dat_tf.base import hashing

# The largest distortion of the paper: the share of an image's values that may change.
_SHARE = 0.145
# Weights of one derivative beside the other, and how many of the best entries by each
# weighting are tried in pairs.
_WEIGHTS = 2.0 ** np.arange(-6, 7, dtype=np.float32)
_BEST = 8


@dataclasses.dataclass(frozen=True)
class JSMA(Smallest):
  """The Jacobian saliency map attack.

  A step sets a pair of values to 1, p and q with the largest saliency

      -alpha beta,  alpha = dt/dp + dt/dq > 0,  beta = do/dp + do/dq < 0,

  t the target's logit and o the sum of the others. Where no pair has one the search
  ends; where the derivatives all vanish it takes a pair at random. (The paper looks at
  all pairs, which takes the square of the number of values; this at those among the
  best few by several weighted sums of dt and -do, where the best pair nearly always
  is.)

  Attributes:
    ball: in whose norm the result is measured; a perturbation inside breaks an example.
    steps: pairs that are set at most; unless given so many that 14.5 % of an image's
      values may change, as in the paper.
    targets: number of wrong classes, the likeliest first: one round each.
  """

  ball: norms.Ball
  steps: Optional[int] = None
  targets: int = 9

  def num_steps(self, size: int) -> int:
    pairs = math.ceil(_SHARE * size / 2) if self.steps is None else self.steps
    return pairs + 1  # the last one looks at the last point

  def num_rounds(self, num_classes: int) -> int:
    return min(self.targets, num_classes - 1)

  def start(self, examples: Examples) -> State:
    return {**unfooled(examples.images), "point": examples.images}

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    point, targets = state["point"], examples.targets()
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(point)
      logits = classifier(point)
      target = losses.chosen(logits, targets)
      values = tf.stack([target, tf.reduce_sum(logits, axis=1) - target], axis=1)
    jacobian = tape.batch_jacobian(values, point)
    up, down = tf.unstack(tf.reshape(jacobian, [-1, 2, examples.size]), axis=1)
    # A random order, where there is no other.
    noise = hashing.uniform(examples.step_keys(k, stream=5), [examples.size])
    flat = norms.is_zero(jacobian)
    up, fall = select(flat, noise, up), select(flat, tf.ones_like(down), -down)
    chosen = _best_pair(up, fall, tf.reshape(point < 1.0, [-1, examples.size]))
    return {
      **keep_smaller(self.ball, examples, state, point, logits),
      "point": tf.where(tf.reshape(chosen, tf.shape(point)), 1.0, point),
    }


def _best_pair(up: tf.Tensor, fall: tf.Tensor, free: tf.Tensor) -> tf.Tensor:
  """Where the two entries are whose summed `up` and `fall` have the largest product.

  Args:
    up: float32 [B, n], of which a pair's sum must be positive.
    fall: float32 [B, n], of which a pair's sum must be positive.
    free: bool [B, n], which entries may be chosen.

  Returns:
    bool [B, n], True at two entries, or at the only one if n is 1; nowhere if there is
    no such pair.
  """
  up, fall = (
    tf.math.divide_no_nan(x, tf.reduce_max(tf.abs(x), axis=1, keepdims=True))
    for x in (up, fall)
  )
  size = up.shape[1]
  scores = _WEIGHTS[:, None] * up[:, None] + fall[:, None] / _WEIGHTS[:, None]
  scores = tf.where(free[:, None], scores, float("-inf"))
  tried = tf.math.top_k(scores, min(_BEST, size)).indices
  tried = tf.reshape(tried, [-1, len(_WEIGHTS) * min(_BEST, size)])

  def sums(x: tf.Tensor) -> tf.Tensor:
    x = tf.gather(x, tried, batch_dims=1)
    return x[:, :, None] + x[:, None]

  both_free = tf.where(free, 0.0, float("-inf"))
  up, fall = sums(up) + sums(both_free), sums(fall)
  pair = (tried[:, :, None] != tried[:, None]) | (size == 1)
  gain = tf.where(pair & (up > 0.0) & (fall > 0.0), up * fall, 0.0)
  gain = tf.reshape(gain, [-1, tried.shape[1] ** 2])
  best = tf.argmax(gain, axis=1, output_type=tf.int32)
  places = tf.stack([best // tried.shape[1], best % tried.shape[1]], axis=1)
  entries = tf.gather(tried, places, batch_dims=1)
  is_entry = tf.one_hot(entries, size, on_value=True, off_value=False, dtype=tf.bool)
  chosen = tf.reduce_any(is_entry, axis=1)
  return chosen & (tf.reduce_max(gain, axis=1, keepdims=True) > 0.0)
