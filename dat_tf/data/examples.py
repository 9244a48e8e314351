"""Images, labels and weights as a user gives them, brought to one form and checked."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import tensorflow as tf

from dat_tf.base.errors import UserError

PROBABILITIES = "The classifier gives probabilities where logits are expected"

# How far from 1 the probabilities of all classes may be together.
_ROUNDING = 1e-3


def checked_images(images: tf.Tensor) -> tf.Tensor:
  """The images, float32, once it is seen that they lie in [0, 1].

  Raises:
    UserError: they are integers.
    tf.errors.InvalidArgumentError: When run on others.
  """
  if not images.dtype.is_floating:
    raise UserError(
      f"The images are {images.dtype.name}; cast them to float32 and divide by 255."
    )
  lowest, highest = tf.reduce_min(images), tf.reduce_max(images)
  check = tf.debugging.Assert(
    (lowest >= 0.0) & (highest <= 1.0),
    ["Images must lie in [0, 1] (divide by 255?); these lie in", lowest, highest],
  )
  with tf.control_dependencies([check]):
    return tf.cast(images, tf.float32)


def class_numbers_or_rows(labels: tf.Tensor, classes: Optional[int]) -> tf.Tensor:
  """Labels as losses take them.

  Args:
    labels: class numbers of any type, [B] or, as Keras' data sets have them, [B, 1]; or
      probabilities of the classes, [B, classes]. Where one model was given both, Keras
      traces its step for labels of any shape, and which they are shows when it runs.
    classes: how many there are; None if that is not known.

  Returns:
    int32 or int64 [B], or float32 [B, classes].

  Raises:
    UserError: they are of another shape.
    tf.errors.InvalidArgumentError: When run on class numbers that are not whole.
  """
  rank = labels.shape.rank
  if classes and (rank is None or rank == 2 and labels.shape[1] is None):
    return _rows(labels, classes)
  if rank == 2 and labels.shape[-1] != 1:
    return tf.cast(labels, tf.float32)
  if rank not in (1, 2):
    raise UserError(
      f"The labels are of the shape {labels.shape}: give class numbers, [batch], or "
      "probabilities, [batch, classes]; tf.ensure_shape states an unknown shape."
    )
  labels = labels[:, 0] if rank == 2 else labels
  if labels.dtype in (tf.int32, tf.int64):
    return labels
  whole = tf.cast(labels, tf.int64)
  if not labels.dtype.is_floating:
    return whole
  check = tf.debugging.Assert(
    tf.reduce_all(tf.cast(whole, labels.dtype) == labels),
    ["Labels must be whole numbers of classes; these are", labels],
  )
  with tf.control_dependencies([check]):
    return tf.identity(whole)


def _rows(labels: tf.Tensor, classes: int) -> tf.Tensor:
  """Rows float32 [B, classes] of labels whose shape shows only when it runs."""
  columns = tf.reshape(labels, [tf.shape(labels)[0], -1])

  def of_numbers() -> tf.Tensor:
    numbers = tf.cast(class_numbers_or_rows(columns[:, 0], classes), tf.int64)
    is_right = tf.reduce_all((numbers >= 0) & (numbers < classes))
    message = [f"Class numbers are labels in [0, {classes}); these are", numbers]
    with tf.control_dependencies([tf.debugging.Assert(is_right, message)]):
      return tf.one_hot(numbers, classes)

  rows = tf.cond(
    tf.shape(columns)[1] == 1, of_numbers, lambda: tf.cast(columns, tf.float32)
  )
  return tf.ensure_shape(rows, [None, classes])


def weights_of(weights: Optional[tf.Tensor], size: tf.Tensor) -> tf.Tensor:
  """Weights, float32 [B]: ones if there are none; those of [B, 1] lose their axis.

  Raises:
    UserError: they are of another shape.
  """
  if weights is None:
    return tf.ones(size)
  # An unknown shape is seen to be right, or not, when it runs.
  if weights.shape.rank not in (None, 1) and weights.shape[1:] != [1]:
    raise UserError(
      f"The weights are of the shape {weights.shape}: give one for each image, [batch]."
    )
  return tf.reshape(tf.cast(weights, tf.float32), [size])


def checked_logits(logits: tf.Tensor) -> tf.Tensor:
  """Logits [B, classes], once it is seen that they are no probabilities.

  Raises:
    tf.errors.InvalidArgumentError: When run on two or more rows that are.
  """
  sums = tf.reduce_sum(logits, axis=-1)
  probable = tf.reduce_all(logits >= 0.0) & tf.reduce_all(
    tf.abs(sums - 1.0) < tf.cast(_ROUNDING, sums.dtype)
  )
  message = f"{PROBABILITIES}: leave out its last softmax"
  check = tf.debugging.Assert(~probable | (tf.size(sums) < 2), [message])
  with tf.control_dependencies([check]):
    return tf.identity(logits)


def class_numbers(labels: Any, num_classes: int) -> np.ndarray:
  """Class numbers, int32 [N], of an array of any type, [N] or [N, 1].

  Raises:
    UserError: they are of another shape, not whole, or outside [0, num_classes).
  """
  labels = np.asarray(labels)
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1:
    raise UserError(
      f"The labels are of the shape {labels.shape}: give class numbers, [N], such as "
      "labels.argmax(axis=1)."
    )
  whole = labels.astype(np.int32)
  if not np.array_equal(whole, labels):
    raise UserError("The labels are no whole numbers: give class numbers from 0 on.")
  if len(whole) and not (whole.min() >= 0 and whole.max() < num_classes):
    raise UserError(
      f"The labels reach from {whole.min()} to {whole.max()}, and the model has "
      f"{num_classes} classes, from 0 on."
    )
  return whole
