"""Where the time of a step goes."""

from __future__ import annotations

from typing import Any, Optional

import tensorflow as tf

from dat_tf.compat import keras, takes_tensors


@takes_tensors
class Profiler(keras.callbacks.Callback):
  """Records what the devices do in some steps, for TensorBoard's profiler.

  Steps count from the start of `fit`, from 1 on; the first ones also build graphs. What
  is recorded is written into `directory`/plugins/profile.
  """

  def __init__(self, directory: str, first: int, last: int):
    """Records the steps `first` to `last`, 1 <= first <= last."""
    super().__init__()
    self._directory, self._first, self._last = directory, first, last
    self._step, self._recording = 0, False

  def on_train_batch_begin(
    self, batch: int, logs: Optional[dict[str, Any]] = None
  ) -> None:
    self._step += 1
    if self._step == self._first:
      tf.profiler.experimental.start(self._directory)
      self._recording = True

  def on_train_batch_end(
    self, batch: int, logs: Optional[dict[str, Any]] = None
  ) -> None:
    if self._step == self._last:
      self._stop()

  def on_train_end(self, logs: Optional[dict[str, Any]] = None) -> None:
    self._stop()

  def _stop(self) -> None:
    if self._recording:
      tf.profiler.experimental.stop()
      self._recording = False
