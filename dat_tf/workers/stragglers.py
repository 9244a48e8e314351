"""A worker that keeps the others waiting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Optional

# How many times as long as the others it takes, and how often in a row.
_MUCH, _OFTEN = 1.5, 10


class Stragglers:
  """Finds the worker whose own part of a step takes much longer than the others'.

  Attributes:
    ratio: by which the slowest worker exceeds the median of the others, when it was
      last looked; None before.
  """

  def __init__(self) -> None:
    self.ratio: Optional[float] = None
    self._worker, self._times = -1, 0
    self._told: set[int] = set()

  def look(self, seconds: Sequence[float]) -> Optional[str]:
    """A line that names the straggler, once for each worker that becomes one.

    Args:
      seconds: what each worker's own part of a step takes: all but the reduction, in
        which the fast ones wait for the slow. Of two workers at least.
    """
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    others = [s for worker, s in enumerate(seconds) if worker != slowest]
    self.ratio = seconds[slowest] / max(statistics.median(others), 1e-6)
    self._times = self._times + 1 if slowest == self._worker else 1
    self._worker = slowest
    if self.ratio < _MUCH:
      self._times = 0
    if self._times < _OFTEN or slowest in self._told:
      return None
    self._told.add(slowest)
    return (
      f"Worker {slowest} takes {self.ratio:.1f} times as long as the others for its "
      "own part of a step, and all wait for it: see what else runs on its host."
    )
