"""TFRecord files of images: their forms, and what may be wrong with them.

A record is a serialized `tf.train.Example`, a dictionary of features. Whose names those
are differs from writer to writer; `FORMS` lists the three forms that are read here.
Records are numbered from 0 in their file, in messages too.

Unlabelled images come in the same forms, without a label, with an integer as a
pseudo-label, or with a distribution over the classes as a soft one.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

import tensorflow as tf
from google.protobuf.message import DecodeError

from dat_tf.base.errors import UserError, one_line
from dat_tf.data import framing
from dat_tf.data.stored_image import TOO_LARGE, StoredImage

SOFT_LABEL = "label/soft"


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
    needs_label: Whether a record without a label is an error.
    soft_classes: The classes over which the feature `label/soft` is a distribution,
      float32 [soft_classes], which is then read instead of `label`; 0 for no such
      feature. Only where no label is needed.
  """

  name: str
  image: str
  label: str
  first_label: int
  shape: Optional[str] = None
  needs_label: bool = True
  soft_classes: int = 0

  @property
  def required(self) -> tuple[str, ...]:
    """The features without which a record is not read."""
    label = (self.label,) if self.needs_label else ()
    shape = (self.shape,) if self.shape is not None else ()
    return (self.image, *label, *shape)

  def parse(
    self, serialized: tf.Tensor, channels: int, first_label: Optional[int] = None
  ) -> tuple[StoredImage, tf.Tensor]:
    """Reads one record, in graph operations.

    Args:
      serialized: A serialized `tf.train.Example`, string [].
      channels: As in `StoredImage`.
      first_label: The label of the first class in the file; None is the form's own.

    Returns:
      The image, and its label: int64 [], which counts from 0 and is -1 for none; or, if
      the form is soft, float32 [soft_classes], zeros for none.

    Raises:
      tf.errors.InvalidArgumentError: When run on a record that lacks a feature.
    """
    first = self.first_label if first_label is None else first_label
    schema = {self.image: tf.io.FixedLenFeature([], tf.string)}
    if self.shape is not None:
      schema[self.shape] = tf.io.FixedLenFeature([3], tf.int64)
    if self.soft_classes:
      classes = self.soft_classes
      schema[SOFT_LABEL] = tf.io.FixedLenFeature([classes], tf.float32, [0.0] * classes)
    else:
      missing = None if self.needs_label else first - 1
      schema[self.label] = tf.io.FixedLenFeature([], tf.int64, missing)
    features = tf.io.parse_single_example(serialized, schema)
    shape = features[self.shape] if self.shape is not None else None
    image = StoredImage(features[self.image], shape, channels)
    if self.soft_classes:
      return image, features[SOFT_LABEL]
    return image, features[self.label] - first

  def is_right(self, label: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Whether labels are what they may be.

    Args:
      label: As `parse` gives it, or a batch of such.
      num_classes: Integers must lie in [0, num_classes), or be -1 where no label is
        needed; soft labels must be at least 0 and add up to 1 (to within 1e-3), or be
        zeros.

    Returns:
      bool [] or [batch].
    """
    if self.soft_classes:
      total = tf.reduce_sum(label, axis=-1)
      one_or_none = (tf.abs(total - 1.0) < 1e-3) | (total == 0.0)
      return one_or_none & tf.reduce_all(label >= 0.0, axis=-1)
    return (label >= (0 if self.needs_label else -1)) & (label < num_classes)


IMAGENET = RecordForm("canonical ImageNet", "image/encoded", "image/class/label", 1)
TFDS = RecordForm("TFDS", "image", "label", 0)
DAT = RecordForm("DAT-TF", "image/raw", "label", 0, shape="image/shape")
FORMS = (IMAGENET, TFDS, DAT)


def detect_form(
  path: str, *, needs_label: bool = True, skip_bad_records: bool = False
) -> RecordForm:
  """Tells a file's form by the feature names of its first record.

  Args:
    path: The file.
    needs_label: As in `RecordForm`. Where it is False, and the first record has soft
      labels, the form is soft.
    skip_bad_records: Whether to take the first record that passes its checksums.

  Raises:
    UserError: The file has no record, its first one is damaged, or its features are
      those of no known form.
  """
  try:
    serialized = _first_record(path, skip_bad_records=skip_bad_records)
    if serialized is None:
      raise UserError(f"{path} holds no record: remove the file or write it again.")
    features = tf.train.Example.FromString(serialized).features.feature
  except (tf.errors.DataLossError, DecodeError):
    raise UserError(
      f"{path}: record 0 (counted from 0) is not a readable tf.train.Example; is the "
      "file an uncompressed TFRecord file? Write or copy it again."
    ) from None
  forms = [dataclasses.replace(form, needs_label=needs_label) for form in FORMS]
  for form in forms:
    if not set(form.required) - set(features):
      soft = 0 if needs_label else len(features[SOFT_LABEL].float_list.value)
      return dataclasses.replace(form, soft_classes=soft)
  bare = [dataclasses.replace(form, needs_label=False) for form in FORMS]
  if any(not set(form.required) - set(features) for form in bare):
    raise UserError(
      f"{path}: the images have no labels, and every objective needs some that have: "
      "give these as `unlabeled_data` beside labelled ones, or give them "
      "pseudo-labels (`mode=pseudo_label`)."
    )
  known = "; ".join(f"{form.name}: {', '.join(form.required)}" for form in forms)
  raise UserError(
    f"{path}: the features ({', '.join(sorted(features))}) are of no known form. "
    f"Write the records in one of these: {known}."
  )


def check_form(
  files: Iterable[tuple[str, Sequence[framing.Segment]]], form: RecordForm
) -> None:
  """Makes sure that the first record of each file has the features of a form.

  Of a file in another form TensorFlow would write a line for each record before the run
  ends. What else may be wrong is for training to tell of.

  Args:
    files: Paths, and what of each is read, whose lengths are known to be right.
    form: Theirs.

  Raises:
    UserError: One lacks a feature.
  """
  for path, parts in files:
    for offset, number, count in parts[:1]:
      try:
        if count and _lacks(framing.data_at(path, offset), form):
          # Once more, with its checksum.
          serialized = next(framing.read(path, offset, 1).as_numpy_iterator())
          lacking = _lacks(serialized, form)
          raise UserError(f"{path}: record {number} (counted from 0) {lacking}")
      except (tf.errors.DataLossError, DecodeError):
        pass


def first_image_shape(
  path: str, form: RecordForm, *, skip_bad_records: bool = False
) -> tuple[int, ...]:
  """(height, width, channels) of the first image in a file, as `detect_form` finds it.

  Returns:
    The shape; the channels are 3 where the first images differ in channels.

  Raises:
    UserError: That record cannot be read, or its image has not 1 or 3 channels.
  """
  try:
    serialized = _first_record(path, skip_bad_records=skip_bad_records)
    image, _ = form.parse(serialized, channels=0)  # as many as are stored
    shape = tuple(image.decode().shape)
    stated = shape if image.shape is None else tuple(image.shape.numpy().tolist())
  except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
    raise UserError(
      f"{path}: record 0 (counted from 0) cannot be read ({_reason(error)}): write "
      "the file again."
    ) from error
  if shape != stated or 0 in shape:
    raise UserError(
      f"{path}: record 0 (counted from 0) says that its image has the shape {stated}: "
      "write its true height, width and channels."
    )
  *size, channels = shape
  if image.shape is None:
    channels = _without_transparency(channels)
  if channels not in (1, 3):
    raise UserError(
      f"{path}: record 0 (counted from 0) holds an image of {channels} channels: write "
      "the images with 1 (grey) or 3 (red, green, blue)."
    )
  others = _first_channels(path, form, skip_bad_records=skip_bad_records)
  is_mixed = len({channels, *others}) > 1
  return (*size, 3 if is_mixed else channels)


def _without_transparency(channels: int) -> int:
  """What an encoded image of so many channels is read with."""
  return {2: 1, 4: 3}.get(channels, channels)


def _first_channels(
  path: str, form: RecordForm, *, skip_bad_records: bool, number: int = 200
) -> Iterator[int]:
  """The channels of the first images of a file, up to one that cannot be read."""
  try:
    found = _records(path, skip_bad_records=skip_bad_records)
    for serialized in itertools.islice(found, number):
      features = tf.train.Example.FromString(serialized).features.feature
      if form.shape is not None:
        yield features[form.shape].int64_list.value[2]
        continue
      data = features[form.image].bytes_list.value[0]
      if data[:3] == b"\xff\xd8\xff":
        yield _without_transparency(int(tf.io.extract_jpeg_shape(data)[2]))
      else:
        image = StoredImage(tf.constant(data), None, 0).decode()
        yield _without_transparency(image.shape[2])
  except (*DATA_ERRORS, DecodeError, IndexError):
    return  # training names that record


def has_labels(
  path: str, form: RecordForm, *, skip_bad_records: bool = False, number: int = 1000
) -> bool:
  """Whether any of the first records of a file has a label or a pseudo-label.

  Args:
    path: The file.
    form: Its form, as `detect_form` finds it.
    skip_bad_records: As there.
    number: How many are looked at.

  Returns:
    True also where a damaged record hides the answer: training names that one.
  """
  name = SOFT_LABEL if form.soft_classes else form.label
  try:
    found = _records(path, skip_bad_records=skip_bad_records)
    for serialized in itertools.islice(found, number):
      feature = tf.train.Example.FromString(serialized).features.feature[name]
      known = (label >= form.first_label for label in feature.int64_list.value)
      if any(feature.float_list.value) or any(known):
        return True
  except (tf.errors.DataLossError, DecodeError):
    return True
  return False


def segments(path: str, *, skip_bad_records: bool) -> tuple[framing.Segment, ...]:
  """What of a file is to be read: all, or what a scan finds to be good."""
  return framing.scan(path)[0] if skip_bad_records else (framing.WHOLE_FILE,)


def _records(path: str, *, skip_bad_records: bool) -> Iterator[bytes]:
  return itertools.chain.from_iterable(
    framing.read(path, segment.offset, segment.num_records).as_numpy_iterator()
    for segment in segments(path, skip_bad_records=skip_bad_records)
  )


def _first_record(path: str, *, skip_bad_records: bool) -> Optional[bytes]:
  return next(_records(path, skip_bad_records=skip_bad_records), None)


def match_files(patterns: str) -> list[str]:
  """The files that any of some comma-separated patterns matches, sorted.

  Local directories are left out.

  Raises:
    UserError: One of the patterns matches no file.
  """
  files: set[str] = set()
  for pattern in patterns.split(","):
    matched = tf.io.gfile.glob(pattern.strip())
    directories = list(filter(os.path.isdir, matched))
    matched = [path for path in matched if path not in directories]
    if directories and not matched:
      raise UserError(
        f"'{pattern.strip()}' is a directory: name the files in it, as in "
        f"'{os.path.join(directories[0], 'train-*')}'."
      )
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
  image_shape: Sequence[Optional[int]],
  num_classes: int,
  *,
  first_label: Optional[int] = None,
  skip_bad_records: bool = False,
) -> Optional[str]:
  """Finds the first bad record after a run ended in one of `DATA_ERRORS`.

  TensorFlow's messages name neither file nor record, and naming them on the way would
  cost every good record time; so the files are read once more, with all checks on.

  Args:
    paths: Files, in the order in which they are to be searched.
    form: Their form.
    image_shape: The shape [height, width, channels] that every image must have, with
      None for what may be any.
    num_classes: As in `RecordForm.is_right`.
    first_label: As for `RecordForm.parse`.
    skip_bad_records: Whether records that fail their checksums are of no concern.

  Returns:
    One line that names the file and the record, says what is wrong and what to do; or
    None if every record is good.
  """

  def is_good(serialized: tf.Tensor) -> tf.Tensor:
    stored, label = form.parse(serialized, image_shape[-1] or 0, first_label)
    image = stored.decode()
    shape = [size or -1 for size in image_shape]
    right = (tf.shape(image) == shape) | (tf.constant(shape) < 0)
    return tf.reduce_all(right) & form.is_right(label, num_classes)

  for path in paths:
    for segment in segments(path, skip_bad_records=skip_bad_records):
      records = framing.read(path, segment.offset, segment.num_records)
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
      return f"{path}: record {segment.first + number} (counted from 0) {fault}"
  return None


def _reason(error: Exception) -> str:
  """What TensorFlow says, without what it puts around our own words."""
  own = re.search(TOO_LARGE, str(error))
  return own[0] if own else one_line(error)


def _lacks(serialized: bytes, form: RecordForm) -> Optional[str]:
  """Which feature a record lacks, and what to do about it; None if it has all."""
  found = set(tf.train.Example.FromString(serialized).features.feature)
  missing = sorted(set(form.required) - found)
  if not missing:
    return None
  return (
    f"lacks '{missing[0]}', which the {form.name} form has (it holds "
    f"{', '.join(sorted(found)) or 'no feature'}): write the file again."
  )


def _fault(
  records: tf.data.Dataset,
  form: RecordForm,
  image_shape: tuple[Optional[int], ...],
  num_classes: int,
  first_label: Optional[int],
) -> str:
  """What is wrong with the first of `records`, and what to do about it."""
  try:
    serialized = next(records.as_numpy_iterator())
    if lacking := _lacks(serialized, form):
      return lacking
    stored, label = form.parse(serialized, image_shape[-1] or 0, first_label)
    shape = tuple(stored.decode().shape)
  except tf.errors.DataLossError:
    return "fails its checksum or is cut off: write or copy the file again."
  except DecodeError:
    return "is not a tf.train.Example: write the file again."
  except tf.errors.InvalidArgumentError as error:
    return f"cannot be read ({_reason(error)}): write the file again."
  if any(wanted not in (None, size) for wanted, size in zip(image_shape, shape)):
    return (
      f"holds an image of shape {shape}, and the run expects "
      f"{image_shape}: write all images, for training and tests, in one shape, or have "
      "all brought to one size (`image_size`), and to color where some are grey "
      "(`channels=3`)."
    )
  if form.soft_classes:
    return (
      f"has a soft label, {label.numpy().tolist()[:5]} ..., that is no distribution: "
      "it must not be negative and must add up to 1 (or be all zeros, for none)."
    )
  return (
    f"has the label {int(label)} (counted from 0), outside [0, {num_classes}): set "
    "`num_classes`, or `first_label` if the file counts from the other of 0 and 1."
  )
