"""Which records each worker reads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from dat_tf.base.errors import UserError
from dat_tf.data import framing

_LOCAL_FILES_PER_WORKER = 2**20
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Slice:
  """The records first, first + stride, first + 2 * stride, ... of one file.

  Attributes:
    path: The file.
    file_number: Its number among all files of all workers.
    first: The number of the first record, in [0, stride).
    stride: 1 for a whole file.
    segments: What of the file is read at all, bad records lying in between.
  """

  path: str
  file_number: int
  first: int
  stride: int
  segments: tuple[framing.Segment, ...]

  @property
  def num_examples(self) -> int:
    """How many records the slice has."""
    return sum(
      len(range((self.first - number) % self.stride, count, self.stride))
      for _, number, count in self.segments
    )


@dataclasses.dataclass(frozen=True)
class Shard:
  """What one worker reads.

  Attributes:
    slices: Pieces of files.
    bad_records: What it leaves out, each as a line that names the file and the record.
  """

  slices: tuple[Slice, ...]
  bad_records: tuple[str, ...] = ()

  @property
  def num_examples(self) -> int:
    return sum(piece.num_examples for piece in self.slices)

  @property
  def paths(self) -> list[str]:
    """The files that are read."""
    return [piece.path for piece in self.slices]

  def with_absolute_paths(self) -> Shard:
    """The same for processes that were started in other directories."""
    return dataclasses.replace(
      self,
      slices=tuple(
        piece
        if "://" in piece.path
        else dataclasses.replace(piece, path=os.path.abspath(piece.path))
        for piece in self.slices
      ),
    )


def shard_files(
  paths: Sequence[str],
  worker: int,
  num_workers: int,
  *,
  data_is_local: bool = False,
  skip_bad_records: bool = False,
) -> Shard:
  """Deals files out to workers, so that every example is on exactly one.

  Whole files go round robin for as long as every worker gets the same number of them.
  The few files left over, or all if there are fewer files than workers, are read by
  every worker, each of which keeps every `num_workers`-th record.

  Args:
    paths: All files, in the same order on every worker.
    worker: This worker's number, in [0, num_workers).
    num_workers: At least 1.
    data_is_local: `paths` are this worker's own and no other reads them; the shard is
      then all of them. Their file numbers start at worker * 2**20, to be unlike those
      of other workers.
    skip_bad_records: Read all of the shard now, and leave out the records that fail
      their checksums. `check_bad_records` is to decide whether they are too many.

  Raises:
    UserError: The shard is empty, or a file's framing is damaged and bad records are
      not to be skipped.
  """
  base = worker * _LOCAL_FILES_PER_WORKER if data_is_local else 0
  reader, num_readers = (0, 1) if data_is_local else (worker, num_workers)
  num_whole = len(paths) - len(paths) % num_readers
  slices, bad_records = [], []
  for index, path in enumerate(paths):
    if index < num_whole and index % num_readers != reader:
      continue
    first, stride = (0, 1) if index < num_whole else (reader, num_readers)
    segments: tuple[framing.Segment, ...]
    if skip_bad_records:
      segments, bad = framing.scan(path)
      # Where several workers read a file, each reports the bad records of its part.
      bad_records += [
        f"{path}: record {record.number} (counted from 0) {record.reason}"
        for record in bad
        if record.number % stride == first
      ]
    else:
      segments = (framing.Segment(0, 0, framing.count_records(path)),)
    slices.append(Slice(path, base + index, first, stride, segments))
  shard = Shard(tuple(slices), tuple(bad_records))
  if not shard.num_examples:
    raise UserError(
      f"Worker {worker} (counted from 0) of {num_workers} has no example in the "
      f"{len(paths)} file(s) from {paths[0]} on: give it more data, or use fewer "
      "workers."
    )
  return shard


def check_bad_records(bad_records: Sequence[str], most: int) -> None:
  """Checks that no more records are bad than may be.

  Args:
    bad_records: Those of the shards of all workers.
    most: How many there may be.

  Raises:
    UserError: There are more.
  """
  if len(bad_records) > most:
    named = "; ".join(bad_records[:_NAMED])
    more = len(bad_records) - _NAMED
    raise UserError(
      f"{len(bad_records)} records are bad, and `skip_bad_records={most}`: {named}"
      f"{f'; and {more} more' if more > 0 else ''}. Write or copy the files again, or "
      "raise this number to do without these records."
    )
