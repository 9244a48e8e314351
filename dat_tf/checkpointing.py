"""Checkpoints of a run."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from dat_tf.compat import keras, local_value


class Checkpoints:
  """The newest few checkpoints of a run: weights, optimizer and number of epochs done.

  TensorFlow writes a checkpoint under a temporary name and only then lists it in the
  file `checkpoint`: what that file lists is whole, whenever the run is stopped.

  All workers must save together, since to save batch-norm statistics means to average
  them over all workers. Only the chief's files stay: the others write theirs to a
  temporary directory of their own host.
  """

  def __init__(
    self,
    directory: str,
    tracked: Mapping[str, Any],
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
      is_chief: whether this worker's files stay.
    """
    self._epochs = tf.Variable(0, dtype=tf.int64, trainable=False, name="epochs_done")
    there = {name: item for name, item in tracked.items() if item is not None}
    self._checkpoint = tf.train.Checkpoint(epochs=self._epochs, **there)
    self._directory, self._keep, self._is_chief = directory, keep, is_chief

  def restore(self) -> int:
    """Restores the newest checkpoint; returns its epochs done, 0 without one."""
    newest = tf.train.latest_checkpoint(self._directory)
    if newest is None:
      return 0
    status = self._checkpoint.restore(newest)
    status.assert_existing_objects_matched().expect_partial()
    return int(self._epochs)

  def save(self, epochs: int) -> None:
    """Saves the state after so many epochs. Every worker must call it."""
    self._epochs.assign(epochs)
    if self._is_chief:
      self._write(self._directory, epochs)
    else:
      with tempfile.TemporaryDirectory() as directory:
        self._write(directory, epochs)

  def _write(self, directory: str, epochs: int) -> None:
    manager = tf.train.CheckpointManager(
      self._checkpoint, directory, max_to_keep=self._keep, checkpoint_name="epoch"
    )
    manager.save(checkpoint_number=epochs)


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


def fingerprint(classifier: keras.Model) -> str:
  """A hash of a plain model's weights."""
  digest = hashlib.sha256()
  for weight in classifier.get_weights():
    digest.update(weight.tobytes())
  return digest.hexdigest()[:16]
