"""A classifier's loss and its gradient with respect to each image."""

from __future__ import annotations

from typing import Callable, NamedTuple

import tensorflow as tf

from dat_tf.objectives.objective import Classifier


class LossAndGradient(NamedTuple):
  """A classifier at some images: logits [B, classes], loss [B], gradient [B, ...]."""

  logits: tf.Tensor
  loss: tf.Tensor
  gradient: tf.Tensor


def loss_and_gradient(
  classifier: Classifier,
  images: tf.Tensor,
  loss: Callable[[tf.Tensor], tf.Tensor],
  samples: int = 1,
) -> LossAndGradient:
  """Logits, loss and its gradient with respect to each image.

  Args:
    classifier: from images to logits.
    images: float32 [B, H, W, C].
    loss: logits -> [B].
    samples: calls of the classifier, of which the means are taken, for a classifier
      that draws random numbers (Athalye et al., ICML 2018: EOT).
  """

  def sample() -> LossAndGradient:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(images)
      logits = classifier(images)
      values = loss(logits)
      # The sum, not the mean: each example's gradient is then its own, whatever the
      # batch size, and does not underflow in half precision.
      total = tf.reduce_sum(values)
    return LossAndGradient(logits, values, tape.gradient(total, images))

  if samples == 1:
    return sample()

  def add(
    number: tf.Tensor, before: LossAndGradient
  ) -> tuple[tf.Tensor, LossAndGradient]:
    return number + 1, LossAndGradient(*(x + y for x, y in zip(before, sample())))

  _, sums = tf.while_loop(
    lambda number, _: number < samples,
    add,
    (tf.constant(1), sample()),
    parallel_iterations=1,
  )
  return LossAndGradient(*(x / samples for x in sums))
