"""Starts the workers of a run on this host, and ends them together.

    python -m dat_tf.launch --num_workers=2 -- run_dat.py --flagfile=flags/NAME.flags

What follows `--` is run once a worker: by this Python if it begins with a .py file or
with -m, else as a program. Each worker finds the cluster in TF_CONFIG, has its share of
the cores, and writes through the launcher, which puts `[worker 0] ` before its lines.

SIGINT, SIGTERM and SIGUSR1 are passed on to the workers. When one worker fails the
others are ended too, for they would wait for it; the launcher then repeats the last
lines of the one that failed first. Exit code: 0 if all workers ended with 0; 75 if they
saved and ended because they were told to; else that of the first to fail (128 + the
signal, if one ended it), or 128 + the signal that was passed on.

With --max_restarts=N all workers are started again after a failure, up to N times, and
a run goes on from its newest checkpoint. A worker that ends with code 2, a user's
mistake, is never started again: it would end in the same way.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import fcntl
import json
import os
import pty
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Callable, NamedTuple, NoReturn, Optional, Union

from dat_tf.base.errors import UserError, exit_on_user_error
from dat_tf.workers.cluster import CAUSE, RESTARTS
from dat_tf.workers.preemption import PREEMPTED

# From the request to end until SIGKILL, after a worker's failure. It is short: the
# others can only wait for the one that failed, and as long as they do so inside
# TensorFlow they do not hear SIGINT.
_FAILURE_GRACE_SECONDS = 2.0
_LAST_LINES = 20
_USERS_MISTAKE = 2  # exit code
# A carriage return ends a line too: progress bars redraw theirs after it.
_LINE = re.compile(rb"[^\r\n]*\r?\n|[^\r\n]+\r")
_ERASE_LINE = b"\x1b[K"
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LIBC = ctypes.CDLL(None)


class Outcome(NamedTuple):
  """How a launch ended.

  Attributes:
    exit_code: as the head of this module says.
    message: which worker failed first, how, and its last lines; empty if none did. Of
      a worker that ended with code 2, a user's mistake, it has the last line alone.
  """

  exit_code: int
  message: str = ""

  @property
  def may_go_better(self) -> bool:
    """Whether a worker failed by something other than a user's mistake."""
    return bool(self.message) and self.exit_code != _USERS_MISTAKE


def launch_again(
  command: Sequence[str],
  num_workers: int,
  output: BinaryIO,
  *,
  max_restarts: int = 0,
  backoff: float = 0.0,
  grace: float = 30.0,
) -> Outcome:
  """Runs `launch`, again after each failure that may not come again.

  Args:
    command: as `launch`'s.
    num_workers: as `launch`'s.
    output: as `launch`'s; it is told of each restart, and of the failure before it.
    max_restarts: how often all workers are started again, at most.
    backoff: seconds before each restart; a signal that comes meanwhile ends the wait.
    grace: as `launch`'s.

  Returns:
    How the last launch ended, or 128 + the signal that came between two.
  """
  signals: queue.SimpleQueue[int] = queue.SimpleQueue()
  with _signals_put_to(signals):
    told: dict[str, str] = {}
    for restart in range(1, max_restarts + 1):
      outcome = launch(command, num_workers, output, grace, told)
      if not outcome.may_go_better:
        return outcome
      again = f"All workers start again ({restart} of {max_restarts} times)"
      output.write(f"{outcome.message}\n{again} after {backoff:g} s.\n".encode())
      output.flush()
      cause = outcome.message.partition("; the last it wrote")[0]
      told = {RESTARTS: str(restart), CAUSE: cause}
      with contextlib.suppress(queue.Empty):
        return Outcome(128 + signals.get(timeout=backoff))
  return launch(command, num_workers, output, grace, told)


def launch(
  command: Sequence[str],
  num_workers: int,
  output: BinaryIO,
  grace: float = 30.0,
  told: Optional[Mapping[str, str]] = None,
) -> Outcome:
  """Runs `command` in `num_workers` processes and waits for their end.

  It takes SIGINT, SIGTERM and SIGUSR1 meanwhile, so it must be called from the main
  thread.

  Args:
    command: a program and its arguments.
    num_workers: at least 1.
    output: receives what the workers write, line by line. If it is a terminal the chief
      writes to one too, and its progress bar redraws in place.
    grace: seconds that the workers have to end after a signal; a second SIGINT ends
      them sooner. After one of them failed they have 2 s. Then they are killed.
    told: further variables of the workers' environment.

  Raises:
    UserError: the program cannot be run.
  """
  erase = _ERASE_LINE if output.isatty() else b""

  def write(line: bytes) -> None:
    output.write(erase + line)  # in one call, so that no other thread comes between
    output.flush()

  # A worker that ended, or the number of a signal that came. A signal's handler may put
  # to a SimpleQueue even while it interrupts a get.
  events: queue.SimpleQueue[Union[_Worker, int]] = queue.SimpleQueue()
  addresses = free_addresses(num_workers)
  workers: list[_Worker] = []
  running: set[_Worker] = set()
  failed: Optional[_Worker] = None
  received = 0
  deadline: Optional[float] = None
  with _signals_put_to(events):
    try:
      for index, cores in enumerate(split_cores(num_workers)):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        worker = _Worker(
          index,
          command,
          environment={**(told or {}), "TF_CONFIG": config},
          cores=cores,
          as_terminal=bool(erase) and index == 0,
          write=write,
          events=events,
        )
        workers.append(worker)
        running.add(worker)
      while running:
        try:
          event = events.get(timeout=deadline and max(0.0, deadline - time.monotonic()))
        except queue.Empty:
          event = signal.SIGKILL
        if isinstance(event, _Worker):
          running.remove(event)
          if event.process.returncode in (0, PREEMPTED) or deadline:
            continue
          failed, request = event, int(signal.SIGTERM)
        else:
          received = received or event
          request = signal.SIGKILL if deadline and event == signal.SIGINT else event
        for worker in running:
          worker.send(request)
        deadline = time.monotonic() + (_FAILURE_GRACE_SECONDS if failed else grace)
    finally:
      for worker in running:
        worker.send(signal.SIGKILL)
  for worker in workers:
    worker.finish_reading()
  write(b"")  # leaves no half of a progress bar on a terminal
  if failed:
    return failed.outcome()
  codes = {worker.process.returncode for worker in workers}
  if codes <= {0, PREEMPTED}:
    return Outcome(max(codes))
  return Outcome(128 + received)


def free_addresses(count: int) -> list[str]:
  """`count` different addresses on this host, at whose ports nobody listens."""
  with contextlib.ExitStack() as stack:
    # All stay open until the last is bound, so that they differ.
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for each in sockets:
      each.bind(("127.0.0.1", 0))
    return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def split_cores(num_workers: int) -> list[set[int]]:
  """Each worker's share of this process's cores; TensorFlow has a thread for each.

  Neighbouring cores stay together. More workers than cores take turns in sharing them.
  The shares are empty, for no restriction, where the system has no such thing.
  """
  if not hasattr(os, "sched_getaffinity"):
    return [set()] * num_workers
  cores = sorted(os.sched_getaffinity(0))
  if num_workers > len(cores):
    return [{cores[i % len(cores)]} for i in range(num_workers)]
  bounds = [i * len(cores) // num_workers for i in range(num_workers + 1)]
  return [set(cores[start:end]) for start, end in zip(bounds, bounds[1:])]


class _Worker:
  """One process, a thread that reads what it writes, and one that awaits its end."""

  def __init__(
    self,
    index: int,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    cores: set[int],
    as_terminal: bool,
    write: Callable[[bytes], None],
    events: queue.SimpleQueue[Union[_Worker, int]],
  ):
    self._index = index
    self._last_lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
    prefix = f"[worker {index}] ".encode()
    source, sink = _terminal(margin=len(prefix)) if as_terminal else os.pipe()
    try:
      self.process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=sink,
        env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        preexec_fn=lambda: _prepare(cores),
      )
    except OSError as error:
      os.close(source)
      raise UserError(
        f"{command[0]!r} cannot be run ({error.strerror}): give a .py file, -m and a "
        "module, or a program after --."
      ) from error
    finally:
      os.close(sink)
    self._reader = threading.Thread(
      target=self._read, args=(source, prefix, write), daemon=True
    )
    self._reader.start()
    threading.Thread(target=self._wait, args=(events,), daemon=True).start()

  def send(self, signal_number: int) -> None:
    """Sends a signal to the process and to what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.process.pid, signal_number)

  def finish_reading(self) -> None:
    # Not for ever: a daemon that the worker left behind may hold its output open.
    self._reader.join(timeout=1.0)

  def outcome(self) -> Outcome:
    """The exit code and message of this worker's failure, once it has ended."""
    code, lines = self.process.returncode, list(self._last_lines)
    if code < 0:
      how = f"was ended by signal {-code} ({signal.strsignal(-code)})"
    else:
      how = f"failed with exit code {code}"
    if code == _USERS_MISTAKE:
      lines = lines[-1:]
    heading = f"Worker {self._index} {how}; the last it wrote:"
    return Outcome(128 - code if code < 0 else code, "\n".join([heading, *lines]))

  def _wait(self, events: queue.SimpleQueue[Union[_Worker, int]]) -> None:
    self.process.wait()
    self.send(signal.SIGKILL)  # to what it may have left running
    events.put(self)

  def _read(self, source: int, prefix: bytes, write: Callable[[bytes], None]) -> None:
    rest = b""
    for chunk in _chunks(source):
      rest += chunk
      end = 0
      for match in _LINE.finditer(rest):
        end = match.end()
        write(prefix + match[0])
        if match[0].endswith(b"\n") and match[0].strip():
          self._last_lines.append(match[0].decode(errors="replace").rstrip())
      rest = rest[end:]
    if rest.strip():
      write(prefix + rest + b"\n")
      self._last_lines.append(rest.decode(errors="replace").strip())


def _prepare(cores: set[int]) -> None:
  """Runs in a worker's process before its program."""
  if cores:
    os.sched_setaffinity(0, cores)
  if sys.platform == "linux":  # if the launcher is killed, so is the worker
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _terminal(margin: int) -> tuple[int, int]:
  """A terminal's two ends, `margin` columns narrower than this process's own."""
  source, sink = pty.openpty()
  tty.setraw(sink)  # what is written arrives unchanged
  columns, rows = shutil.get_terminal_size()
  size = struct.pack("4H", rows, max(1, columns - margin), 0, 0)
  fcntl.ioctl(sink, termios.TIOCSWINSZ, size)
  return source, sink


def _chunks(source: int) -> Iterator[bytes]:
  """What arrives at a file descriptor, until its other end is closed."""
  # A terminal says by an OSError that it was closed.
  with open(source, "rb", buffering=0) as stream, contextlib.suppress(OSError):
    while chunk := stream.read(1 << 16):
      yield chunk


@contextlib.contextmanager
def _signals_put_to(events: queue.SimpleQueue[Any]) -> Iterator[None]:
  previous = {
    number: signal.signal(number, lambda received, _: events.put(received))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
  }
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UserError(
      f"{message}. Write: python -m dat_tf.launch --num_workers=N -- run_dat.py ..."
    )


@exit_on_user_error
def main(argv: Sequence[str]) -> int:
  """Runs the command line, its program's name included; returns the exit code."""
  split = argv.index("--") if "--" in argv else len(argv)
  parser = _Parser(
    prog="python -m dat_tf.launch",
    usage="%(prog)s --num_workers=N [--communication=...] [--max_restarts=N] "
    "[--restart_backoff=SECONDS] [--grace_seconds=SECONDS] -- COMMAND ...",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
  parser.add_argument(
    "--num_workers", type=int, required=True, help="how many processes, at least 1"
  )
  parser.add_argument(
    "--communication",
    choices=("auto", "ring", "nccl"),
    help="added to COMMAND: how the workers' collectives travel",
  )
  parser.add_argument(
    "--max_restarts",
    type=int,
    default=0,
    help="how often all workers start again after a failure, at most; the default is 0",
  )
  parser.add_argument(
    "--restart_backoff",
    type=float,
    default=1.0,
    metavar="SECONDS",
    help="how long to wait before the workers start again; the default is 1",
  )
  parser.add_argument(
    "--grace_seconds",
    type=float,
    metavar="SECONDS",
    help="how long the workers have to save and end after a signal, before they are "
    "killed; added to COMMAND if it is given; the default is 30",
  )
  options = parser.parse_args(argv[1:split])
  command = list(argv[split + 1 :])
  if options.num_workers < 1:
    parser.error(f"--num_workers={options.num_workers} is below 1")
  if options.max_restarts < 0:
    parser.error(f"--max_restarts={options.max_restarts} is below 0")
  if not 0.0 <= options.restart_backoff < threading.TIMEOUT_MAX:
    parser.error(f"--restart_backoff={options.restart_backoff:g} is no time to wait")
  grace = options.grace_seconds
  if grace is not None and not 0.0 < grace < threading.TIMEOUT_MAX:
    parser.error(f"--grace_seconds={grace:g} is no time to wait")
  if not command:
    parser.error("no command to run")
  if command[0].endswith(".py") and not os.path.isfile(command[0]):
    raise UserError(f"no file {command[0]!r}: give the path of the program after --.")
  if command[0] == "-m" or command[0].endswith(".py"):
    command.insert(0, sys.executable)
  if options.communication:
    command.append(f"--communication={options.communication}")
  if grace is not None:
    command.append(f"--grace_seconds={grace:g}")
  outcome = launch_again(
    command,
    options.num_workers,
    sys.stdout.buffer,
    max_restarts=options.max_restarts,
    backoff=options.restart_backoff,
    grace=30.0 if grace is None else grace,
  )
  if outcome.message:
    print(outcome.message, file=sys.stderr, flush=True)
  return outcome.exit_code


def run() -> NoReturn:
  """Runs the launcher and ends the process with its exit code."""
  # A reader that leaves, as in `... | head`, ends the launcher and so the workers.
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)
  sys.exit(main(sys.argv))


if __name__ == "__main__":
  run()
