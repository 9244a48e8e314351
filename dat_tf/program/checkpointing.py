"""Checkpoints of a run, written while it trains."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from dat_tf.base import files
from dat_tf.base.errors import UserError, one_line
from dat_tf.compat import keras, local_value, local_variables
from dat_tf.program import checkpoint_files
from dat_tf.program.checkpoint_files import (
  ENTRY,
  LIST,
  START,
  Position,
  path_of_worker,
  reader_of,
  workers_of,
)
from dat_tf.program.startup import LEAVING
from dat_tf.workers.cluster import num_cores

# Seconds until the chief must see the file of another worker that is still at work.
_PATIENCE = 600.0


class Checkpoints:
  """The newest few checkpoints of a run.

  They are written while training goes on, from copies on the host. What goes wrong
  meanwhile is raised by the next `save` or `finish`.
  """

  def __init__(
    self,
    directory: str,
    tracked: Mapping[str, Any],
    copies: Optional[Mapping[str, Any]] = None,
    *,
    replica_state: Optional[Mapping[str, Sequence[tf.Variable]]] = None,
    keep: int = 2,
    worker: int = 0,
    num_workers: int = 1,
  ):
    """Tracks a model and what belongs to it.

    Args:
      directory: where checkpoints are, or will be.
      tracked: what all workers have alike, by name: the classifier, and whatever else
        has state; it is saved and restored in place. An optimizer must have made its
        slots: made by the first step, they would be restored inside its graph.
      copies: the same by the same names, made outside of any strategy; the chief needs
        them to save.
      replica_state: as `AdversarialModel.replica_state`; None if nothing is kept so.
      keep: number of newest checkpoints kept.
      worker: the number of this one; 0 is the chief. It warns of damage, and another
        worker only of that to its own part.
      num_workers: how many there are.
    """
    self._directory, self._keep = directory, keep
    self._worker, self._num_workers = worker, num_workers
    self._classifier: keras.Model = tracked["classifier"]
    self._live = tf.train.Checkpoint(**tracked)
    self._state = dict(replica_state or {})
    self._pairs: list[tuple[tf.Variable, tf.Variable]] = []
    self._shared: Optional[tf.train.Checkpoint] = None
    with tf.device("CPU:0"):
      if copies is not None:
        workers = tf.Variable([num_workers, self._replicas] if self._state else [0, 0])
        self._shared = tf.train.Checkpoint(**copies, workers=workers)
      own = {
        kind: [self._copies(variable) for variable in variables]
        for kind, variables in self._state.items()
      }
      self._own = tf.train.Checkpoint(**own, cores=tf.Variable(num_cores()))
    for name, copy in (copies or {}).items():
      live, copied = variables_of(tracked[name]), variables_of(copy)
      assert [v.shape for v in live] == [v.shape for v in copied], name
      self._pairs += zip(live, copied)
    self._writing: Optional[threading.Thread] = None
    self._error: Optional[Exception] = None

  @property
  def _replicas(self) -> int:
    """Of this worker, and of each other one."""
    variables = [v for each in self._state.values() for v in each]
    return len(local_variables(variables[0]))

  def _copies(self, variable: tf.Variable) -> list[tf.Variable]:
    copies = []
    for own in local_variables(variable):
      copies.append(tf.Variable(own, trainable=False))
      self._pairs.append((own, copies[-1]))
    return copies

  def newest(self, limit: Optional[Position] = None) -> Position:
    """Where the newest checkpoint is that is whole as this worker sees it.

    Args:
      limit: where to begin to look; None is the newest there is.

    Returns:
      Its position, `START` if nothing was ever saved.

    Raises:
      UserError: there are checkpoints, and all of them are damaged.
    """
    mine = (self._worker, self._num_workers) if self._state else None
    path = checkpoint_files.newest_whole(
      self._directory, warn=self._worker == 0, limit=limit, worker=mine
    )
    return checkpoint_files.position(path) if path else START

  def restore(self, there: Position) -> None:
    """Restores a checkpoint that is whole.

    Replicas get what was their own. If there are now others, all get the mean over all
    that were, but nothing of what does not fit.

    Raises:
      UserError: it is of another network.
    """
    self.finish()
    path = os.path.join(self._directory, there.name)
    try:
      if not checkpoint_files.may_hold(path, self._classifier):
        raise ValueError("its weights have other shapes")
      status = self._live.read(path).expect_partial()
      status.assert_existing_objects_matched()
    except (ValueError, AssertionError) as error:
      raise UserError(
        f"{path} is of another network ({one_line(error)[:160]}): give the --model, "
        "--num_classes and images that it was trained with (--image_size, --channels)."
      ) from error
    if self._state:
      self._restore_own(path)

  def _restore_own(self, path: str) -> None:
    count, replicas = workers_of(path)
    if not count:  # of an earlier version, which kept the mean of the residual alone
      residual = tf.train.Checkpoint(residual=list(self._state.get("residual", ())))
      tf.train.Checkpoint(residual=residual).read(path).expect_partial()
      return
    is_same = (count, replicas) == (self._num_workers, self._replicas)
    numbers = [self._worker] if is_same else range(count)
    readers = [reader_of(path_of_worker(path, number, count)) for number in numbers]
    for kind, variables in self._state.items():
      for index, variable in enumerate(variables):
        entries = [ENTRY.format(f"{kind}/{index}/{r}") for r in range(replicas)]
        values = [
          reader.get_tensor(entry)
          for reader in readers
          for entry in entries
          if reader.has_tensor(entry)
        ]
        if not values or values[0].shape != variable.shape:
          continue
        mine = local_variables(variable)
        if not is_same:
          values = [np.mean(values, axis=0)] * len(mine)
        for own, value in zip(mine, values):
          own.assign(value)

  def warning(self, there: Position) -> Optional[str]:
    """What makes it doubtful that a run goes on from there as if never stopped."""
    path = os.path.join(self._directory, there.name)
    count, replicas = workers_of(path)
    is_same = (count, replicas) == (self._num_workers, self._replicas)
    if not is_same and self._worker:
      return None  # the chief says so
    if not count:
      return f"{path} is of an earlier version, and lacks what single workers kept"
    if not is_same:
      return (
        f"{path} is of {count} worker(s) of {replicas} replica(s), not of "
        f"{self._num_workers} of {self._replicas}: the run goes on with the means of "
        "what they kept"
      )
    reader = reader_of(path_of_worker(path, self._worker, count))
    cores = int(reader.get_tensor(ENTRY.format("cores")))
    if cores != num_cores():
      return (
        f"worker {self._worker} had {cores} core(s) when {path} was saved, and has "
        f"{num_cores()} now: the last bits of what it computes will differ"
      )
    return None

  def save(
    self, here: Position, then: Callable[[float, int], None] = lambda *_: None
  ) -> None:
    """Saves the state at some position; every worker must call it.

    The state is the same on all workers but for `replica_state`, and no other step
    begins before the call has ended.

    Args:
      here: the position.
      then: what the chief calls when all is written, with the seconds that it took and
        the bytes, from another thread.
    """
    self.finish()
    if not self._pairs:
      return
    for variable, copy in self._pairs:
      copy.assign(local_value(variable))
    self._writing = threading.Thread(target=self._write, args=(here, then))
    self._writing.start()

  def finish(self) -> None:
    """Waits until what `save` began is written; raises what went wrong."""
    if self._writing is not None:
      self._writing.join()
      self._writing = None
    error, self._error = self._error, None
    if error is not None:
      raise error

  def _write(self, here: Position, then: Callable[[float, int], None]) -> None:
    path = os.path.join(self._directory, here.name)
    count, started = self._num_workers, time.perf_counter()
    try:
      tf.io.gfile.makedirs(self._directory)
      if self._state:
        self._own.write(path_of_worker(path, self._worker, count))
      if self._shared is not None:
        if self._state and not _seen(path, count):
          return
        self._shared.write(path)
        self._forget_older(here)
        seconds = time.perf_counter() - started
        then(seconds, checkpoint_files.size(self._directory, here.name))
    except Exception as error:  # for the thread that trains
      self._error = error

  def _forget_older(self, newest: Position) -> None:
    # Later ones are damaged, or this one would not have been made: they go when their
    # turn comes.
    present = checkpoint_files.present(self._directory)
    there = [each for each in present if each <= newest]
    kept = sorted(there[: self._keep])
    files.write_text(
      os.path.join(self._directory, LIST),
      f'model_checkpoint_path: "{newest.name}"\n'
      + "".join(f'all_model_checkpoint_paths: "{each.name}"\n' for each in kept),
    )
    for each in there[self._keep :]:
      checkpoint_files.remove(self._directory, each.name)


def variables_of(item: Any) -> list[tf.Variable]:
  """The variables of a model, an optimizer, a module, or of a variable itself."""
  if isinstance(item, tf.Variable):
    return [item]
  variables = item.variables
  return list(variables() if callable(variables) else variables)


def _seen(path: str, count: int) -> bool:
  """Waits for the files of all workers; False if this program ends meanwhile.

  Raises:
    UserError: one does not come.
  """
  deadline = time.monotonic() + _PATIENCE
  for number in range(count):
    index = f"{path_of_worker(path, number, count)}.index"
    while not tf.io.gfile.exists(index):
      if LEAVING.is_set() or not threading.main_thread().is_alive():
        return False
      if time.monotonic() > deadline:
        raise UserError(
          f"{index} was not seen in {_PATIENCE:g} s: --model_dir must be one directory "
          "that all workers share."
        )
      time.sleep(0.01)
  return True


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
