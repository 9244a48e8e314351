"""What attacks of evaluation climb, beside the cross-entropy.

All grow with the attack's success; labels are int [B], logits [B, classes].
"""

from __future__ import annotations

import tensorflow as tf


def margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """The largest other logit less the label's: positive where the label lost; [B]."""
  return tf.reduce_max(others(logits, labels), axis=1) - chosen(logits, labels)


def dlr(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """The difference of logits ratio (Croce & Hein, ICML 2020), [B].

  The margin over the distance from the largest to the third largest logit: neither a
  shift of the logits nor their scale changes it. Three classes at least.
  """
  largest = tf.math.top_k(logits, 3).values
  return margin(logits, labels) / (largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_dlr(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
  """DLR towards a class of choice, int [B]; [B]. Four classes at least."""
  largest = tf.math.top_k(logits, 4).values
  scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2.0
  return (chosen(logits, targets) - chosen(logits, labels)) / (scale + 1e-12)


def chosen(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
  """Each example's logit of one class; [B]."""
  return tf.gather(logits, classes, batch_dims=1)


def others(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """The logits with the label's at minus infinity; [B, classes]."""
  is_label = tf.one_hot(labels, logits.shape[1], True, False, dtype=tf.bool)
  return tf.where(is_label, tf.constant(float("-inf"), logits.dtype), logits)
