"""Where a run keeps what it writes."""

from __future__ import annotations

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class RunDirectory:
  """The paths of what a run writes; the directory may be in an object store.

  Attributes:
    path: MODEL_DIR.
  """

  path: str

  def _below(self, name: str) -> str:
    return os.path.join(self.path, name)

  @property
  def settings(self) -> str:
    """A flagfile that reproduces the run."""
    return self._below("config.flags")

  @property
  def results(self) -> str:
    """What it reached, JSON."""
    return self._below("results.json")

  @property
  def checkpoints(self) -> str:
    """The newest checkpoints, a directory."""
    return self._below("checkpoints")

  @property
  def best(self) -> str:
    """The weights that early stopping kept, a directory."""
    return self._below("best")

  @property
  def export(self) -> str:
    """The classifier as a plain Keras model, a directory."""
    return self._below("export")

  @property
  def logs(self) -> str:
    """What TensorBoard shows, a directory."""
    return self._below("logs")

  @property
  def events(self) -> str:
    """What happened to the run, a line of JSON each."""
    return self._below("events.jsonl")

  @property
  def evaluation(self) -> str:
    """The outcome of each attack on each example, a directory."""
    return self._below("evaluation")

  @property
  def report(self) -> str:
    """What was measured, to look at: a page."""
    return self._below("report.html")

  @property
  def plots(self) -> str:
    """The plots of the report, a directory."""
    return self._below("report")

  @property
  def lock(self) -> str:
    """Who writes there now."""
    return self._below("lock")
