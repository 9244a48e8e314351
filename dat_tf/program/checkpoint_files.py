"""The files of checkpoints.

A checkpoint is named by its position, `epoch-N` or within an epoch `epoch-N-step-S`,
and is these files:

    NAME.index, NAME.data-*      what all workers have alike, written by the chief
    NAME-worker-I-of-M.*         what each replica of worker I keeps for itself

Both kinds have TensorFlow's own format, with a checksum of each tensor: TensorFlow
writes the data under a temporary name, and the index last. The chief's index comes last
of all, once those of all workers are there.
"""

from __future__ import annotations

import collections
import os
import re
from typing import Any, NamedTuple, Optional

import tensorflow as tf

from dat_tf.base import files
from dat_tf.base.errors import UserError, one_line
from dat_tf.compat import keras

LIST = "checkpoint"  # TensorFlow's own tools look up the newest one there
ENTRY = "{}/.ATTRIBUTES/VARIABLE_VALUE"  # of a variable, in TensorFlow's format

_STEM = r"epoch-(\d+)(?:-step-(\d+))?"
_FILE = re.compile(rf"{_STEM}\.(?:index|data-\d+-of-\d+)")
_OF_WORKER = re.compile(rf"({_STEM})-worker-\d+-of-\d+\..+")
_BEING_SAVED = re.compile(rf"({_STEM}(?:-worker-\d+-of-\d+)?)_temp")


class Position(NamedTuple):
  """How far training has come.

  Attributes:
    epochs: how many are done.
    steps: how many of the epoch after them are done.
  """

  epochs: int
  steps: int = 0

  def __str__(self) -> str:
    """As messages have it."""
    step, next_epoch = f"step {self.steps} of epoch ", self.epochs + 1
    return f"{step}{next_epoch}" if self.steps else f"epoch {self.epochs}"

  @property
  def name(self) -> str:
    """That of a checkpoint there."""
    return f"epoch-{self.epochs}" + (f"-step-{self.steps}" if self.steps else "")


START = Position(0)


def position(path: str) -> Position:
  """Where a checkpoint was saved, by its path without endings."""
  match = re.fullmatch(_STEM, os.path.basename(path))
  assert match, path
  return Position(int(match[1]), int(match[2] or 0))


def present(directory: str) -> list[Position]:
  """Where checkpoints, whole or not, were saved; newest first."""
  matches = map(_FILE.fullmatch, files.names(directory))
  found = {Position(int(m[1]), int(m[2] or 0)) for m in matches if m}
  return sorted(found, reverse=True)


def newest_whole(
  directory: str,
  *,
  warn: bool = True,
  remedy: str = "choose another --model_dir, or clear this one with --overwrite",
  limit: Optional[Position] = None,
  worker: Optional[tuple[int, int]] = None,
) -> Optional[str]:
  """The newest checkpoint that can be restored; None if nothing was ever saved.

  Args:
    directory: of checkpoints.
    warn: whether to print a line for each damaged one that is passed over, and not
      only where what `worker` wrote is damaged.
    remedy: what to do, if the files cannot be put back, where none is whole.
    limit: where to begin to look; None is the newest there is.
    worker: as `fault` takes it.

  Returns:
    Its path, without the endings of its files.

  Raises:
    UserError: there are checkpoints, and none is whole, or a file cannot be opened.
  """
  faults: list[str] = []
  for there in present(directory):
    if limit is not None and there > limit:
      continue
    path = os.path.join(directory, there.name)
    found = fault(path, worker)
    if found is None:
      for passed_over in faults:
        if warn or (worker and f"-worker-{worker[0]}-of-" in passed_over):
          print(f"Warning: {passed_over}. {there.name} is used instead.", flush=True)
      return path
    faults.append(found)
  if not faults and LIST in files.names(directory):
    faults = [f"{directory}/{LIST} is there, but no checkpoint"]
  if faults:
    raise UserError(
      f"{faults[0]}, and no other checkpoint is whole: put the files back, {remedy}."
    )
  return None


def fault(path: str, worker: Optional[tuple[int, int]] = None) -> Optional[str]:
  """What is wrong with a checkpoint, naming its file; None if nothing is.

  All of it is read: TensorFlow keeps a CRC-32C of each tensor, and of each block of the
  index that holds these.

  Args:
    path: without the endings of its files.
    worker: (number, count) of this one. If as many saved it, the files of the others,
      who read theirs, must only be there. None reads all.

  Raises:
    UserError: a file is there, but may not be read.
  """
  found = _fault(path)
  if found is not None:
    return found
  count, _ = workers_of(path)
  for number in range(count):
    own = path_of_worker(path, number, count)
    if worker is None or worker[1] != count or worker[0] == number:
      found = _fault(own)
    elif not tf.io.gfile.exists(f"{own}.index"):
      found = f"{own}.index is missing"
    if found is not None:
      return found
  return None


def _fault(path: str) -> Optional[str]:
  directory, name = os.path.split(path)
  data = [f for f in files.names(directory) if f.startswith(f"{name}.data-")]
  file = f"{path}.index"
  try:
    for each in (file, *(os.path.join(directory, one) for one in data)):
      with tf.io.gfile.GFile(each, "rb") as opened:
        opened.read(1)
    reader = reader_of(path)
    file = os.path.join(directory, data[0]) if data else f"{path}.data-00000-of-00001"
    for tensor in reader.get_variable_to_shape_map():
      reader.get_tensor(tensor)
  except tf.errors.PermissionDeniedError as error:
    raise UserError(f"{file} may not be read: {one_line(error)}.") from None
  except tf.errors.NotFoundError:
    return f"{file} is missing"
  except Exception as error:  # damage shows in any way
    return f"{file} is damaged ({one_line(error)[:120]})"
  return None


def workers_of(path: str) -> tuple[int, int]:
  """How many workers wrote files of their own, and the replicas of each."""
  reader = reader_of(path)
  if not reader.has_tensor(ENTRY.format("workers")):
    return 0, 0
  count, replicas = reader.get_tensor(ENTRY.format("workers")).tolist()
  return count, replicas


def path_of_worker(path: str, number: int, count: int) -> str:
  """What a worker's own part of a checkpoint is called, without endings."""
  return f"{path}-worker-{number}-of-{count}"


def may_hold(path: str, model: keras.Model) -> bool:
  """Whether among the shapes in a checkpoint are those of all of a model's weights."""
  stored = map(tuple, reader_of(path).get_variable_to_shape_map().values())
  return not (
    collections.Counter(tuple(weight.shape) for weight in model.weights)
    - collections.Counter(stored)
  )


def reader_of(path: str) -> Any:
  """A `tf.train.load_checkpoint` of files whose path, without endings, this is."""
  # That function itself takes a path in some object stores for a directory.
  return tf.compat.v1.train.NewCheckpointReader(path)


def remove_leftovers(directory: str) -> None:
  """Removes what a killed run's save has left; no run may be saving there now."""
  names = files.names(directory)
  for match in filter(None, map(_BEING_SAVED.fullmatch, names)):
    # Data without an index, which is written last.
    if f"{match[1]}.index" not in names:
      remove(directory, match[1])
    tf.io.gfile.rmtree(os.path.join(directory, match[0]))
  there = {each.name for each in present(directory)}
  for match in filter(None, map(_OF_WORKER.fullmatch, files.names(directory))):
    if match[1] not in there:
      tf.io.gfile.remove(os.path.join(directory, match[0]))


def remove_after(directory: str, newest: Position) -> None:
  """Removes what single workers have of damaged checkpoints after a position.

  It would be taken for what they write when training comes there again.
  """
  for match in filter(None, map(_OF_WORKER.fullmatch, files.names(directory))):
    if position(match[1]) > newest:
      tf.io.gfile.remove(os.path.join(directory, match[0]))


def size(directory: str, name: str) -> int:
  """The bytes of all files of a checkpoint."""
  paths = [os.path.join(directory, each) for each in files.names(directory)]
  own = [path for path in paths if _belongs(os.path.basename(path), name)]
  return sum(tf.io.gfile.stat(path).length for path in own)


def remove(directory: str, name: str) -> None:
  """Removes the files of a checkpoint, those of all workers among them."""
  # The chief's index first: without it nothing is a checkpoint.
  names = [each for each in files.names(directory) if _belongs(each, name)]
  for each in sorted(names, key=lambda each: each != f"{name}.index"):
    tf.io.gfile.remove(os.path.join(directory, each))


def _belongs(file: str, name: str) -> bool:
  return file.startswith((f"{name}.", f"{name}-worker-"))
