"""The workers of a run: who they are, and the strategy that joins them.

TF_CONFIG tells each process which workers there are and which of them it is:

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
     "task": {"type": "worker", "index": 0}}

Every worker runs the same command, with an `index` of its own. A `chief` job of one
task may stand beside the workers; that task is then worker 0 and the others follow.
Without TF_CONFIG a run has one worker. `dat_tf.launch` sets TF_CONFIG for workers on
one host.
"""

from __future__ import annotations

import atexit
import functools
import ipaddress
import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from dat_tf import compat
from dat_tf.base.errors import UserError
from dat_tf.workers import fence, peers

if TYPE_CHECKING:
  import tensorflow as tf

# Seconds after which a silent worker is taken for dead. A worker that ends is noticed
# at once, by its connections.
SILENCE = 60

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
    """At which TensorFlow's server of this worker listens; 0 without TF_CONFIG."""
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
  import tensorflow as tf

  return tf.distribute.experimental.CommunicationOptions(
    bytes_per_pack=bytes_per_pack,
    timeout_seconds=timeout_seconds,
    implementation=tf.distribute.experimental.CommunicationImplementation(
      implementation.upper()
    ),
  )


def make_strategy(
  cluster: Cluster,
  options: tf.distribute.experimental.CommunicationOptions,
  start_timeout: float = 3600.0,
) -> tf.distribute.MultiWorkerMirroredStrategy:
  """The strategy that joins all workers, each with all its GPUs, or else its CPU.

  It must be the program's first use of TensorFlow's devices, from the main thread. With
  several workers it returns when all of them have called it.

  Args:
    cluster: all workers, and which of them this is.
    options: how their collectives travel.
    start_timeout: seconds to wait for the others.

  Raises:
    UserError: as by `peers.meet`.
  """
  import tensorflow as tf

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
  return strategy


def num_cores() -> int:
  """The cores that this process may use, at least 1."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def all_workers_max(strategy: tf.distribute.Strategy, value: int) -> int:
  """The largest of the workers' values, which must fit an int64.

  A collective: it returns when every worker has called it. The workers agree by it on
  a number that each knows only for itself, such as the steps that its shard needs.
  """
  import tensorflow as tf

  return int(tf.reduce_max(_gather(strategy)(tf.constant([value], tf.int64))))


def all_workers_texts(strategy: tf.distribute.Strategy, text: str) -> list[str]:
  """The texts of all workers, by index. A collective, as `all_workers_max`."""
  import tensorflow as tf

  encoded = text.encode()
  longest = all_workers_max(strategy, len(encoded))
  if not longest:
    return [""] * max(
      1, strategy.num_replicas_in_sync // compat.local_replicas(strategy)
    )
  # Of few lengths: each has a graph of its own.
  length = 1024
  while length < longest:
    length *= 16
  gathered = _gather(strategy)(tf.constant([*encoded.ljust(length)], tf.int64))
  # Replicas of one worker all have its text.
  replicas = gathered.numpy().reshape(strategy.num_replicas_in_sync, length)
  firsts = replicas[:: compat.local_replicas(strategy)]
  return [bytes(row.tolist()).decode().rstrip() for row in firsts]


@functools.cache  # one graph a strategy, however often it is called
def _gather(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
  """A function from each worker's values [n] to those of all replicas, joined."""
  import tensorflow as tf

  def in_replica(values: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_gather(tf.identity(values), axis=0)

  @tf.function
  def gather(values: tf.Tensor) -> tf.Tensor:
    gathered = strategy.run(in_replica, args=(values,))
    return strategy.experimental_local_results(gathered)[0]

  return gather


# TensorFlow's graphs must not outlive its modules when the program ends.
atexit.register(_gather.cache_clear)


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
