"""Whether files of several workers are the same, and those to train and to test on not.

Of large sets only a part is read: what is found is so, and what is not may still be.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

import tensorflow as tf
from google.protobuf.message import DecodeError

from dat_tf.base.errors import UserError
from dat_tf.data import records

# Records of a set that are read.
_SAMPLE = 1000
# The last bytes of a file, in which is the checksum of all of its last record.
_TAIL_BYTES = 64
# Sets have some images twice by themselves.
_FEW, _SHARE = 3, 0.02


def describe(paths: Sequence[str]) -> str:
  """The files' names and sizes, and a hash of the end of each; for `check_same`."""
  return json.dumps([(path, *_size_and_tail(path)) for path in paths])


def _size_and_tail(path: str) -> tuple[int, str]:
  size = tf.io.gfile.stat(path).length
  with tf.io.gfile.GFile(path, "rb") as file:
    file.seek(max(0, size - _TAIL_BYTES))
    return size, hashlib.sha256(file.read()).hexdigest()[:16]


def check_same(texts: Sequence[str], pattern: str) -> None:
  """Compares the files of all workers.

  Args:
    texts: each `describe`, by the worker's index.
    pattern: that the files match.

  Raises:
    UserError: a worker sees others than worker 0.
  """
  first, *others = ({path: rest for path, *rest in json.loads(t)} for t in texts)
  for index, other in enumerate(others, start=1):
    for path in sorted(first.keys() | other.keys()):
      here, there = other.get(path), first.get(path)
      if here == there:
        continue
      if here is None or there is None:
        what = f"only worker {0 if here is None else index} has {path}"
      elif here[0] != there[0]:
        what = f"{path} has {here[0]} bytes there, and {there[0]} on worker 0"
      else:
        what = f"{path} ends with another record there than on worker 0"
      raise UserError(
        f"Worker {index} sees other files than worker 0 for {pattern}: {what}. Give "
        "all workers the same files, or set `data_is_local` where each has its own."
      )


class Sample(NamedTuple):
  """Some records of a set of files.

  Attributes:
    labels: the numbers of classes that they have, as they are stored.
    images: hashes of the images, one for each record.
    is_whole: whether these are all records.
  """

  labels: frozenset[int]
  images: list[bytes]
  is_whole: bool


def sample(paths: Sequence[str], form: records.RecordForm) -> Sample:
  """Reads up to 1,000 records, as many from each file, or one from each of so many."""
  each = -(-_SAMPLE // len(paths))
  labels: set[int] = set()
  images: list[bytes] = []
  is_whole = len(paths) <= _SAMPLE
  for path in paths[:_SAMPLE]:
    found = list(itertools.islice(_features(path), each + 1))
    is_whole = is_whole and len(found) <= each
    for features in found[:each]:
      labels.update(features[form.label].int64_list.value[:1])
      content = b"".join(features[form.image].bytes_list.value[:1])
      images.append(hashlib.sha256(content).digest())
  return Sample(frozenset(labels), images, is_whole)


def _features(path: str) -> Iterator[dict[str, tf.train.Feature]]:
  try:
    for serialized in tf.data.TFRecordDataset(path).as_numpy_iterator():
      yield tf.train.Example.FromString(serialized).features.feature
  except (*records.DATA_ERRORS, DecodeError):
    return  # training names that record


def warning(
  train: Sequence[str],
  test: Sequence[str],
  train_form: records.RecordForm,
  test_form: records.RecordForm,
) -> Optional[str]:
  """What makes figures of a test doubtful, in a line; None if nothing is seen.

  Args:
    train: files to train on.
    test: files to test on.
    train_form: the form of the former.
    test_form: of the latter.
  """
  known = {_size_and_tail(path) for path in train}
  same = [path for path in test if _size_and_tail(path) in known]
  if same:
    return (
      f"{same[0]} is both trained and tested on ({len(same)} of {len(test)} files of "
      "the test): accuracies are not those of new images"
    )
  ours, theirs = sample(train, train_form), sample(test, test_form)
  both = sum(image in set(ours.images) for image in set(theirs.images))
  if both >= _FEW and both > _SHARE * len(theirs.images):
    return (
      f"{both} of the first {len(theirs.images)} test images are among the first "
      f"{len(ours.images)} to train on: accuracies are not those of new images"
    )
  if not ours.labels or not theirs.labels or train_form.name != test_form.name:
    return None
  if any(theirs.labels == {label + by for label in ours.labels} for by in (-1, 1)):
    a, b = (f"{min(s.labels)} to {max(s.labels)}" for s in (ours, theirs))
    return (
      f"the labels to train on are {a}, those of the test {b}: one of the two seems to "
      "count classes from another number; write them alike"
    )
  unknown = sorted(theirs.labels - ours.labels)
  if unknown and ours.is_whole:
    return (
      f"{len(unknown)} classes of the test, such as label {unknown[0]}, are not among "
      "those to train on"
    )
  return None
