"""What happens to a run: its starts, checkpoints and failures, and its goodput."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import statistics
from typing import Any, Optional

import tensorflow as tf

from dat_tf.base import files
from dat_tf.workers.cluster import CAUSE, RESTARTS


class Events:
  """A file with a line of JSON for each event, over all starts of a run.

  Each has `time` (ISO 8601, UTC), `event`, and `epochs` and `step`, how far training
  had come. The events:

    start         `workers`; after the launcher's restart `restarts` and `cause`, too
    first_step    it is done: the graph is built
    save          a checkpoint: `seconds` that writing it took, its `bytes`, and
                  `seconds_per_step` of the steps since the start
    told_to_end   all have saved, since a worker got SIGTERM or SIGUSR1
    failure       an error ends the run: its `cause`
    trained       training is at its end

  A process that is killed leaves none; the next start tells of it.
  """

  def __init__(self, path: Optional[str]):
    """Reads what is there.

    Args:
      path: of the file, which may be missing; None keeps nothing and writes nothing, as
        all workers but the chief do.
    """
    self._path = path
    self._events = read_events(path) if path else []
    text = (files.read_text(path) if path else None) or "\n"
    # What is written next is a line of its own, even if the last one was cut off.
    self._begin = "" if text.endswith("\n") else "\n"

  def write(self, event: str, epochs: int, step: int, **more: Any) -> None:
    """Adds an event that happens now."""
    if not self._path:
      return
    now = datetime.datetime.now(datetime.timezone.utc)
    line = {
      "time": now.isoformat(timespec="milliseconds"),
      "event": event,
      "epochs": epochs,
      "step": step,
      **more,
    }
    self._events.append(line)
    tf.io.gfile.makedirs(os.path.dirname(self._path))
    with tf.io.gfile.GFile(self._path, "a") as file:
      file.write(f"{self._begin}{json.dumps(line)}\n")
    self._begin = ""

  def write_here(self, event: str, **more: Any) -> None:
    """Adds an event that happens where the newest one did, as far as is known."""
    if self._events:
      last = self._events[-1]
      self.write(event, last["epochs"], last["step"], **more)

  def write_start(self, epochs: int, step: int, workers: int) -> None:
    """Adds a start, and what the launcher tells of it."""
    restarts = int(os.environ.get(RESTARTS, "0"))
    more = {"restarts": restarts, "cause": os.environ.get(CAUSE, "")}
    self.write("start", epochs, step, workers=workers, **(more if restarts else {}))

  def goodput(self) -> Optional[float]:
    """See the function `goodput`; until now."""
    return goodput(self._events, datetime.datetime.now(datetime.timezone.utc))


def read_events(path: str) -> list[dict[str, Any]]:
  """The events of a file, in order; lines that were cut off are left out."""
  events = []
  for line in (files.read_text(path) or "").splitlines():
    with contextlib.suppress(ValueError):  # the run was killed while it wrote
      events.append(json.loads(line))
  return events


def goodput(events: list[dict[str, Any]], until: datetime.datetime) -> Optional[float]:
  """The share of a run's time that went into steps which count, 0 to 1.

  That is the number of steps that the newest checkpoint has, times what a step usually
  takes, over all the time since the run's first start: what it was down, started, built
  graphs, saved, evaluated, and did twice is not in it.

  Args:
    events: of `read_events`.
    until: when the time ends.

  Returns:
    None as long as there is no checkpoint.
  """
  saves = [event for event in events if event["event"] == "save"]
  paces = [event["seconds_per_step"] for event in saves if event["seconds_per_step"]]
  if not paces:
    return None
  passed = until - datetime.datetime.fromisoformat(events[0]["time"])
  useful = saves[-1]["step"] * statistics.median(paces)
  return min(1.0, useful / max(passed.total_seconds(), 1e-3))
