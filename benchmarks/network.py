"""Workers on this host whose links have a rate.

    with network.links(num_workers=4, rate="1gbit") as namespaces:
      launch(network.inside(namespaces, command), 4, output)

Each worker has a Linux network namespace of its own and in it one interface, e0, with
the address 10.77.0.1, 10.77.0.2, ... A veth pair joins it to a bridge in a further
namespace. The token bucket filter of `tc` at either end of the pair gives each worker
the rate in both directions at once, as a full-duplex network card has it.

The namespaces have no names: files that this process holds open are all that keeps
them. However it ends, they vanish with it, and with them all that is in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

from dat_tf.base.errors import UserError

LOOPBACK = "loopback"

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_OWN = "/proc/self/ns/net"
_RATE = re.compile(r"[1-9]\d*[kmg]bit")
_SHAPING = "burst 256kb latency 400ms".split()
_LIBC = ctypes.CDLL(None, use_errno=True)


def check(rate: str) -> None:
  """Whether workers can be linked here at this rate, or over the loopback.

  Raises:
    UserError: it is no rate; or this is not Linux, or not root, or without iproute2.
  """
  if rate != LOOPBACK and not _RATE.fullmatch(rate):
    raise UserError(f"--rates: {rate!r} is none; write it like 200mbit, or loopback.")
  if sys.platform != "linux":
    raise UserError("--rates: bytes and rates are those of Linux' network interfaces.")
  if rate != LOOPBACK and (os.geteuid() or not all(map(shutil.which, ("ip", "tc")))):
    raise UserError(
      f"--rates={rate} needs root, for network namespaces, and the programs ip and tc, "
      "of the package iproute2; --rates=loopback does without."
    )


@contextlib.contextmanager
def links(num_workers: int, rate: str) -> Iterator[list[str]]:
  """Makes a network for so many workers, for as long as the context lasts.

  Args:
    num_workers: at most 254.
    rate: of each worker, in either direction, such as `200mbit`.

  Yields:
    For each worker the path of its namespace.

  Raises:
    UserError: the system does not allow it.
  """
  with contextlib.ExitStack() as files:

    def new_namespace() -> str:
      _call("unshare", _CLONE_NEWNET)
      file = files.enter_context(open(_OWN, "rb"))
      return f"/proc/{os.getpid()}/fd/{file.fileno()}"

    home = files.enter_context(open(_OWN, "rb"))
    hub = new_namespace()
    try:
      _run("ip link add bridge type bridge")
      _run("ip link set bridge up")
      namespaces = []
      for index, address in enumerate(_addresses(num_workers)):
        namespaces.append(new_namespace())
        _run("ip link set lo up")
        _run(f"ip link add e0 type veth peer name port{index} netns {hub}")
        _run(f"ip address add {address}/24 dev e0")
        _run("ip link set e0 up")
        _run("tc qdisc add dev e0 root tbf rate", rate, *_SHAPING)
        _enter(hub)
        _run(f"ip link set port{index} master bridge up")
        _run(f"tc qdisc add dev port{index} root tbf rate", rate, *_SHAPING)
    finally:
      _call("setns", home.fileno(), _CLONE_NEWNET)
    yield namespaces


def inside(namespaces: Sequence[str], command: Sequence[str]) -> list[str]:
  """The command that runs `command` as a worker in its namespace.

  For `dat_tf.launch`: the worker's index and the ports are taken from TF_CONFIG, whose
  addresses are replaced by the namespaces' own.
  """
  return [sys.executable, __file__, ",".join(namespaces), *command]


def bytes_sent() -> int:
  """What this namespace's e0, or else its loopback, has sent so far."""
  with open("/proc/net/dev", encoding="ascii") as file:
    lines = (line.partition(":") for line in file)
    counts = {name.strip(): fields.split() for name, _, fields in lines if fields}
  return int(counts["e0" if "e0" in counts else "lo"][8])


def _addresses(num_workers: int) -> list[str]:
  return [f"10.77.0.{1 + index}" for index in range(num_workers)]


def _run(command: str, *arguments: str) -> None:
  result = subprocess.run(
    [*command.split(), *arguments], capture_output=True, text=True, check=False
  )
  if result.returncode:
    raise UserError(f"--rates: `{' '.join(result.args)}` failed: {result.stderr}")


def _enter(namespace: str) -> None:
  with open(namespace, "rb") as file:
    _call("setns", file.fileno(), _CLONE_NEWNET)


def _call(name: str, *arguments: int) -> None:
  """Calls a function of the C library that returns 0 or sets errno."""
  if getattr(_LIBC, name)(*arguments):
    reason = os.strerror(ctypes.get_errno())
    raise UserError(
      f"--rates: {name} of a network namespace failed ({reason}): run as root with all "
      "capabilities, or with --rates=loopback."
    )


def _become_worker(namespaces: str, *command: str) -> None:
  config = json.loads(os.environ["TF_CONFIG"])
  workers = config["cluster"]["worker"]
  _enter(namespaces.split(",")[config["task"]["index"]])
  config["cluster"]["worker"] = [
    f"{address}:{worker.rpartition(':')[2]}"
    for address, worker in zip(_addresses(len(workers)), workers)
  ]
  os.environ["TF_CONFIG"] = json.dumps(config)
  os.execvp(command[0], command)


if __name__ == "__main__":
  _become_worker(*sys.argv[1:])
