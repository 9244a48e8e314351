"""TFRecord files of labelled images: their forms, and what may be wrong with them.

A record is a serialized `tf.train.Example`, a dictionary of features. Whose names those
are differs from writer to writer; `FORMS` lists the three forms that are read here.
Records are numbered from 0 in their file, in messages too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Optional

import tensorflow as tf
from google.protobuf.message import DecodeError

from dat_tf.errors import UserError, one_line


@dataclasses.dataclass(frozen=True)
class RecordForm:
  """The names under which one kind of writer stores an image and its label.

  Attributes:
    name: What people call the form.
    image: The feature that holds the image: bytes.
    label: The feature that holds the class: one int64.
    first_label: The label of the first class, 0 or 1.
    shape: The feature that holds [height, width, channels], three int64, if the image
      is stored as bare pixels (uint8, row by row); None if it is encoded (JPEG, PNG).
  """

  name: str
  image: str
  label: str
  first_label: int
  shape: Optional[str] = None

  @property
  def features(self) -> dict[str, tf.io.FixedLenFeature]:
    """What `tf.io.parse_single_example` needs to know to read a record."""
    features = {
      self.image: tf.io.FixedLenFeature([], tf.string),
      self.label: tf.io.FixedLenFeature([], tf.int64),
    }
    if self.shape is not None:
      features[self.shape] = tf.io.FixedLenFeature([3], tf.int64)
    return features

  def parse(
    self, serialized: tf.Tensor, channels: int, first_label: Optional[int] = None
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads one record, in graph operations.

    Args:
      serialized: A serialized `tf.train.Example`, string [].
      channels: 1 or 3, into which encoded images are converted; 0 keeps theirs. Bare
        pixels always keep the channels that they have.
      first_label: The label of the first class in the file; None is the form's own.

    Returns:
      The image, uint8 [height, width, channels], and its label, int64 [], which
      counts from 0.

    Raises:
      tf.errors.InvalidArgumentError: When run on a record that lacks a feature or
        whose image does not decode.
    """
    features = tf.io.parse_single_example(serialized, self.features)
    if self.shape is None:
      encoded = features[self.image]
      image = tf.io.decode_image(encoded, channels, expand_animations=False)
    else:
      pixels = tf.io.decode_raw(features[self.image], tf.uint8)
      image = tf.reshape(pixels, features[self.shape])
    first = self.first_label if first_label is None else first_label
    return image, features[self.label] - first


IMAGENET = RecordForm("canonical ImageNet", "image/encoded", "image/class/label", 1)
TFDS = RecordForm("TFDS", "image", "label", 0)
DAT = RecordForm("DAT-TF", "image/raw", "label", 0, shape="image/shape")
FORMS = (IMAGENET, TFDS, DAT)


def detect_form(path: str) -> RecordForm:
  """Tells a file's form by the feature names of its first record.

  Raises:
    UserError: The file has no record, its first one is damaged, or its features are
      those of no known form.
  """
  try:
    serialized = next(tf.data.TFRecordDataset(path).take(1).as_numpy_iterator(), None)
    if serialized is None:
      raise UserError(f"{path} holds no record: remove the file or write it again.")
    found = set(tf.train.Example.FromString(serialized).features.feature)
  except (tf.errors.DataLossError, DecodeError):
    raise UserError(
      f"{path}: record 0 (counted from 0) is not a readable tf.train.Example; is the "
      "file an uncompressed TFRecord file? Write or copy it again."
    ) from None
  for form in FORMS:
    if found.issuperset(form.features):
      return form
  known = "; ".join(f"{form.name}: {', '.join(form.features)}" for form in FORMS)
  raise UserError(
    f"{path}: the features ({', '.join(sorted(found))}) are of no known form. "
    f"Write the records in one of these: {known}."
  )


def first_image_shape(path: str, form: RecordForm) -> tuple[int, ...]:
  """(height, width, channels) of the first image in a file.

  Raises:
    UserError: That record cannot be read.
  """
  try:
    serialized = next(tf.data.TFRecordDataset(path).as_numpy_iterator())
    image, _ = form.parse(serialized, channels=0)  # as many as are stored
  except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
    raise UserError(
      f"{path}: record 0 (counted from 0) cannot be read ({one_line(error)}): write "
      "the file again."
    ) from error
  return tuple(image.shape)


def match_files(patterns: str) -> list[str]:
  """The files that any of some comma-separated patterns matches, sorted.

  Raises:
    UserError: One of the patterns matches nothing.
  """
  files: set[str] = set()
  for pattern in patterns.split(","):
    matched = tf.io.gfile.glob(pattern.strip())
    if not matched:
      raise UserError(f"No file matches '{pattern.strip()}': mend the path or pattern.")
    files.update(matched)
  return sorted(files)


# What reading a bad record raises. TensorFlow quotes a record that does not parse in
# its message, which Python may fail to decode as text: hence the last.
DATA_ERRORS = (
  tf.errors.DataLossError,
  tf.errors.InvalidArgumentError,
  UnicodeDecodeError,
)


def explain_data_error(
  paths: Sequence[str],
  form: RecordForm,
  image_shape: Sequence[int],
  num_classes: int,
  first_label: Optional[int] = None,
) -> Optional[str]:
  """Finds the first bad record after a run ended in one of `DATA_ERRORS`.

  TensorFlow's messages name neither file nor record, and naming them on the way would
  cost every good record time; so the files are read once more, with all checks on.

  Args:
    paths: Files, in the order in which they are to be searched.
    form: Their form.
    image_shape: The shape [height, width, channels] that every image must have.
    num_classes: Labels must lie in [0, num_classes), after `first_label` is taken off.
    first_label: As for `RecordForm.parse`.

  Returns:
    One line that names the file and the record, says what is wrong and what to do; or
    None if every record is good.
  """

  def is_good(serialized: tf.Tensor) -> tf.Tensor:
    image, label = form.parse(serialized, image_shape[-1], first_label)
    right_shape = tf.reduce_all(tf.shape(image) == image_shape)
    return right_shape & (label >= 0) & (label < num_classes)

  for path in paths:
    records = tf.data.TFRecordDataset(path)
    number = 0
    try:
      for good in records.map(is_good, tf.data.AUTOTUNE, deterministic=True):
        if not good:
          break
        number += 1
      else:
        continue
    except DATA_ERRORS:
      pass
    fault = _fault(
      records.skip(number), form, tuple(image_shape), num_classes, first_label
    )
    return f"{path}: record {number} (counted from 0) {fault}"
  return None


def _fault(
  records: tf.data.Dataset,
  form: RecordForm,
  image_shape: tuple[int, ...],
  num_classes: int,
  first_label: Optional[int],
) -> str:
  """What is wrong with the first of `records`, and what to do about it."""
  try:
    serialized = next(records.as_numpy_iterator())
    found = set(tf.train.Example.FromString(serialized).features.feature)
    if missing := sorted(set(form.features) - found):
      return (
        f"lacks '{missing[0]}', which the {form.name} form has (it holds "
        f"{', '.join(sorted(found)) or 'no feature'}): write the file again."
      )
    image, label = form.parse(serialized, image_shape[-1], first_label)
  except tf.errors.DataLossError:
    return "fails its checksum or is cut off: write or copy the file again."
  except DecodeError:
    return "is not a tf.train.Example: write the file again."
  except tf.errors.InvalidArgumentError as error:
    return f"cannot be read ({one_line(error)}): write the file again."
  if tuple(image.shape) != image_shape:
    return (
      f"holds an image of shape {tuple(image.shape)}, and the run expects "
      f"{image_shape}: write all images, for training and tests, in one shape."
    )
  return (
    f"has the label {int(label)} (counted from 0), outside [0, {num_classes}): set "
    "--num_classes, or --first_label if the file counts from the other of 0 and 1."
  )
