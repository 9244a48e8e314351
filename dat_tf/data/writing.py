"""Writing TFRecord files of labelled images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from dat_tf.errors import UserError, one_line


def image_example(image: np.ndarray, label: int) -> bytes:
  """A serialized record in our own form: bare pixels, so that no codec is needed.

  Args:
    image: uint8 [height, width, channels].
    label: The class, counted from 0.
  """
  feature = {
    "image/raw": tf.train.Feature(
      bytes_list=tf.train.BytesList(value=[image.tobytes()])
    ),
    "image/shape": tf.train.Feature(int64_list=tf.train.Int64List(value=image.shape)),
    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
  }
  return tf.train.Example(
    features=tf.train.Features(feature=feature)
  ).SerializeToString(deterministic=True)


def write_shards(
  examples: Iterable[bytes], directory: str, name: str, num_shards: int
) -> list[str]:
  """Deals serialized records out to files NAME-00000-of-00004 and so on, in turn.

  The files appear under their names only when all are complete. On any failure,
  interruption included, what was written goes, and files already there stay.

  Args:
    examples: Serialized records, read once.
    directory: Where the files go; made if need be.
    name: The first part of the file names, for example "train".
    num_shards: The number of files, at least 1. Shards of equal size need a multiple
      of it.

  Returns:
    The files' paths, in order.

  Raises:
    UserError: `directory` already holds `name` split into another number of files,
      which a pattern such as `train-*` would read as well.
  """
  paths = [
    os.path.join(directory, f"{name}-{shard:05d}-of-{num_shards:05d}")
    for shard in range(num_shards)
  ]
  five_digits = "[0-9]" * 5
  present = tf.io.gfile.glob(
    os.path.join(directory, f"{name}-{five_digits}-of-{five_digits}")
  )
  if stale := sorted(set(present) - set(paths)):
    raise UserError(
      f"{stale[0]} is there already, one of a set of other than {num_shards} files: "
      "remove that set or write to another directory."
    )
  # The leading dot keeps them out of every pattern that begins with the name.
  temporary = [
    os.path.join(directory, f".{os.path.basename(path)}.{os.getpid()}")
    for path in paths
  ]
  try:
    tf.io.gfile.makedirs(directory)
    with contextlib.ExitStack() as stack:
      writers = [stack.enter_context(tf.io.TFRecordWriter(file)) for file in temporary]
      for number, example in enumerate(examples):
        writers[number % num_shards].write(example)
    for file, path in zip(temporary, paths):
      tf.io.gfile.rename(file, path, overwrite=True)
  except tf.errors.OpError as error:
    raise UserError(
      f"{directory} cannot be written ({one_line(error)}): mend the path or make room."
    ) from error
  finally:
    for leftover in filter(tf.io.gfile.exists, temporary):
      tf.io.gfile.remove(leftover)
  return paths
