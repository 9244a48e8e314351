"""What every objective offers."""

from __future__ import annotations

from typing import Callable, NamedTuple, Protocol

import tensorflow as tf

Classifier = Callable[..., tf.Tensor]


class Evaluated(NamedTuple):
  """What an objective made of one batch.

  Attributes:
    losses: [B], float32, what the model minimises.
    clean_logits: [B, classes], of the images as they are.
    adversarial_logits: [B, classes], of the adversarial images.
  """

  losses: tf.Tensor
  clean_logits: tf.Tensor
  adversarial_logits: tf.Tensor


class Objective(Protocol):
  """The two sides of the min-max problem."""

  def attack_loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """What the attacker maximises: [B, classes] and labels -> [B]."""
    ...

  def __call__(
    self,
    classifier: Classifier,
    images: tf.Tensor,
    adversarial: tf.Tensor,
    labels: tf.Tensor,
  ) -> Evaluated:
    """What the model minimises.

    Args:
      classifier: images [N, H, W, C] and `training` -> logits [N, classes].
      images: [B, H, W, C] in [0, 1].
      adversarial: [B, H, W, C] in [0, 1].
      labels: [B] or [B, classes], see `cross_entropy`.

    Returns:
      The batch's losses and logits.
    """
    ...
