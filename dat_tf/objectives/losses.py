"""Per-example losses and hits, from logits and either kind of label."""

from __future__ import annotations

import tensorflow as tf


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """Cross-entropy of each example, in nats.

  Args:
    logits: [B, classes], float.
    labels: [B] integer class numbers, or [B, classes] class probabilities.

  Returns:
    [B], float32, at least 0.
  """
  logits, labels = tf.cast(logits, tf.float32), tf.convert_to_tensor(labels)
  if labels.shape.rank == 1:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
  return tf.nn.softmax_cross_entropy_with_logits(tf.cast(labels, tf.float32), logits)


def hits(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """[B], float32: 1 where the largest logit is the label's, else 0."""
  labels = tf.convert_to_tensor(labels)
  classes = labels if labels.shape.rank == 1 else tf.argmax(labels, axis=-1)
  predictions = tf.argmax(logits, axis=-1, output_type=classes.dtype)
  return tf.cast(predictions == classes, tf.float32)
