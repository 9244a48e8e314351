"""One worker's share of some TFRecords."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Optional

from dat_tf.data import comparison, pipeline, records, shards
from dat_tf.workers.joined import Workers


@dataclasses.dataclass(frozen=True)
class Source:
  """One worker's share of some TFRecords.

  Attributes:
    shard: the records of this worker.
    form: their form.
    image_shape: (height, width, channels) of the images in its batches.
    stored_shape: that of the images in the files, with None for what may be any.
    steps: global batches in one pass, the same on all workers.
  """

  shard: shards.Shard
  form: records.RecordForm
  image_shape: tuple[int, ...]
  stored_shape: tuple[Optional[int], ...]
  steps: int

  def in_color(self) -> Source:
    """The same images, with three channels."""
    return dataclasses.replace(
      self,
      image_shape=(*self.image_shape[:-1], 3),
      stored_shape=(*self.stored_shape[:-1], 3),
    )


def open_source(
  pattern: str,
  workers: Workers,
  *,
  batch_size: int,
  image_size: Optional[int] = None,
  in_color: bool = False,
  data_is_local: bool = False,
  needs_label: bool = True,
  skip_bad_records: bool = False,
) -> Source:
  """Opens the files that a pattern names; a collective.

  Args:
    pattern: one glob pattern or several, see `records.match_files`.
    workers: who share them.
    batch_size: images of a replica in a step.
    image_size: height and width that the images are brought to; None for those of
      the first.
    in_color: whether they get three channels, instead of as many as the first has.
    data_is_local: whether the files are this worker's own, and not shared.
    needs_label: whether each record must have a label.
    skip_bad_records: whether damaged records are left out.

  Raises:
    UserError: files are missing, damaged or empty, or other workers see others.
  """
  cluster = workers.cluster
  paths = records.match_files(pattern)
  if cluster.num_workers > 1 and not data_is_local:
    _check_same_files(pattern, paths, workers)
  skip: dict[str, bool] = {"skip_bad_records": skip_bad_records}
  shard = shards.shard_files(
    paths, cluster.index, cluster.num_workers, data_is_local=data_is_local, **skip
  )
  form = records.detect_form(paths[0], needs_label=needs_label, **skip)
  records.check_form(((each.path, each.segments) for each in shard.slices), form)
  *size, channels = records.first_image_shape(paths[0], form, **skip)
  shape = (*size, 3 if in_color else channels)
  stored_shape: tuple[Optional[int], ...] = shape
  if image_size:
    shape = image_size, image_size, shape[-1]
    stored_shape = None, None, shape[-1]
  batches = pipeline.batches_per_epoch(shard.num_examples, batch_size)
  steps = workers.largest(-(-batches // workers.num_local_replicas))
  return Source(shard, form, shape, stored_shape, steps)


def _check_same_files(pattern: str, paths: list[str], workers: Workers) -> None:
  """Makes sure that all workers see the same files; a collective."""
  text = comparison.describe(paths)
  fingerprint = hashlib.sha256(text.encode()).hexdigest()
  if len(set(workers.texts(fingerprint))) > 1:
    # Only now, since of many files it is long.
    comparison.check_same(workers.texts(text), pattern)
