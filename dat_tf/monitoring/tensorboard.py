"""What TensorBoard shows of a run."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from dat_tf.base import files
from dat_tf.compat import keras, takes_tensors
from dat_tf.data import framing
from dat_tf.monitoring.pictures import Attacked, picture_grid


@takes_tensors
class Scalars(keras.callbacks.Callback):
  """Writes a run's metrics, on the chief, to `directory`/train and /test.

  Every `every` steps, and after each epoch: loss, accuracy, robust_accuracy (means over
  the epoch so far), gradient_norm, learning_rate, images_per_second,
  bytes_sent_per_step, whatever else it is given, and the trust ratio of each layer, and
  their histogram, if the optimizer has them. After each epoch also the metrics of
  the test data, if they were computed, and, of some images under attack, a picture and
  histograms of the perturbations: the changes of all pixels, and each image's norm.
  """

  def __init__(
    self,
    directory: str,
    every: int,
    global_batch_size: int,
    bytes_sent_per_step: int,
    attack: Optional[Callable[[], Attacked]] = None,
    *,
    more: Callable[[], dict[str, Optional[float]]] = dict,
  ):
    """Opens the logs.

    Args:
      directory: TensorBoard's log directory.
      every: steps between two points.
      global_batch_size: images in a step, for images_per_second.
      bytes_sent_per_step: by each worker, for its gradient.
      attack: called after each epoch (`AttackedImages`).
      more: further figures by name, None for what is not known yet.
    """
    super().__init__()
    self._train = tf.summary.create_file_writer(os.path.join(directory, "train"))
    self._test = tf.summary.create_file_writer(os.path.join(directory, "test"))
    self._every, self._batch = every, global_batch_size
    self._bytes, self._attack = bytes_sent_per_step, attack
    self._more = more

  def on_epoch_begin(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
    self._restart_clock()

  def on_train_batch_end(
    self, batch: int, logs: Optional[dict[str, Any]] = None
  ) -> None:
    self._steps_timed += 1
    step = self._step()
    if step % self._every == 0:
      self._write(step, logs or {})

  def on_epoch_end(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
    logs, step = logs or {}, self._step()
    tests = {name for name in logs if name.startswith("val_")}
    if self._steps_timed:
      self._write(step, {name: logs[name] for name in logs.keys() - tests})
    with self._test.as_default():
      for name in tests:
        tf.summary.scalar(name[len("val_") :], float(logs[name]), step)
    if self._attack:
      self._write_perturbations(step, self._attack())
    self._train.flush()
    self._test.flush()

  def _write_perturbations(self, step: int, attacked: Attacked) -> None:
    change = attacked.adversarial - attacked.images
    flat = np.abs(change).reshape(len(change), -1)
    with self._train.as_default():
      grid = picture_grid(*attacked)
      tf.summary.image("clean_perturbation_adversarial", grid[None], step)
      tf.summary.histogram("perturbation/pixels", change, step)
      tf.summary.histogram("perturbation/linf_norm", flat.max(axis=1), step)
      tf.summary.histogram("perturbation/l2_norm", np.linalg.norm(flat, axis=1), step)

  def _write(self, step: int, logs: dict[str, Any]) -> None:
    metrics = {name: float(value) for name, value in logs.items()}
    metrics["learning_rate"] = self._learning_rate(step - 1)
    metrics["images_per_second"] = (
      self._batch * self._steps_timed / (time.perf_counter() - self._started)
    )
    metrics["bytes_sent_per_step"] = self._bytes
    for name, value in self._more().items():
      if value is not None:
        metrics[name] = value
    ratios = {
      layer: float(tf.convert_to_tensor(ratio))
      for layer, ratio in self._trust_ratios().items()
    }
    metrics.update({f"trust_ratio/{layer}": ratio for layer, ratio in ratios.items()})
    with self._train.as_default():
      for name, value in metrics.items():
        tf.summary.scalar(name, value, step)
      if ratios:
        tf.summary.histogram("trust_ratios", list(ratios.values()), step)
    self._train.flush()  # before a checkpoint of this step is there
    self._restart_clock()

  def _step(self) -> int:
    return int(tf.convert_to_tensor(self.model.optimizer.iterations))

  def _restart_clock(self) -> None:
    self._started, self._steps_timed = time.perf_counter(), 0

  def _learning_rate(self, step: int) -> float:
    rate = self.model.optimizer.learning_rate
    return float(tf.convert_to_tensor(rate(step) if callable(rate) else rate))

  def _trust_ratios(self) -> dict[str, tf.Variable]:
    optimizer = self.model.optimizer
    return optimizer.trust_ratios() if hasattr(optimizer, "trust_ratios") else {}


def forget_later(directory: str, step: int, epochs: int) -> None:
  """Removes what a run has written of steps that it is to do again.

  Args:
    directory: TensorBoard's log directory of the run, in which nobody writes now.
    step: that of the checkpoint from which the run goes on.
    epochs: the number that was done by then.
  """
  for folder, last in (("train", step), ("test", step), ("summary", epochs)):
    path = os.path.join(directory, folder)
    for name in files.names(path):
      if "tfevents" in name:
        _cut(os.path.join(path, name), last)


def _cut(path: str, last: int) -> None:
  """Keeps the events of a file up to a step."""
  records = list(framing.read_while_good(path))
  kept = [each for each in records if tf.compat.v1.Event.FromString(each).step <= last]
  # A record has 16 bytes around it. The file ends within one if the run was killed.
  is_whole = sum(len(each) + 16 for each in records) == tf.io.gfile.stat(path).length
  if is_whole and len(kept) == len(records):
    return
  with files.complete_file(path) as temporary:
    with tf.io.TFRecordWriter(temporary) as writer:
      for record in kept:
        writer.write(record)
