"""What attacks of evaluation climb, beside the cross-entropy.

All grow with the attack's success; labels are int [B], logits [B, classes].
"""

from __future__ import annotations

from typing import Union

import tensorflow as tf


def margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """The largest other logit less the label's: positive where the label lost; [B]."""
  return tf.reduce_max(others(logits, labels), axis=1) - chosen(logits, labels)


def dlr(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """The difference of logits ratio (Croce & Hein, ICML 2020), [B].

  The margin over the distance from the largest to the third largest logit: neither a
  shift of the logits nor their scale changes it. The paper defines it for three classes
  or more; of two classes this is the margin alone.
  """
  return margin(logits, labels) / _scale(logits, 3)


def targeted_dlr(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
  """DLR towards a class of choice, int [B]; [B].

  The target's logit less the label's, over the distance from the largest logit to the
  mean of the third and the fourth. The paper defines it for four classes or more; of
  three classes this takes the third logit for that mean, of two it divides by nothing.
  """
  return (chosen(logits, targets) - chosen(logits, labels)) / _scale(logits, 4)


def _scale(logits: tf.Tensor, most: int) -> Union[tf.Tensor, float]:
  """The largest logit less the mean of the third to the `most`-th; [B]."""
  if logits.shape[1] < 3:
    return 1.0
  largest = tf.math.top_k(logits, min(most, logits.shape[1])).values
  return largest[:, 0] - tf.reduce_mean(largest[:, 2:], axis=1) + 1e-12


def chosen(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
  """Each example's logit of one class; [B]."""
  return tf.gather(logits, classes, batch_dims=1)


def others(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """The logits with the label's at minus infinity; [B, classes]."""
  is_label = tf.one_hot(
    labels, logits.shape[1], on_value=True, off_value=False, dtype=tf.bool
  )
  return tf.where(is_label, tf.constant(float("-inf"), logits.dtype), logits)
