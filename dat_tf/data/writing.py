"""Writing TFRecord files of images, none of which is ever there by half."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Optional, Union

import numpy as np
import tensorflow as tf

from dat_tf.base.errors import UserError, one_line
from dat_tf.base.files import check_name, complete_file
from dat_tf.data.stored_image import EncodedImage

_FIVE_DIGITS = "[0-9]" * 5


def _example(features: Mapping[str, Union[bytes, Iterable[int]]]) -> bytes:
  """A serialized record of byte strings and of lists of integers."""

  def feature(value: Union[bytes, Iterable[int]]) -> tf.train.Feature:
    if isinstance(value, bytes):
      return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=value))

  named = {name: feature(value) for name, value in features.items()}
  return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString(
    deterministic=True
  )


def image_example(image: np.ndarray, label: Optional[int]) -> bytes:
  """A serialized record in our own form: bare pixels, so that no codec is needed.

  Args:
    image: uint8 [height, width, channels].
    label: The class, counted from 0; None leaves it out.
  """
  features: dict[str, Union[bytes, Iterable[int]]] = {
    "image/raw": image.tobytes(),
    "image/shape": image.shape,
  }
  if label is not None:
    features["label"] = [label]
  return _example(features)


def encoded_example(
  image: EncodedImage,
  filename: str,
  label: Optional[int] = None,
  class_features: Optional[Mapping[str, str]] = None,
) -> bytes:
  """A serialized record in the canonical ImageNet form.

  Args:
    image: The encoded image.
    filename: The name, without folders, of the file that it comes from.
    label: The class, counted from 0 (the form itself counts from 1); None leaves it
      out.
    class_features: More about the class, by feature name.
  """
  features: dict[str, Union[bytes, Iterable[int]]] = {
    "image/encoded": image.content,
    "image/format": image.format.encode(),
    "image/colorspace": b"Grayscale" if image.channels == 1 else b"RGB",
    "image/channels": [image.channels],
    "image/height": [image.height],
    "image/width": [image.width],
    "image/filename": os.fsencode(filename),
  }
  if label is not None:
    features["image/class/label"] = [label + 1]
  for name, value in (class_features or {}).items():
    features[name] = os.fsencode(value)
  return _example(features)


def shard_paths(directory: str, name: str, num_shards: int) -> list[str]:
  """The files NAME-00000-of-00004 and so on of a set.

  Raises:
    UserError: `directory` already holds `name` split into another number of files,
      which a pattern such as `train-*` would read as well; or no pattern could name
      its files.
  """
  check_name(directory, "output_dir", "[]*?\\\n,")
  paths = [
    os.path.join(directory, f"{name}-{shard:05d}-of-{num_shards:05d}")
    for shard in range(num_shards)
  ]
  if stale := sorted(set(present_shards(directory, name)) - set(paths)):
    raise UserError(
      f"{stale[0]} is there already, one of a set of other than {num_shards} files: "
      "remove that set or write to another directory."
    )
  return paths


def present_shards(directory: str, name: str) -> list[str]:
  """The files of any set `name`, of whatever number of files, that are there."""
  return tf.io.gfile.glob(
    os.path.join(directory, f"{name}-{_FIVE_DIGITS}-of-{_FIVE_DIGITS}")
  )


def remove_leftovers(directory: str, name: str) -> None:
  """Removes the temporary files of a set's runs that could not do so themselves."""
  for path in tf.io.gfile.glob(
    os.path.join(directory, f".{name}-{_FIVE_DIGITS}-of-{_FIVE_DIGITS}.*")
  ):
    tf.io.gfile.remove(path)


@contextlib.contextmanager
def explain_failed_writing(directory: str) -> Iterator[None]:
  """Turns TensorFlow's errors, a full disc among them, into one line.

  Raises:
    UserError: The body raised a `tf.errors.OpError`.
  """
  try:
    yield
  except tf.errors.OpError as error:
    raise UserError(
      f"{directory} cannot be written ({one_line(error)}): mend the path or make room."
    ) from error


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
    UserError: `directory` cannot be written, or already holds `name` split into
      another number of files.
  """
  paths = shard_paths(directory, name, num_shards)
  with explain_failed_writing(directory), contextlib.ExitStack() as stack:
    tf.io.gfile.makedirs(directory)
    # Left last to first: all files are closed before the first gets its name.
    files = [stack.enter_context(complete_file(path)) for path in paths]
    writers = [stack.enter_context(tf.io.TFRecordWriter(file)) for file in files]
    for number, example in enumerate(examples):
      writers[number % num_shards].write(example)
  return paths
