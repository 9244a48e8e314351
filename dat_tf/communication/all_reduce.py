"""The mean of all replicas' tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Protocol

import tensorflow as tf


class AllReduce(Protocol):
  """What the training step asks of the network between the workers."""

  def __call__(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The mean over all replicas of each tensor, bit-identical on all of them.

    Called in replica context, with the same shapes on every replica.

    Args:
      tensors: float tensors of any shape.

    Returns:
      As many tensors of the same shapes and dtypes.
    """
    ...

  def bytes_sent(self, num_values: int, num_workers: int) -> int:
    """Payload that one worker sends in one call for `num_values` float32 numbers."""
    ...


class MeanAllReduce:
  """The plain float32 mean, by TensorFlow's own collectives.

  Under a strategy of many workers these are ring all-reduces over gRPC or NCCL.
  """

  def __init__(
    self, options: Optional[tf.distribute.experimental.CommunicationOptions] = None
  ):
    """Options: pack size in bytes, time-out in seconds, and ring or NCCL."""
    self._options = options or tf.distribute.experimental.CommunicationOptions()

  def __call__(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return tf.distribute.get_replica_context().all_reduce(
      tf.distribute.ReduceOp.MEAN, list(tensors), options=self._options
    )

  def bytes_sent(self, num_values: int, num_workers: int) -> int:
    """A ring sends 2 (M - 1) / M of the vector: reduce-scatter, then all-gather."""
    return round(4 * num_values * 2 * (num_workers - 1) / num_workers)
