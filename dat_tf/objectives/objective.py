"""What every objective offers."""

from __future__ import annotations

from typing import NamedTuple, Optional, Union

import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.compat import keras
from dat_tf.objectives.losses import Classifier, cross_entropy


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
    step: integer scalar, number of training steps done before this one.
    example_ids: int64 [B], the same for an example in every epoch; None if the data has
      none.
  """

  images: tf.Tensor
  labels: tf.Tensor
  weights: tf.Tensor
  keys: tf.Tensor
  is_labeled: tf.Tensor
  step: Union[tf.Tensor, int] = 0
  example_ids: Optional[tf.Tensor] = None

  @property
  def size(self) -> float:
    """B, padding included; 1 where that is not known while the graph is made, or 0."""
    return float(self.images.shape[0] or 1)

  def split(self, number: int) -> list[Batch]:
    """The batch cut into so many equal parts.

    Raises:
      UserError: its size is no multiple of the number.
    """
    if (self.images.shape[0] or 0) % number:
      raise UserError(
        f"A replica's batch of {self.images.shape[0]} images cannot be cut into "
        f"{number} equal parts: choose a batch size that is a multiple."
      )
    whole = self._replace(step=None)
    cut = [None if x is None else tf.split(x, number) for x in whole]
    return [
      Batch(*(x and x[i] for x in cut))._replace(step=self.step) for i in range(number)
    ]


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

  def attack_targets(self, classifier: Classifier, batch: Batch) -> tf.Tensor:
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

  def certified(self, classifier: keras.Model, batch: Batch) -> Optional[tf.Tensor]:
    """Which images no attack can bring to another class, bool [B].

    None where training gives no such certificates.
    """
    del classifier, batch
    return None


class Wrapper(Objective):
  """An objective around another one, which says all that the wrapper does not.

  Attributes:
    objective: the one inside.
  """

  objective: Objective

  def attack_targets(self, classifier: Classifier, batch: Batch) -> tf.Tensor:
    return self.objective.attack_targets(classifier, batch)

  def attack_loss(self, logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    return self.objective.attack_loss(logits, targets)

  def certified(self, classifier: keras.Model, batch: Batch) -> Optional[tf.Tensor]:
    return self.objective.certified(classifier, batch)


def both_logits(
  classifier: Classifier, batch: Batch, adversarial: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Clean and adversarial logits, [B, classes] each, in training mode.

  Both go through the network as one batch: batch-norm then normalises by, and keeps,
  the statistics of the mixture that it will meet.
  """
  logits = classifier(tf.concat([batch.images, adversarial], axis=0), training=True)
  clean_logits, adversarial_logits = tf.split(logits, 2, axis=0)
  return clean_logits, adversarial_logits


def shown_logits(
  classifier: Classifier, batch: Batch, adversarial: tf.Tensor, clean_logits: tf.Tensor
) -> tf.Tensor:
  """Logits [B, classes] of adversarial images that take no part in the loss.

  They are there to be shown: they neither cost a gradient nor touch the statistics.
  Without an attack the adversarial images are the clean ones, and cost nothing.
  """
  if adversarial is batch.images:
    return tf.stop_gradient(clean_logits)
  return tf.stop_gradient(classifier(adversarial, training=False))
