"""How fast a run trains."""

from __future__ import annotations

import time
from typing import Any, Optional

from dat_tf.compat import keras, takes_tensors


@takes_tensors
class StepClock(keras.callbacks.Callback):
  """Steps a second, from the end of the first step: that one builds the graph."""

  def __init__(self) -> None:
    super().__init__()
    self._first = self._last = 0.0
    self._steps = 0

  def on_train_batch_end(
    self, batch: int, logs: Optional[dict[str, Any]] = None
  ) -> None:
    self._last = time.perf_counter()
    self._first = self._first or self._last
    self._steps += 1

  @property
  def steps_per_second(self) -> float:
    """0 for a run of a single step."""
    return (self._steps - 1) / (self._last - self._first) if self._steps > 1 else 0.0
