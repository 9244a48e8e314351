"""The other workers of a run, as their addresses show them: absent, alive or gone.

TensorFlow waits for a worker that never starts for an hour, without a word and deaf to
signals; and while a worker computes without collectives, as in evaluation, it does not
notice that another one has ended. Both can be seen at the addresses themselves: the
server that TensorFlow starts in each worker speaks first to whoever connects.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import string
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Optional

from dat_tf.base.errors import UserError

# Seconds: between two looks at those who are missing, until the first word about them
# and then between words, and for which an address may keep us waiting.
_PAUSE = 0.5
_FIRST_WORD, _NEXT_WORD = 5.0, 60.0
_ANSWER = 5.0
# Seconds between two looks at a worker that runs; more where there are many.
_LOOK = 2.0
_MAGIC = b"dat-tf "
_LONGEST_GREETING = 2**20
_TASK = re.compile(r"/job:worker/replica:0/task:(\d+)")


def meet(addresses: Sequence[str], index: int, timeout: float) -> None:
  """Returns when all workers of a cluster have started.

  Each listens at its own port until it has heard from all others, who may be further
  on: then TensorFlow's server answers at their addresses.

  Args:
    addresses: HOST:PORT of every worker.
    index: of this one.
    timeout: seconds after which the wait ends.

  Raises:
    UserError: this worker's port is taken, another worker has another list of workers
      or the same index, or some have not started in time.
  """
  greeting = _MAGIC + json.dumps([list(addresses), index]).encode() + b"\n"
  started = time.monotonic()
  next_word = started + _FIRST_WORD
  missing = {n: "" for n in range(len(addresses)) if n != index}
  with _listening(addresses[index], greeting):
    while True:
      for number in list(missing):
        answer, missing[number] = _hear(addresses[number], greeting)
        if answer is not None:
          try:
            _check(answer, addresses, index, number)
          except UserError:
            time.sleep(4 * _PAUSE)  # so that the other worker hears of it too
            raise
          del missing[number]
      if not missing:
        return
      now = time.monotonic()
      who = ", ".join(
        f"worker {n} at {addresses[n]} ({why})" for n, why in sorted(missing.items())
      )
      if now - started > timeout:
        raise UserError(
          f"Worker {index} has waited {timeout:g} s (`start_timeout`) for {who}: start "
          "the same command there, or mend TF_CONFIG."
        )
      if now > next_word:
        next_word = now + _NEXT_WORD
        print(f"Worker {index} is waiting for {who} ...", file=sys.stderr, flush=True)
      time.sleep(_PAUSE)


def bypass_proxies() -> None:
  """Lets gRPC, in this process, speak to hosts directly.

  Workers name each other's own addresses. What http_proxy or https_proxy name is for
  the way out, and from there nobody finds back: a run would wait in silence.
  """
  # gRPC takes an entry for the end of a host's name or address.
  os.environ["no_grpc_proxy"] = ",".join(string.ascii_lowercase + string.digits + ":")


def own_port_is_taken(address: str, index: int, reason: str) -> UserError:
  """What is said where something else listens at this worker's port."""
  return UserError(
    f"Worker {index} cannot listen at port {_port(address)} ({reason}): another program"
    " or worker has it; end that one, or choose another port in TF_CONFIG."
  )


@contextlib.contextmanager
def _listening(address: str, greeting: bytes) -> Iterator[None]:
  """While it lasts, whoever connects to this worker's port gets its greeting."""
  try:
    server = _server(_port(address))
  except OSError as error:
    index = json.loads(greeting[len(_MAGIC) :])[1]
    reason = os.strerror(error.errno) if error.errno else str(error)
    raise own_port_is_taken(address, index, reason) from None

  def serve() -> None:
    while True:
      try:
        connection, _ = server.accept()
      except OSError:  # closed
        return
      with contextlib.suppress(OSError), connection:
        connection.settimeout(_ANSWER)
        connection.sendall(greeting)

  with server:
    threading.Thread(target=serve, daemon=True).start()
    try:
      yield
    finally:
      with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)  # wakes the thread


def _server(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    family = socket.AF_INET6
    return socket.create_server(("", port), family=family, dualstack_ipv6=True)
  return socket.create_server(("", port))


def _hear(address: str, greeting: bytes = b"") -> tuple[Optional[bytes], str]:
  """The first that an address says, or None and why it says nothing."""
  host, _, port = address.rpartition(":")
  try:
    with socket.create_connection((host.strip("[]"), int(port)), _ANSWER) as connection:
      connection.settimeout(_ANSWER)
      answer = connection.recv(2**16)
      if answer.startswith(_MAGIC):
        while not answer.endswith(b"\n") and len(answer) < _LONGEST_GREETING:
          more = connection.recv(2**16)
          if not more:
            break
          answer += more
      return (answer, "") if answer else (None, "it closes the connection")
  except (OSError, UnicodeError) as error:
    return None, getattr(error, "strerror", None) or str(error)


def _check(answer: bytes, addresses: Sequence[str], index: int, expected: int) -> None:
  """Raises UserError if another worker was told of another cluster than this one."""
  if not answer.startswith(_MAGIC):
    return
  try:
    others, number = json.loads(answer[len(_MAGIC) :])
    count = len(others)
  except (ValueError, TypeError, RecursionError):
    return
  where = f"the worker at {addresses[expected]}"
  if others != list(addresses):
    raise UserError(
      f"TF_CONFIG of worker {index} lists {len(addresses)} workers, and that of {where}"
      f" {count}, or others: give all workers the same cluster."
    )
  if number != expected:
    raise UserError(
      f"TF_CONFIG says index {str(number):.20} to {where}, which is worker {expected} "
      "of the cluster: give each worker its own index."
    )


def farewell(error: Exception, addresses: Sequence[str], index: int) -> str:
  """What a worker says that ends because a collective failed: it names the cause.

  Args:
    error: what TensorFlow raised. It names the task that it lost, first of all; where
      it names none, whoever does not answer now is named.
    addresses: HOST:PORT of every worker.
    index: of this one.
  """
  others = [n for n in range(len(addresses)) if n != index]
  lost = [int(n) for n in _TASK.findall(str(error)) if int(n) in others][:1]
  if not lost:
    with futures.ThreadPoolExecutor(max(1, len(others))) as pool:
      answers = pool.map(lambda n: _hear(addresses[n])[0], others)
      lost = [n for n, answer in zip(others, answers) if answer is None]
  return _because(lost, "was lost", addresses, index)


def _because(
  workers: Sequence[int], what: str, addresses: Sequence[str], index: int
) -> str:
  who = ", ".join(f"worker {n} ({addresses[n]})" for n in workers) or "another one"
  return (
    f"Worker {index} ends because {who} {what}: see what that one printed and start "
    "all again; they go on from the newest checkpoint."
  )


class Lookout:
  """Looks after the other workers, and ends this process when one of them is gone."""

  def __init__(self, addresses: Sequence[str], index: int, silence: float):
    """Starts to look, from another thread.

    Args:
      addresses: HOST:PORT of every worker; all have started.
      index: of this one.
      silence: seconds without an answer after which a worker is taken for frozen or
        cut off. One that has ended is noticed at the second look.
    """
    self._addresses, self._index, self._silence = addresses, index, silence
    self._stopped = threading.Event()
    for number in range(len(addresses)):
      if number != index:
        threading.Thread(target=self._watch, args=(number,), daemon=True).start()

  def stop(self) -> None:
    """From now on workers may end."""
    self._stopped.set()

  def _watch(self, number: int) -> None:
    heard, refused = time.monotonic(), 0
    while not self._stopped.wait(max(_LOOK, len(self._addresses) / 10)):
      answer, why = _hear(self._addresses[number])
      if answer is not None:
        heard, refused = time.monotonic(), 0
        continue
      refused += "refused" in why.lower()
      silent = time.monotonic() - heard
      if (refused < 2 and silent < self._silence) or self._stopped.is_set():
        continue
      what = "has ended" if refused >= 2 else f"has not answered for {silent:.0f} s"
      line = _because([number], what, self._addresses, self._index)
      print(line, file=sys.stderr, flush=True)
      os._exit(1)  # no exception reaches a thread that waits in TensorFlow


def _port(address: str) -> int:
  return int(address.rpartition(":")[2])
