"""Checkpoints of a run, and the export of its classifier."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Optional

import tensorflow as tf


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
    classifier: tf.keras.Model,
    optimizer: Optional[tf.keras.optimizers.legacy.Optimizer] = None,
    residual: Optional[tf.Module] = None,
    keep: int = 2,
    is_chief: bool = True,
  ):
    """Tracks a model.

    Args:
      directory: where checkpoints are, or will be.
      classifier: its weights are saved and restored, in place.
      optimizer: likewise its state, unless None.
      residual: likewise what holds the residual of error feedback, unless None.
      keep: number of newest checkpoints kept.
      is_chief: whether this worker's files stay.
    """
    self._epochs = tf.Variable(0, dtype=tf.int64, trainable=False, name="epochs_done")
    tracked = {"classifier": classifier, "epochs": self._epochs}
    if optimizer is not None:
      # Slots made now are restored now; made by the first step, they would be restored
      # inside its graph.
      optimizer._create_all_weights(classifier.trainable_variables)
      tracked["optimizer"] = optimizer
    if residual is not None:
      tracked["residual"] = residual
    self._checkpoint = tf.train.Checkpoint(**tracked)
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


def copy_weights(source: tf.keras.Model, target: tf.keras.Model) -> None:
  """Gives a plain model, which belongs to no strategy, a distributed model's weights.

  One worker alone can then run it and save it. The weights are this replica's own and
  are read without a collective: average the batch-norm statistics of all workers before
  (`AdversarialModel.average_statistics`).

  Args:
    source: a model made under any strategy.
    target: `tf.keras.models.clone_model(source)`, made outside of the strategy's scope.
  """
  for variable, copied in zip(source.weights, target.weights):
    replicas = getattr(variable, "values", [variable])
    copied.assign(replicas[0].read_value())


def export(classifier: tf.keras.Model, directory: str) -> None:
  """Writes a plain Keras model that `tf.keras.models.load_model` opens anywhere.

  Args:
    classifier: a plain model (`copy_weights`), images in [0, 1] -> logits.
    directory: replaced as a whole, once the new one is complete; in an object store,
      file by file.
  """
  # Keras warns of a model that was never compiled.
  classifier.compile(
    loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  )
  in_store = "://" in directory
  parent = None if in_store else os.path.dirname(os.path.abspath(directory))
  with tempfile.TemporaryDirectory(dir=parent) as temporary:
    new, old = os.path.join(temporary, "new"), os.path.join(temporary, "old")
    classifier.save(new, include_optimizer=False, save_format="tf")
    if in_store:
      _upload(new, directory)
      return
    if os.path.exists(directory):
      os.rename(directory, old)
    os.rename(new, directory)
    shutil.rmtree(old, ignore_errors=True)


def _upload(source: str, target: str) -> None:
  """Copies a directory to an object store, over what is there of the same names."""
  for folder, _, names in os.walk(source):
    there = os.path.normpath(os.path.join("/", os.path.relpath(folder, source)))
    tf.io.gfile.makedirs(target + there)
    for name in names:
      path = os.path.join(there, name)
      if tf.io.gfile.exists(target + path):  # some stores would write into it
        tf.io.gfile.remove(target + path)
      tf.io.gfile.copy(source + path, target + path)
