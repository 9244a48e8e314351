"""How far a run is, told from outside of it."""

from __future__ import annotations

import datetime
from typing import Any

from dat_tf.base.errors import UserError
from dat_tf.base.run_directory import RunDirectory
from dat_tf.monitoring import goodput, read_events
from dat_tf.program.locking import owner_of


def status(directory: RunDirectory) -> str:
  """A few lines: whether a run is at work there, how far it is, restarts and goodput.

  Raises:
    UserError: nothing was ever trained there.
  """
  events, path = read_events(directory.events), directory.path
  starts = [event for event in events if event["event"] == "start"]
  if not starts:
    raise UserError(f"{path} tells of no training: there is no {directory.events}.")
  owner, last = owner_of(path), events[-1]
  # A start goes on from what is saved.
  saved = [event for event in events if event["event"] in ("start", "save")][-1]
  lines = [
    f"{path}: process {owner['pid']} on {owner['host']} is at work since "
    f"{owner['since']}."
    if owner
    else f"{path}: nothing runs there."
  ]
  lines.append(
    f"{starts[-1]['workers']} worker(s); {saved['epochs']} epoch(s), "
    f"{saved['step']} step(s) are done and saved, {_ago(saved)} ago."
  )
  if len(starts) > 1:
    cause = starts[-1].get("cause")
    lines.append(
      f"Training has started {len(starts)} times, the last time {_ago(starts[-1])} ago"
      + (f": {cause[:1].lower()}{cause[1:]}." if cause else ".")
    )
  if last["event"] == "failure":
    lines.append(f"It ended by an error: {last['cause']}")
  share = goodput(events, _moment(last) if not owner else _now())
  if share is not None:
    lines.append(f"Goodput: {share:.1%}.")
  return "\n".join(lines)


def _now() -> datetime.datetime:
  return datetime.datetime.now(datetime.timezone.utc)


def _moment(event: dict[str, Any]) -> datetime.datetime:
  return datetime.datetime.fromisoformat(event["time"])


def _ago(event: dict[str, Any]) -> str:
  return str(
    datetime.timedelta(seconds=round((_now() - _moment(event)).total_seconds()))
  )
