"""What training makes of whole batches: it joins them, or repeats them."""

from __future__ import annotations

import tensorflow as tf


def mixed(
  labeled: tf.data.Dataset, unlabeled: tf.data.Dataset, num_classes: int
) -> tf.data.Dataset:
  """Joins each batch of one dataset with one of the other.

  Args:
    labeled: As `pipeline.training_dataset` makes it.
    unlabeled: A dataset of the same kind; labels may be -1, or soft (float32 [batch,
      num_classes]), in which case all become so.
    num_classes: Of the labels.

  Returns:
    Batches of both sizes together, with a further entry: `is_labeled`, float32 [batch],
    1 for examples of `labeled`. The ids of the others become negative.
  """
  is_soft = unlabeled.element_spec["label"].dtype.is_floating

  def join(
    first: dict[str, tf.Tensor], second: dict[str, tf.Tensor]
  ) -> dict[str, tf.Tensor]:
    if is_soft:
      first = {**first, "label": tf.one_hot(first["label"], num_classes)}
    first["is_labeled"] = tf.ones_like(first["weight"])
    second["is_labeled"] = tf.zeros_like(second["weight"])
    # Both number their files from 0.
    second["example_id"] = tf.bitwise.invert(second["example_id"])
    return {name: tf.concat([first[name], second[name]], axis=0) for name in first}

  pairs = tf.data.Dataset.zip((labeled, unlabeled))
  return pairs.map(join, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def replayed(dataset: tf.data.Dataset, replays: int, done: int = 0) -> tf.data.Dataset:
  """Each of a dataset's batches `replays` times in a row, the first `done` less."""
  if replays == 1:
    return dataset
  return dataset.flat_map(
    lambda *batch: tf.data.Dataset.from_tensors(
      batch[0] if len(batch) == 1 else batch
    ).repeat(replays)
  ).skip(done)
