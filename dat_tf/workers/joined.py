"""The workers of a run, joined by a strategy: what each needs of the others."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Sequence
from typing import Optional

import tensorflow as tf

from dat_tf import compat
from dat_tf.workers import fence, peers
from dat_tf.workers.cluster import Cluster

# Seconds after which a silent worker is taken for dead. A worker that ends is noticed
# at once, by its connections.
SILENCE = 60
# Seconds for which a worker that is done stays within reach of the others.
_STAY = 1.0


@dataclasses.dataclass(frozen=True)
class Workers:
  """All workers, as one of them sees them. Its methods are collectives.

  A collective returns when every worker has called it: all make the same calls in the
  same order.

  Attributes:
    cluster: who they are, and which of them this is.
    strategy: what joins them.
    options: how their collectives travel; None where the strategy has none.
  """

  cluster: Cluster
  strategy: tf.distribute.Strategy
  options: Optional[tf.distribute.experimental.CommunicationOptions] = None

  @property
  def is_chief(self) -> bool:
    """Whether this is worker 0, which alone writes logs, results and checkpoints."""
    return self.cluster.is_chief

  @property
  def num_replicas(self) -> int:
    """On all workers together."""
    return self.strategy.num_replicas_in_sync

  @property
  def num_local_replicas(self) -> int:
    """On each worker, of which all have as many."""
    return self.num_replicas // self.cluster.num_workers

  def largest(self, value: int) -> int:
    """The largest of the workers' values, which must fit an int64.

    The workers agree by it on a number that each knows only for itself, such as the
    steps that its shard needs.
    """
    return max(number for (number,) in self.numbers([value]))

  def numbers(self, mine: Sequence[int]) -> list[list[int]]:
    """The numbers of all workers, which each have as many, by index; int64."""
    # Of few lengths, since each has a graph of its own.
    padded = [*mine, *[0] * (-len(mine) % 8)]
    gathered = _gather(self.strategy)(tf.constant(padded, tf.int64))
    # Replicas of one worker all have its numbers.
    rows = gathered.numpy().reshape(self.num_replicas, len(padded))
    return rows[:: self.num_local_replicas, : len(mine)].tolist()

  def texts(self, text: str) -> list[str]:
    """The texts of all workers, by index."""
    encoded = text.encode()
    longest = self.largest(len(encoded))
    if not longest:
      return [""] * self.cluster.num_workers
    length = 1024
    while length < longest:
      length *= 16
    rows = self.numbers([*encoded.ljust(length)])
    return [bytes(row).decode().rstrip() for row in rows]

  def wait(self) -> None:
    """Returns once every worker has called it."""
    self.largest(0)

  def part(self) -> None:
    """As `wait`, and the last that a worker calls: it may then end at any time."""
    self.wait()
    if self.cluster.num_workers > 1:
      # In a collective each worker fetches from the others: one that ended at once
      # would take along what is still being fetched from it.
      time.sleep(_STAY)


def communication_options(
  implementation: str, bytes_per_pack: int, timeout_seconds: float
) -> tf.distribute.experimental.CommunicationOptions:
  """How the workers' collectives travel.

  Args:
    implementation: `auto`, `ring` (over gRPC, on CPUs and GPUs) or `nccl` (GPUs).
    bytes_per_pack: gradients are sent in packs of about this many bytes, so that the
      first travel while the rest are computed; 0 lets TensorFlow choose.
    timeout_seconds: how long a worker waits in a collective for the others before it
      fails; 0 is for ever. TensorFlow keeps a thread asleep for each collective until
      its time is over, also when it has long ended.
  """
  return tf.distribute.experimental.CommunicationOptions(
    bytes_per_pack=bytes_per_pack,
    timeout_seconds=timeout_seconds,
    implementation=tf.distribute.experimental.CommunicationImplementation(
      implementation.upper()
    ),
  )


def join(
  cluster: Cluster,
  options: tf.distribute.experimental.CommunicationOptions,
  start_timeout: float = 3600.0,
) -> Workers:
  """Joins all workers, each with all its GPUs, or else its CPU.

  It must be the program's first use of TensorFlow's devices, from the main thread. With
  several workers it returns when all of them have called it.

  Args:
    cluster: all workers, and which of them this is.
    options: how their collectives travel.
    start_timeout: seconds to wait for the others.

  Raises:
    UserError: as by `peers.meet`.
  """
  several = cluster.num_workers > 1
  peers.bypass_proxies()
  resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
    tf.train.ClusterSpec({"worker": cluster.addresses} if several else {}),
    task_type="worker" if several else None,
    task_id=cluster.index if several else None,
    num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
    rpc_layer="grpc",
  )
  if several:
    compat.bear_silence(cluster.num_workers, SILENCE)
    peers.meet(cluster.addresses, cluster.index, start_timeout)
  try:
    strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
  except tf.errors.OpError as error:
    if "Could not start gRPC server" not in str(error):
      raise
    address = cluster.addresses[cluster.index]
    raise peers.own_port_is_taken(address, cluster.index, "in use") from None
  # TensorFlow's server listens to the network, whatever address it was given.
  if several and all(
    fence.is_loopback(each.rpartition(":")[0]) for each in cluster.addresses
  ):
    fence.only_from_this_host(cluster.port)
  # TensorFlow has now set its own handler for SIGTERM, which only takes note of it: a
  # worker could not be asked to end.
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
  return Workers(cluster, strategy, options)


@functools.cache  # one graph a strategy, however often it is called
def _gather(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
  """A function from each worker's values [n] to those of all replicas, joined."""

  def in_replica(values: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_gather(tf.identity(values), axis=0)

  @tf.function
  def gather(values: tf.Tensor) -> tf.Tensor:
    gathered = strategy.run(in_replica, args=(values,))
    return strategy.experimental_local_results(gathered)[0]

  return gather


# TensorFlow's graphs must not outlive its modules when the program ends.
atexit.register(_gather.cache_clear)
