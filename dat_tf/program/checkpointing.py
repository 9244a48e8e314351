"""Checkpoints of a run, of which none that is damaged is ever taken."""

from __future__ import annotations

import collections
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import tensorflow as tf

from dat_tf.base import files
from dat_tf.base.errors import UserError, one_line
from dat_tf.compat import keras, local_value

_FILE = re.compile(r"epoch-(\d+)\.(?:index|data-\d+-of-\d+)")
_BEING_SAVED = re.compile(r"(epoch-\d+)_temp")
_LIST = "checkpoint"  # TensorFlow's own tools look up the newest one there


class Checkpoints:
  """The newest few checkpoints of a run: weights, optimizer and number of epochs done.

  A checkpoint is the files `epoch-N.index` and `epoch-N.data-*`. TensorFlow writes the
  data under a temporary name, and the index last, with checksums of all: see `fault`.

  All workers must save together, since to save batch-norm statistics means to average
  them over all workers. Only the chief's files stay: the others write theirs to a
  temporary directory of their own host.
  """

  def __init__(
    self,
    directory: str,
    tracked: Mapping[str, Any],
    *,
    keep: int = 2,
    is_chief: bool = True,
  ):
    """Tracks a model and what belongs to it.

    Args:
      directory: where checkpoints are, or will be.
      tracked: what is saved and restored, in place, by name: the classifier, and
        whatever else has state, or None for what this run has not got. An optimizer
        must have made its slots: made by the first step, they would be restored inside
        its graph.
      keep: number of newest checkpoints kept.
      is_chief: whether this worker's files stay, and it is the one that warns.
    """
    self._epochs = tf.Variable(0, dtype=tf.int64, trainable=False, name="epochs_done")
    there = {name: item for name, item in tracked.items() if item is not None}
    self._checkpoint = tf.train.Checkpoint(epochs=self._epochs, **there)
    self._classifier: keras.Model = tracked["classifier"]
    self._directory, self._keep, self._is_chief = directory, keep, is_chief

  def restore(self) -> int:
    """Restores the newest checkpoint that is whole; returns its epochs, 0 without one.

    Raises:
      UserError: there are checkpoints, and all of them are damaged; or the newest is of
        another network.
    """
    newest = newest_whole(self._directory, warn=self._is_chief)
    if newest is None:
      return 0
    try:
      if not may_hold(newest, self._classifier):
        raise ValueError("its weights have other shapes")
      status = self._checkpoint.read(newest).expect_partial()
      status.assert_existing_objects_matched()
    except (ValueError, AssertionError) as error:
      raise UserError(
        f"{newest} is of another network ({one_line(error)[:160]}): give the --model, "
        "--num_classes and images that it was trained with (--image_size, --channels)."
      ) from error
    return int(self._epochs)

  def save(self, epochs: int) -> None:
    """Saves the state after so many epochs. Every worker must call it."""
    self._epochs.assign(epochs)
    if not self._is_chief:
      with tempfile.TemporaryDirectory() as directory:
        self._checkpoint.write(os.path.join(directory, f"epoch-{epochs}"))
      return
    tf.io.gfile.makedirs(self._directory)
    self._checkpoint.write(os.path.join(self._directory, f"epoch-{epochs}"))
    # Later ones are damaged, or this one would not have been made: they go when their
    # turn comes.
    there = [number for number in present(self._directory) if number <= epochs]
    kept = sorted(there[: self._keep])
    files.write_text(
      os.path.join(self._directory, _LIST),
      f'model_checkpoint_path: "epoch-{epochs}"\n'
      + "".join(f'all_model_checkpoint_paths: "epoch-{number}"\n' for number in kept),
    )
    for number in there[self._keep :]:
      _remove(self._directory, f"epoch-{number}.")


def present(directory: str) -> list[int]:
  """The epochs after which checkpoints, whole or not, were saved; newest first."""
  matches = map(_FILE.fullmatch, files.names(directory))
  return sorted({int(match[1]) for match in matches if match}, reverse=True)


def newest_whole(
  directory: str,
  *,
  warn: bool = True,
  remedy: str = "choose another --model_dir, or clear this one with --overwrite",
) -> Optional[str]:
  """The newest checkpoint that can be restored; None if nothing was ever saved.

  Args:
    directory: of checkpoints.
    warn: whether to print a line for each damaged one that is passed over.
    remedy: what to do, if the files cannot be put back, where none is whole.

  Returns:
    Its path, without the endings of its files.

  Raises:
    UserError: there are checkpoints, and none is whole, or a file cannot be opened.
  """
  faults: list[str] = []
  for epochs in present(directory):
    path = os.path.join(directory, f"epoch-{epochs}")
    found = fault(path)
    if found is None:
      for passed_over in faults if warn else ():
        print(f"Warning: {passed_over}. epoch-{epochs} is used instead.", flush=True)
      return path
    faults.append(found)
  if not faults and _LIST in files.names(directory):
    faults = [f"{directory}/{_LIST} is there, but no checkpoint"]
  if faults:
    raise UserError(
      f"{faults[0]}, and no other checkpoint is whole: put the files back, {remedy}."
    )
  return None


def fault(path: str) -> Optional[str]:
  """What is wrong with a checkpoint, naming its file; None if nothing is.

  All of it is read: TensorFlow keeps a CRC-32C of each tensor, and of each block of the
  index that holds these.

  Raises:
    UserError: a file is there, but may not be read.
  """
  directory, name = os.path.split(path)
  data = [f for f in files.names(directory) if f.startswith(f"{name}.data-")]
  file = f"{path}.index"
  try:
    for each in (file, *(os.path.join(directory, one) for one in data)):
      with tf.io.gfile.GFile(each, "rb") as opened:
        opened.read(1)
    reader = _reader(path)
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


def may_hold(path: str, model: keras.Model) -> bool:
  """Whether among the shapes in a checkpoint are those of all of a model's weights."""
  stored = map(tuple, _reader(path).get_variable_to_shape_map().values())
  return not (
    collections.Counter(tuple(weight.shape) for weight in model.weights)
    - collections.Counter(stored)
  )


def _reader(path: str) -> Any:
  # `tf.train.load_checkpoint` takes a path in some object stores for a directory.
  return tf.compat.v1.train.NewCheckpointReader(path)


def remove_leftovers(directory: str) -> None:
  """Removes what a killed run's save has left; no run may be saving there now."""
  for match in filter(None, map(_BEING_SAVED.fullmatch, files.names(directory))):
    # Data without an index, which is written last.
    if f"{match[1]}.index" not in files.names(directory):
      _remove(directory, f"{match[1]}.")
    tf.io.gfile.rmtree(os.path.join(directory, match[0]))


def _remove(directory: str, prefix: str) -> None:
  # The index first: data alone are no checkpoint.
  names = [name for name in files.names(directory) if name.startswith(prefix)]
  for name in sorted(names, key=lambda name: not name.endswith(".index")):
    tf.io.gfile.remove(os.path.join(directory, name))


def copy_weights(source: keras.Model, target: keras.Model) -> None:
  """Gives a plain model, which belongs to no strategy, a distributed model's weights.

  One worker alone can then run it and save it. The weights are this replica's own and
  are read without a collective: average the batch-norm statistics of all workers before
  (`AdversarialModel.average_statistics`).

  Args:
    source: a model made under any strategy.
    target: `tf.keras.models.clone_model(source)`, made outside of the strategy's scope.
  """
  for variable, copied in zip(source.weights, target.weights):
    copied.assign(local_value(variable))


def digest(variables: Sequence[tf.Variable]) -> str:
  """A hash of the values of variables, read without a collective."""
  found = hashlib.sha256()
  for variable in variables:
    found.update(local_value(variable).numpy().tobytes())
  return found.hexdigest()[:16]


def fingerprint(classifier: keras.Model) -> str:
  """A hash of a plain model's weights."""
  return digest(classifier.weights)
