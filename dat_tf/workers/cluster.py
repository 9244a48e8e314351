"""Who the workers of a run are, and which of them this process is.

TF_CONFIG tells each process which workers there are and which of them it is:

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
     "task": {"type": "worker", "index": 0}}

Every worker runs the same command, with an `index` of its own. A `chief` job of one
task may stand beside the workers; that task is then worker 0 and the others follow.
Without TF_CONFIG a run has one worker. `dat_tf.launch` sets TF_CONFIG for workers on
one host.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from dat_tf.base.errors import UserError

# Environment variables by which the launcher tells workers how often all have been
# started again, and why the last time.
RESTARTS, CAUSE = "DAT_TF_RESTARTS", "DAT_TF_RESTART_CAUSE"
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|[\w.-]+):([0-9]{1,5})", re.ASCII)


@dataclass(frozen=True)
class Cluster:
  """The workers of a run, as one of them sees them.

  Attributes:
    addresses: `host:port` of every worker, by index; empty without TF_CONFIG.
    index: which of them this process is, in [0, num_workers).
  """

  addresses: tuple[str, ...] = ()
  index: int = 0

  @property
  def num_workers(self) -> int:
    return max(1, len(self.addresses))

  @property
  def port(self) -> int:
    """The port of this worker's TensorFlow server; 0 without TF_CONFIG."""
    address = self.addresses[self.index] if self.addresses else ":0"
    return int(address.rpartition(":")[2])

  @property
  def is_chief(self) -> bool:
    """Whether this is worker 0, which alone writes logs, results and checkpoints."""
    return self.index == 0

  @classmethod
  def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Cluster:
    """Reads TF_CONFIG; one worker where it is unset or empty.

    Raises:
      UserError: it is not JSON, lacks or misstates `cluster` or `task`, or names a
        task that the cluster does not have.
    """
    text = environ.get("TF_CONFIG", "").strip()
    if not text:
      return cls()
    try:
      config = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f"TF_CONFIG is not JSON ({error}): {text[:60]!r}. Unset it for one worker, "
        "or quote it so that the shell leaves its braces and quotation marks alone."
      ) from error
    jobs, task = _section(config, "cluster"), _section(config, "task")
    chiefs, workers = _addresses(jobs, "chief"), _addresses(jobs, "worker")
    addresses = (*chiefs, *workers)
    others = jobs.keys() - {"chief", "worker"}
    if others:
      raise _mistake(
        f"cluster has a job {_cut(min(others))}", "list workers and a chief"
      )
    if len(chiefs) > 1:
      raise _mistake(f"cluster has {len(chiefs)} chiefs", "make all but one workers")
    if len(set(addresses)) < len(addresses):
      twice = next(a for a in addresses if addresses.count(a) > 1)
      raise _mistake(
        f"cluster lists {_cut(twice)} twice", "give each task its own port"
      )
    job, index = task.get("type"), task.get("index")
    if job not in ("chief", "worker"):
      raise _mistake(f"task has the type {_cut(job)}", "set it to 'worker' or 'chief'")
    tasks = chiefs if job == "chief" else workers
    if not tasks:
      raise _mistake(f"cluster has no job {job!r}, the task's type", "list it")
    if isinstance(index, str) and re.fullmatch("[0-9]{1,9}", index):
      index = int(index)  # as Kubernetes' operators may write it
    if type(index) is not int or not 0 <= index < len(tasks):
      raise _mistake(
        f"task has the index {_cut(index)}, outside the cluster's {job!r} job",
        f"set a whole number from 0 to {len(tasks) - 1}",
      )
    return cls(addresses, index if job == "chief" else len(chiefs) + index)


def num_cores() -> int:
  """The cores that this process may use, at least 1."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _section(config: Any, name: str) -> dict[str, Any]:
  section = config.get(name) if isinstance(config, dict) else None
  if not isinstance(section, dict):
    example = {
      "cluster": '"cluster": {"worker": ["host:port", ...]}',
      "task": '"task": {"type": "worker", "index": 0}',
    }
    raise UserError(f"TF_CONFIG has no object {name!r}: add {example[name]} to it.")
  return section


def _addresses(jobs: dict[str, Any], job: str) -> tuple[str, ...]:
  addresses = jobs.get(job, [])
  if not isinstance(addresses, list):
    raise _mistake(f"cluster has a job {job!r} that is no list", "list its host:port")
  for address in addresses:
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if not match or not 0 < int(match[2]) < 2**16 or not _is_host(match[1]):
      raise _mistake(
        f"cluster lists {_cut(address)} as a {job}", "write it as 'host:port'"
      )
  return tuple(addresses)


def _is_host(ipv6: Optional[str]) -> bool:
  try:
    return ipv6 is None or bool(ipaddress.IPv6Address(ipv6))
  except ValueError:
    return False


def _cut(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:80]}..."


def _mistake(what: str, remedy: str) -> UserError:
  return UserError(f"TF_CONFIG's {what}: {remedy}.")
