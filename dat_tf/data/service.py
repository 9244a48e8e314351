"""A tf.data service: machines that read, decode and augment for the training workers.

    python -m dat_tf.data.service --port=5050 --num_workers=2
    python -m dat_tf.data.service --dispatcher=HOST:5050 --host=OTHER_HOST

The first command starts a dispatcher, whose address training takes, and two workers of
the service beside it; the second one adds a worker on another machine. A worker uses
all cores that its process may use: several on one machine only spread the waiting for
files. Each server says its address in one line. SIGTERM and SIGINT end them. Workers
may join at any time; training waits in vain for one that leaves within an epoch, and
has to be started again.

The machines must find the data under the same paths and run the same TensorFlow. The
service asks nobody who he is, and its servers listen at all addresses of their machine:
with --host=... run it in a network that you trust. Without --host, on Linux, nothing
but this machine reaches them.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from dat_tf import compat
from dat_tf.base.errors import UserError, exit_on_user_error
from dat_tf.compat import quiet
from dat_tf.workers import fence, peers

with quiet():
  import tensorflow as tf

_service = tf.data.experimental.service
_ANSWER_SECONDS = 5.0


def check_reachable(address: str) -> None:
  """Checks that something listens at HOST:PORT.

  TensorFlow itself would go on trying for an hour.

  Raises:
    UserError: `address` has another form, or nothing answers within 5 seconds.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UserError(f"{address!r} is no address of a data service: write HOST:PORT.")
  try:
    socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
  except OSError as error:
    raise UserError(
      f"No data service answers at {address} ({error.strerror or error}): start one "
      "with python -m dat_tf.data.service, or mend the address."
    ) from None


def distribute(dataset: tf.data.Dataset, address: str) -> tf.data.Dataset:
  """Has a data service make a dataset's elements, each once, in any order.

  Args:
    dataset: What is to be made. Its source's elements, for instance file names, are
      dealt out to the service's workers as these ask for more.
    address: HOST:PORT of the dispatcher.

  Raises:
    UserError: It does not answer.
  """
  check_reachable(address)
  peers.bypass_proxies()
  # Pixels hardly compress, but a network may be slower than trying.
  local = fence.is_loopback(address.rpartition(":")[0])
  return dataset.apply(
    _service.distribute(
      _service.ShardingPolicy.DYNAMIC,
      f"grpc://{address}",
      compression=None if local else "AUTO",
    )
  )


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}. See python -m dat_tf.data.service --help.")


@exit_on_user_error
def main(argv: Sequence[str]) -> NoReturn:
  """Starts the servers that the arguments name, and waits for a signal to end."""
  parser = _Parser(
    prog="python -m dat_tf.data.service",
    description="Starts a tf.data service, or adds workers to a running one.",
    allow_abbrev=False,
  )
  parser.add_argument(
    "--port", type=int, default=5050, help="the dispatcher's; 0 takes a free one"
  )
  parser.add_argument(
    "--num_workers", type=int, default=1, help="workers to start on this machine"
  )
  parser.add_argument(
    "--dispatcher",
    metavar="HOST:PORT",
    help="a running dispatcher, to which the workers are added",
  )
  parser.add_argument(
    "--host",
    default="localhost",
    help="the name or address under which other machines reach this one",
  )
  options = parser.parse_args(argv[1:])
  if options.num_workers < 0:
    parser.error(f"--num_workers={options.num_workers} is below 0")
  if not 0 <= options.port < 2**16:
    parser.error(f"--port={options.port} is not from 0 to 65535")
  for number in (signal.SIGTERM, signal.SIGINT):
    # The servers keep nothing, and to stop them waits for clients, at times for long.
    signal.signal(number, lambda *_: os._exit(0))
  peers.bypass_proxies()
  servers: list[Any] = []
  address = options.dispatcher
  if address is None:
    _check_free(options.port)
    servers.append(_service.DispatchServer(_service.DispatcherConfig(options.port)))
    port = servers[0].target.rpartition(":")[2]
    address = f"localhost:{port}"
    _fence(options.host, port)
    print(f"dispatcher at {options.host}:{port}", flush=True)
  check_reachable(address)
  for index in range(options.num_workers):
    # TensorFlow puts the port in, once it has a free one.
    own = f"{options.host}:%port%"
    worker = _service.WorkerServer(
      _service.WorkerConfig(address, own, data_transfer_address=own)
    )
    servers.append(worker)
    port = compat.port(worker)
    _fence(options.host, port)
    print(f"worker {index} at {options.host}:{port}", flush=True)
  while True:
    # A signal that comes just before a sleep is only looked at after it.
    time.sleep(1)


def _fence(host: str, port: Any) -> None:
  # TensorFlow's servers listen to the network, whatever address they are given.
  if fence.is_loopback(host):
    fence.only_from_this_host(int(port))


def _check_free(port: int) -> None:
  # Two gRPC servers may listen at one port, and each gets some of the calls.
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(("", port))
    except OSError as error:
      raise UserError(
        f"--port={port} cannot be had ({error.strerror}): choose another."
      ) from None


if __name__ == "__main__":
  sys.exit(main(sys.argv))
