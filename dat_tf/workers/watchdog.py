"""An end to waiting for workers that will not come."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import Any, Optional

from dat_tf.compat import keras, takes_tensors


@takes_tensors
class Watchdog(keras.callbacks.Callback):
  """Ends this process, with one line and code 1, once a step takes too long.

  Before the line stands what each thread is doing.

  A worker that ends or falls silent is noticed by TensorFlow; one that lives, but waits
  for something else than the others do, is not. Collectives can be given a time-out of
  their own, but TensorFlow 2.15 then keeps a thread asleep for each of them until its
  time is over: with 600 s and a few short steps a second, many thousands.
  """

  def __init__(self, seconds: float, worker: int):
    """Starts to watch, from another thread.

    Args:
      seconds: that a step of training or evaluation may take, waiting for data, other
        workers and the compilation of the first step included.
      worker: index of this worker, for the line.
    """
    super().__init__()
    self._seconds, self._worker = seconds, worker
    self._since: Optional[float] = None
    self._epoch, self._step = "", ""
    threading.Thread(target=self._watch, daemon=True).start()

  def _watch(self) -> None:
    while True:
      time.sleep(min(1.0, self._seconds / 4))
      since = self._since
      if since is not None and time.monotonic() - since > self._seconds:
        faulthandler.dump_traceback(sys.stderr)
        print(
          f"Worker {self._worker} ends: {self._step} took more than "
          f"{self._seconds:g} s. See what other workers printed and start all again, "
          "or raise --collective_timeout; they go on from the newest checkpoint.",
          file=sys.stderr,
          flush=True,
        )
        os._exit(1)  # no exception reaches a thread that waits in TensorFlow

  def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
    self._epoch = f"epoch {epoch + 1}"

  def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
    self._begin(batch, self._epoch)

  def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
    self._begin(batch, "evaluation")

  def _begin(self, batch: int, what: str) -> None:
    self._step = f"step {batch + 1} of {what}"
    self._since = time.monotonic()

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    self.rest()

  def rest(self) -> None:
    """Stops watching until the next step begins."""
    self._since = None

  on_test_batch_end = on_train_batch_end
