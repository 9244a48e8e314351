"""A trained model labels unlabelled TFRecords, on all workers.

Each file becomes one of the same name, with the same records in the same order, to
which a label is added: the class that the model finds likeliest, or the probabilities
of all. A record for which the model is not confident enough keeps its place and gets no
label: it can still be trained on where no label is asked for.

The files are dealt to the workers. A file gets its name when it is complete; started
again, the work goes on with the files that are missing. The labels do not depend on the
number of workers: batches are of one size everywhere, the last of a file filled up,
since the last bits of a convolution depend on that size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import tensorflow as tf
import tqdm

from dat_tf.base import files
from dat_tf.base.errors import UserError, one_line
from dat_tf.data import augment, framing, records

_MANIFEST = "pseudo_labels.json"


class Counts(NamedTuple):
  """How many records were written, and how many of them with a label."""

  records: int
  labeled: int


@dataclasses.dataclass(frozen=True)
class PseudoLabeler:
  """Labels files.

  Attributes:
    classifier: Images, float32 [batch_size, height, width, channels] in [0, 1], to
      logits [batch_size, classes].
    form: Of the files' records; no label is needed.
    image_shape: [height, width, channels] of the images that the classifier takes.
    crop: Brings the images to that shape, as in `pipeline.evaluation_dataset`; None
      where they have it.
    batch_size: Images that are classified together.
    soft: Whether labels are probabilities of all classes, or the likeliest class.
    threshold: The probability in [0, 1] that the likeliest class must reach for a label
      to be given.
    first_label: The number under which the first class is written; None is the form's.
    skip_bad_records: Whether records that fail their checksums are left out.
  """

  classifier: Callable[[tf.Tensor], tf.Tensor]
  form: records.RecordForm
  image_shape: Sequence[int]
  crop: Optional[augment.Augmentation]
  batch_size: int
  soft: bool = False
  threshold: float = 0.0
  first_label: Optional[int] = None
  skip_bad_records: bool = False

  def label_files(
    self, paths: Sequence[str], targets: Sequence[str], *, show_progress: bool
  ) -> Counts:
    """Writes those of some files that are not there yet; see `label_file`."""
    missing = [pair for pair in zip(paths, targets) if not tf.io.gfile.exists(pair[1])]
    total = None  # the length of a damaged file is not known
    if not self.skip_bad_records:
      total = sum(framing.count_records(path) for path, _ in missing)
    counts = [Counts(0, 0)]
    with tqdm.tqdm(
      total=total, desc="labelling", unit=" images", disable=not show_progress
    ) as progress:
      counts += [self.label_file(*pair, progress) for pair in missing]
    return Counts(*map(sum, zip(*counts)))

  def label_file(self, path: str, target: str, progress: tqdm.tqdm) -> Counts:
    """Writes `target`, which appears under its name when it is complete.

    Args:
      path: The file with the images.
      target: The same with labels.
      progress: Goes on by 1 with each record.

    Raises:
      UserError: `target` cannot be written.
      records.DATA_ERRORS: For a bad record.
    """
    count = labeled = 0
    try:
      with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(files.complete_file(target))
        writer = stack.enter_context(tf.io.TFRecordWriter(temporary))
        for serialized, probabilities in self._probabilities(path):
          label = self._label(probabilities)
          writer.write(self._labeled(serialized, label))
          count += 1
          labeled += bool(label.any() if self.soft else label >= 0)
          progress.update()
    except (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError) as error:
      raise UserError(
        f"{target} cannot be written ({one_line(error)}): make room, and start again; "
        "it goes on with the files that are missing."
      ) from error
    return Counts(count, labeled)

  def _probabilities(self, path: str) -> Iterator[tuple[bytes, np.ndarray]]:
    """Each record of a file, and what the model says: float32 [classes]."""

    def decode(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
      stored, _ = self.form.parse(serialized, self.image_shape[-1], self.first_label)
      image = augment.read_image(stored, self.crop, tf.zeros([2], tf.uint32))
      return serialized, tf.ensure_shape(image, self.image_shape)

    stretches = [
      framing.read(path, offset, num_records)
      for offset, _, num_records in records.segments(
        path, skip_bad_records=self.skip_bad_records
      )
    ]
    batches = (
      functools.reduce(tf.data.Dataset.concatenate, stretches)
      .map(decode, tf.data.AUTOTUNE, deterministic=True)
      .batch(self.batch_size)
      .prefetch(tf.data.AUTOTUNE)
    )
    for serialized, images in batches:
      missing = self.batch_size - images.shape[0]
      images = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
      logits = self.classifier(images)
      probabilities = tf.nn.softmax(tf.cast(logits, tf.float32)).numpy()
      yield from zip(serialized.numpy(), probabilities)

  def _label(self, probabilities: np.ndarray) -> np.ndarray:
    """The likeliest class, or -1; or all probabilities, or zeros."""
    is_confident = probabilities.max() >= self.threshold
    if self.soft:
      return probabilities * is_confident
    return np.array(probabilities.argmax() if is_confident else -1)

  def _labeled(self, serialized: bytes, label: np.ndarray) -> bytes:
    example = tf.train.Example.FromString(serialized)
    features = example.features.feature
    # What the record was labelled with before is not this model's.
    for name in (self.form.label, records.SOFT_LABEL):
      features.pop(name, None)
    if self.soft:
      features[records.SOFT_LABEL].float_list.value.extend(label)
    elif label >= 0:
      first = self.form.first_label if self.first_label is None else self.first_label
      features[self.form.label].int64_list.value.append(int(label) + first)
    return example.SerializeToString(deterministic=True)


def targets(paths: Sequence[str], directory: str) -> list[str]:
  """The file that each of some files becomes.

  Raises:
    UserError: two of them have one name, or a file would become itself.
  """
  named = {os.path.join(directory, os.path.basename(path)): path for path in paths}
  if len(named) < len(paths):
    raise UserError(
      "--unlabeled_data matches files of the same name in several directories: label "
      "one directory at a time, into a --pseudo_label_dir of its own."
    )
  for target, path in named.items():
    spellings = {os.path.normpath(each) for each in (target, path)}
    if "://" not in target:  # links, and relative paths beside absolute ones
      spellings = {os.path.realpath(each) for each in (target, path)}
    if len(spellings) == 1:
      raise UserError(
        f"--pseudo_label_dir={directory} is where --unlabeled_data is: choose another."
      )
  return list(named)


def begin(directory: str, settings: dict[str, Any], *, is_chief: bool) -> None:
  """Makes sure that all files of a directory are labelled alike.

  Args:
    directory: Where labelled files go.
    settings: What the labels depend on; kept there by the chief.
    is_chief: Whether this worker is the one that writes them down.

  Raises:
    UserError: files there were labelled otherwise, or it cannot be written.
  """
  path, text = os.path.join(directory, _MANIFEST), json.dumps(settings, indent=2)
  try:
    present = files.read_text(path)
    if present not in (None, text):
      raise UserError(
        f"--pseudo_label_dir={directory} holds labels by another model, or with other "
        "settings: choose another, or remove it."
      )
    tf.io.gfile.makedirs(directory)
    if is_chief and present is None:
      files.write_text(path, text)
  except tf.errors.OpError as error:
    raise UserError(
      f"--pseudo_label_dir={directory} cannot be written ({one_line(error)}): choose "
      "another."
    ) from None
