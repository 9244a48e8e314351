"""The mean of all replicas' tensors, in 32, 16, 8, 4 or 2 bits a value.

all_reduce = MeanAllReduce(options)                                 # float32
all_reduce = MeanAllReduce(options, dtype=tf.float16)
all_reduce = QuantizedAllReduce(BucketQuantizer(bits=4), options)   # two-sided
means, metrics = all_reduce(tensors, names, step)                   # on a replica
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any, Optional, Protocol

import tensorflow as tf

from dat_tf.communication.timing import arrivals, elapsed_ms

Metrics = dict[str, tf.Tensor]

_BYTES_PER_PACK = 4 * 2**20


class AllReduce(Protocol):
  """What the training step asks of the network between the workers."""

  def __call__(
    self, tensors: Sequence[tf.Tensor], names: Sequence[str], step: tf.Tensor
  ) -> tuple[list[tf.Tensor], Metrics]:
    """The mean over all replicas of each tensor, bit-identical on all of them.

    Called in replica context, with the same shapes on every replica.

    Args:
      tensors: float32 tensors of any static shape.
      names: their names.
      step: integer scalar, the number of steps before this one.

    Returns:
      As many tensors of the same shapes, and scalars to be shown, by name.
    """
    ...

  def bytes_sent(self, variables: Sequence[tf.Variable], num_workers: int) -> int:
    """Bytes of payload that a worker sends in one call for these variables' gradients.

    Computed from the shapes of the variables, not measured. What the network adds to
    the payload is not counted.
    """
    ...


@dataclasses.dataclass(frozen=True)
class FullPrecision:
  """Which tensors travel in float32, however the others do.

  Vectors and scalars always do: biases and batch-norm parameters are few, and an error
  in them moves every activation. A tensor smaller than a bucket would share the scale
  of a larger one, and in all of them there is next to nothing to save (see
  docs/RESULTS.md).

  Attributes:
    below: so do tensors of fewer values than this.
    names: and those in whose name this regular expression is found; empty: none.
  """

  below: int = 1024
  names: str = ""

  def __call__(self, name: str, shape: tf.TensorShape) -> bool:
    small = shape.rank <= 1 or shape.num_elements() < self.below
    return small or bool(self.names and re.search(self.names, name))


class MeanAllReduce:
  """The plain mean, by TensorFlow's own collectives.

  Under a strategy of many workers these are ring all-reduces over gRPC or NCCL.
  """

  def __init__(
    self,
    options: Optional[tf.distribute.experimental.CommunicationOptions] = None,
    *,
    dtype: tf.DType = tf.float32,
    full_precision: Optional[FullPrecision] = None,
  ):
    """How to send.

    Args:
      options: pack size in bytes (4 MiB if it is 0: while one pack is on its way, the
        next is made and the last one used), time-out in seconds, and ring or NCCL.
      dtype: tf.float32, or tf.float16, which halves the bytes: tensors are rounded to
        11 significant bits, and sums beyond 65,504 overflow to infinity.
      full_precision: tensors that travel in float32 whatever `dtype` is.
    """
    options = options or tf.distribute.experimental.CommunicationOptions()
    self._options = tf.distribute.experimental.CommunicationOptions(
      options.bytes_per_pack or _BYTES_PER_PACK,
      options.timeout_seconds,
      options.implementation,
    )
    self._dtype = dtype
    self._full_precision = full_precision or FullPrecision()

  def __call__(
    self, tensors: Sequence[tf.Tensor], names: Sequence[str], step: tf.Tensor
  ) -> tuple[list[tf.Tensor], Metrics]:
    del step
    tensors, start = arrivals(tensors)
    is_narrow = [
      self._dtype != tf.float32 and not self._full_precision(name, tensor.shape)
      for name, tensor in zip(names, tensors)
    ]
    narrow, wide = divided(tensors, is_narrow)
    narrow = mean([tf.cast(tensor, self._dtype) for tensor in narrow], self._options)
    narrow = [tf.cast(tensor, tf.float32) for tensor in narrow]
    means = merged(narrow, mean(wide, self._options), is_narrow)
    means, end = arrivals(means)
    return means, {"reduction_ms": elapsed_ms(start, end)}

  def bytes_sent(self, variables: Sequence[tf.Variable], num_workers: int) -> int:
    payload = sum(
      variable.shape.num_elements()
      * (4 if self._full_precision(variable.name, variable.shape) else self._dtype.size)
      for variable in variables
    )
    return ring_bytes(payload, num_workers)


def divided(items: Sequence[Any], chosen: Sequence[bool]) -> tuple[list, list]:
  """Those that are chosen, and the others."""
  others = [not choice for choice in chosen]
  return list(itertools.compress(items, chosen)), list(
    itertools.compress(items, others)
  )


def merged(some: Sequence[Any], others: Sequence[Any], chosen: Sequence[bool]) -> list:
  """Undoes `divided`."""
  sources = {True: iter(some), False: iter(others)}
  return [next(sources[choice]) for choice in chosen]


def mean(
  tensors: list[tf.Tensor], options: tf.distribute.experimental.CommunicationOptions
) -> list[tf.Tensor]:
  """The mean over all replicas of tensors of one dtype, by TensorFlow's collectives."""
  if not tensors:
    return []
  return tf.distribute.get_replica_context().all_reduce(
    tf.distribute.ReduceOp.MEAN, tensors, options=options
  )


def ring_bytes(payload: int, num_workers: int) -> int:
  """A ring sends 2 (M - 1) / M of the vector: reduce-scatter, then all-gather."""
  return round(payload * 2 * (num_workers - 1) / num_workers)
