"""Per-example losses, and what is correct, from logits and either kind of label."""

from __future__ import annotations

from typing import Callable

import tensorflow as tf

# Images, float32 [B, H, W, C] in [0, 1] -> logits [B, classes]. That of an objective
# also takes `training`, and has `trainable_variables`.
Classifier = Callable[..., tf.Tensor]


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """Cross-entropy of each example, in nats.

  Computed in float64: in float32 the gradient with respect to the label's logit
  underflows to 0 once that logit leads by 17 (in float64 by 36), and attacks on a
  confident network stall. The last bits, which depend on the place in the batch, are
  gone from what is returned.

  Args:
    logits: [B, classes], float.
    labels: [B] integer class numbers, or [B, classes] class probabilities; rows may
      also add up to something else, such as zeros for no label.

  Returns:
    [B], float32, at least 0.
  """
  logits, labels = tf.cast(logits, tf.float64), tf.convert_to_tensor(labels)
  if labels.shape.rank == 1:
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
  else:
    # TensorFlow's own takes its gradient for rows that add up to 1, whatever they do.
    log_p = tf.nn.log_softmax(logits)
    losses = -tf.reduce_sum(tf.cast(labels, tf.float64) * log_p, axis=-1)
  return tf.cast(losses, tf.float32)


def correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
  """[B], float32: 1 where the largest logit is the label's, else 0."""
  labels = tf.convert_to_tensor(labels)
  classes = labels if labels.shape.rank == 1 else tf.argmax(labels, axis=-1)
  predictions = tf.argmax(logits, axis=-1, output_type=classes.dtype)
  return tf.cast(predictions == classes, tf.float32)


def kl_divergence(logits: tf.Tensor, other_logits: tf.Tensor) -> tf.Tensor:
  """KL(p || q) of each example, in nats: [B], float32, at least 0 but for rounding.

  Args:
    logits: [B, classes], those of p.
    other_logits: [B, classes], those of q.
  """
  log_p = tf.nn.log_softmax(tf.cast(logits, tf.float32))
  log_q = tf.nn.log_softmax(tf.cast(other_logits, tf.float32))
  return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def class_rows(labels: tf.Tensor, classes: int) -> tf.Tensor:
  """float32 [B, classes]: class probabilities, whichever kind the labels are."""
  labels = tf.convert_to_tensor(labels)
  if labels.shape.rank == 1:
    return tf.one_hot(labels, classes)
  return tf.cast(labels, tf.float32)


def input_gradient(
  classifier: Classifier,
  images: tf.Tensor,
  labels: tf.Tensor,
  loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = cross_entropy,
) -> tf.Tensor:
  """Each example's gradient of its own loss, [B, H, W, C]; itself differentiable."""
  return gradient_of(lambda points: loss(classifier(points), labels), images)


def gradient_of(
  function: Callable[[tf.Tensor], tf.Tensor], points: tf.Tensor
) -> tf.Tensor:
  """Each example's gradient of a function of it alone, as `points`; differentiable.

  Args:
    function: points -> [B].
    points: float [B, H, W, C].
  """
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(points)
    # The sum, not the mean: whatever the batch size, and without underflow in half
    # precision.
    total = tf.reduce_sum(function(points))
  return tape.gradient(total, points)
