"""What an attack of training is: a function from images to adversarial images."""

from __future__ import annotations

from typing import Callable, Protocol

import tensorflow as tf

from dat_tf.objectives.losses import cross_entropy
from dat_tf.objectives.objective import Batch, Classifier


class Attack(Protocol):
  """The inner maximisation of a training step. Any such function is one."""

  def __call__(
    self,
    classifier: Classifier,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images.

    Args:
      classifier: any callable from images [B, H, W, C] to logits [B, classes].
      images: float32 [B, H, W, C] in [0, 1].
      labels: integer [B] or float [B, classes], whatever `loss` takes.
      keys: uint32 [B, 2], one random stream an example (`hashing.stream_keys`).
      loss: logits and labels -> [B], what the attack is to raise.

    Returns:
      float32 [B, H, W, C] in [0, 1].
    """


class Scheduled:
  """An attack that changes in the course of training.

  It is an `Attack` itself: that of the end of training.
  """

  def for_batch(self, batch: Batch) -> Attack:
    """The attack on this batch, at this step of training."""
    raise NotImplementedError
