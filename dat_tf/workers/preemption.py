"""An order to end that leaves time to save: SIGTERM, or SIGUSR1, which SLURM sends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Callable

# Exit code of a run that has saved and ended because it was told to, and that the same
# command lets go on: EX_TEMPFAIL of <sysexits.h>.
PREEMPTED = 75
_SIGNALS = signal.SIGTERM, signal.SIGUSR1


class Preempted(Exception):
  """All workers have saved after the same step, since one of them was told to end."""


@contextlib.contextmanager
def awaited(grace_seconds: float, worker: int) -> Iterator[Callable[[], bool]]:
  """While it lasts, SIGTERM and SIGUSR1 are only taken note of, for so long.

  At its end a signal that nobody has acted upon does what it does otherwise. It is to
  be used in the main thread; elsewhere nothing changes.

  Args:
    grace_seconds: after a signal, before this process ends all the same.
    worker: index of this one, for the line that says so.

  Yields:
    A function that tells whether such a signal has come.
  """
  if threading.current_thread() is not threading.main_thread():
    yield lambda: False
    return
  asked = threading.Event()
  source, sink = socket.socketpair()
  sink.settimeout(0.0)

  def end() -> None:
    print(
      f"Worker {worker} ends: it was not done within the {grace_seconds:g} s of "
      "--grace_seconds. The same command goes on from the newest checkpoint.",
      file=sys.stderr,
      flush=True,
    )
    os._exit(128 + signal.SIGTERM)  # the main thread may wait in TensorFlow

  def listen() -> None:
    # Handlers in Python wait for the main thread to come back from TensorFlow; what is
    # written to this socket does not.
    while number := source.recv(1):
      if number[0] in _SIGNALS and not asked.is_set():
        asked.set()
        timer.start()

  timer = threading.Timer(grace_seconds, end)
  timer.daemon = True
  before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
  descriptor = signal.set_wakeup_fd(sink.fileno(), warn_on_full_buffer=False)
  threading.Thread(target=listen, daemon=True).start()
  try:
    yield asked.is_set
  except Preempted:
    asked.clear()
    raise
  finally:
    timer.cancel()
    signal.set_wakeup_fd(descriptor)
    for number, handler in before.items():
      signal.signal(number, handler)
    sink.close()
    if asked.is_set():
      os.kill(os.getpid(), signal.SIGTERM)
