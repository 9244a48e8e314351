"""One progress bar for the whole run."""

from __future__ import annotations

import sys
import time
from typing import Any, Optional

import tqdm

from dat_tf.compat import keras, takes_tensors


@takes_tensors
class Progress(keras.callbacks.Callback):
  """Shows steps done and to do, time left, loss, and clean and robust accuracy.

  Of `fit` it shows the whole run, of an `evaluate` by itself that one. On a terminal
  the bar redraws itself; in a file or pipe it is a line every ten seconds.
  """

  def __init__(self, steps: int, first_step: int = 0):
    """Of `steps` steps, the first `first_step` were done by an earlier run."""
    super().__init__()
    self._steps, self._first_step = steps, first_step
    self._training = False
    self._bar: Optional[tqdm.tqdm] = None

  def close(self) -> None:
    """Ends the bar's line, also after an exception, of which Keras says nothing."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def on_train_begin(self, logs: Optional[dict[str, Any]] = None) -> None:
    self._training = True
    self._open("training")

  def on_test_begin(self, logs: Optional[dict[str, Any]] = None) -> None:
    if not self._training:
      self._open("evaluating")

  def on_epoch_begin(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
    assert self._bar is not None
    self._bar.set_description_str(f"epoch {epoch + 1}", refresh=False)

  def on_train_batch_end(
    self, batch: int, logs: Optional[dict[str, Any]] = None
  ) -> None:
    self._advance(logs)

  def on_test_batch_end(
    self, batch: int, logs: Optional[dict[str, Any]] = None
  ) -> None:
    if not self._training:
      self._advance(logs)

  def on_epoch_end(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
    self._show(logs)

  def on_train_end(self, logs: Optional[dict[str, Any]] = None) -> None:
    self._training = False
    self.close()

  def on_test_end(self, logs: Optional[dict[str, Any]] = None) -> None:
    if not self._training:
      self._show(logs)
      self.close()

  def _open(self, name: str) -> None:
    terminal = sys.stderr.isatty()
    self._interval = 0.5 if terminal else 10.0
    self._shown = time.monotonic()
    self._bar = tqdm.tqdm(
      desc=name,
      total=self._steps,
      initial=self._first_step,
      unit="step",
      leave=terminal,  # a line of its own is there already
      file=sys.stderr if terminal else _Lines(),
      dynamic_ncols=terminal,
      bar_format=None
      if terminal
      else "{desc}: {n}/{total} steps [{elapsed}<{remaining}]{postfix}",
    )

  def _advance(self, logs: Optional[dict[str, Any]]) -> None:
    assert self._bar is not None
    # Not `update`, which would draw the bar with the figures of the last time.
    self._bar.n += 1
    if time.monotonic() - self._shown >= self._interval:
      self._show(logs)

  def _show(self, logs: Optional[dict[str, Any]]) -> None:
    names = (
      "loss",
      "accuracy",
      "robust_accuracy",
      "val_accuracy",
      "val_robust_accuracy",
    )
    assert self._bar is not None
    logs = logs or {}
    self._shown = time.monotonic()
    self._bar.set_postfix(
      {name: f"{float(logs[name]):.3f}" for name in names if name in logs}
    )


class _Lines:
  """A bar that cannot redraw itself becomes a line each time it changes."""

  _last = ""

  def write(self, text: str) -> None:
    line = text.strip("\r\n ")
    if line and line != self._last:
      self._last = line
      sys.stderr.write(f"{line}\n")

  def flush(self) -> None:
    sys.stderr.flush()
