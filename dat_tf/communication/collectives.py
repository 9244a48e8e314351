"""Groups of replicas, and what they exchange.

TensorFlow's collective operations as they are, for what tf.distribute does not offer:
an all-to-all, and integers. They run over gRPC or NCCL like its own, inside the same
step, in any `tf.distribute` strategy whose workers run one graph each.

All members of a group must make the same calls in the same order.
"""

from __future__ import annotations

import collections
import weakref
import zlib
from collections.abc import Callable
from typing import Any, Optional

import tensorflow as tf

from dat_tf import compat

# Away from the keys that tf.distribute counts up from 1.
_ACROSS = 1_000_000
_WITHIN = 2_000_000

# How often a graph has made the same call so far.
_calls: weakref.WeakKeyDictionary[tf.Graph, collections.Counter[Any]]
_calls = weakref.WeakKeyDictionary()


class Group:
  """Replicas that exchange tensors, as one of them sees them.

  In a `tf.function` each replica runs its own one after another, in the order of the
  calls, and waits for no other replica's of the same worker.

  Attributes:
    size: members.
    rank: which of them this replica is, in [0, size).
  """

  def __init__(
    self,
    size: int,
    rank: int,
    key: int,
    options: tf.distribute.experimental.CommunicationOptions,
    order: tf.Tensor,
  ):
    """Makes a group.

    Args:
      size: see above.
      rank: see above.
      key: a number that no other group has.
      options: time-out, and ring or NCCL.
      order: a resource of this replica. What uses the same one runs in the order of the
        graph; stateful operations without any, also those of different replicas, would
        all wait for each other.
    """
    self.size, self.rank = size, rank
    self._key, self._options, self._order = key, options, order

  def all_to_all(self, rows: tf.Tensor) -> tf.Tensor:
    """Sends row i of [size, n] to member i; row i of the result is member i's."""
    return self._run(tf.raw_ops.CollectiveAllToAllV2, rows)

  def all_gather(self, row: tf.Tensor) -> tf.Tensor:
    """[n] of every member -> [size, n], the same on all."""
    gathered = self._run(tf.raw_ops.CollectiveGatherV2, row)
    return tf.reshape(gathered, [self.size, *row.shape])

  def sum(self, x: tf.Tensor) -> tf.Tensor:
    """The sum of all members' tensors, bit-identical on all."""
    return self._run(tf.raw_ops.CollectiveReduceV2, x, merge_op="Add", final_op="Id")

  def _run(
    self, operation: Callable[..., tf.Tensor], x: tf.Tensor, **kwargs: Any
  ) -> tf.Tensor:
    if self.size == 1:
      return x
    return operation(
      input=x,
      group_size=self.size,
      group_key=self._key,
      instance_key=self._instance_key(operation, x),
      ordering_token=[self._order],
      communication_hint=self._options.implementation.value,
      timeout_seconds=self._options.timeout_seconds or 0.0,
      **kwargs,
    )

  def _instance_key(self, operation: Callable[..., tf.Tensor], x: tf.Tensor) -> int:
    """The same on all members, for what is done in the same order to such tensors.

    It does not depend on what was traced before: one member may trace a step anew.
    """
    call = (operation.__name__, tuple(x.shape), x.dtype.name)
    counts = _calls.setdefault(tf.compat.v1.get_default_graph(), collections.Counter())
    counts[self._key, self.rank, call] += 1
    return zlib.crc32(repr((call, counts[self._key, self.rank, call])).encode()) >> 1


def groups(
  options: Optional[tf.distribute.experimental.CommunicationOptions] = None,
) -> tuple[Group, Group]:
  """The groups of this replica: across the workers, and within its own.

  Called in replica context. With R replicas a worker there are R groups across, each of
  the replicas of one local rank: what they carry together they carry at the same time.

  Returns:
    The group across all workers, then that of the replicas on this worker.
  """
  options = options or tf.distribute.experimental.CommunicationOptions()
  context = tf.distribute.get_replica_context()
  replicas = 1
  if context.num_replicas_in_sync > 1:
    replicas = compat.local_replicas(context.strategy)
  workers = context.num_replicas_in_sync // replicas
  replica = int(tf.get_static_value(tf.identity(context.replica_id_in_sync_group)))
  worker, rank = divmod(replica, replicas)
  order = tf.raw_ops.VarHandleOp(
    dtype=tf.float32, shape=[], shared_name=f"order_of_replica{replica}"
  )
  return (
    Group(workers, worker, _ACROSS + rank, options, order),
    Group(replicas, rank, _WITHIN + worker, options, order),
  )
