"""What every objective offers."""

from __future__ import annotations

from typing import Callable, NamedTuple

import tensorflow as tf

from dat_tf.objectives.losses import cross_entropy

Classifier = Callable[..., tf.Tensor]


class Batch(NamedTuple):
  """One replica's part of a batch of B examples.

  Attributes:
    images: float32 [B, H, W, C] in [0, 1].
    labels: integer [B], or float [B, classes] of class probabilities. An example
      without a label has -1, or zeros.
    weights: float32 [B]; 0 marks padding.
    keys: uint32 [B, 2], a random stream for each example.
    is_labeled: float32 [B]; 1 where the label is known to be right, 0 where there is
      none or a model made it (a pseudo-label).
  """

  images: tf.Tensor
  labels: tf.Tensor
  weights: tf.Tensor
  keys: tf.Tensor
  is_labeled: tf.Tensor


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


class Objective:
  """The two sides of the min-max problem.

  The attacker maximises `attack_loss(classifier(x + delta), targets)`, where `targets`
  is what `attack_targets` made of the batch; the model minimises what a call returns.
  Unless a subclass says otherwise the attacker leads predictions away from the labels.
  """

  def attack_targets(
    self, classifier: Callable[[tf.Tensor], tf.Tensor], batch: Batch
  ) -> tf.Tensor:
    """What the attacker leads predictions away from, [B] or [B, classes].

    Args:
      classifier: images -> logits, in the mode in which the attack runs it.
      batch: the images as they are.
    """
    del classifier
    return batch.labels

  def attack_loss(self, logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """What the attacker maximises: [B, classes] and targets -> [B]."""
    return cross_entropy(logits, targets)

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    """What the model minimises.

    Args:
      classifier: images [N, H, W, C] and `training` -> logits [N, classes].
      batch: the images as they are, and their labels.
      adversarial: [B, H, W, C] in [0, 1].

    Returns:
      The batch's losses and logits.
    """
    raise NotImplementedError
