"""Sums over examples, and the means that are shown of them.

Workers add sums and divide once: a mean of their means would weigh the examples of a
smaller batch more.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import tensorflow as tf

from dat_tf.objectives.losses import correct
from dat_tf.objectives.objective import Batch


class Sums(NamedTuple):
  """Sums over the examples of a batch or an epoch, each a scalar.

  Attributes:
    weight: sum of the examples' weights.
    loss: sum of their losses.
    labeled: sum of the weights of examples whose label is known.
    correct: the part of `labeled` that is classified right without an attack.
    robust: the part of `labeled` that is classified right under attack.
    certified: the part of `labeled` that is certified.
  """

  weight: tf.Tensor
  loss: tf.Tensor
  labeled: tf.Tensor
  correct: tf.Tensor
  robust: tf.Tensor
  certified: tf.Tensor

  @classmethod
  def of(
    cls,
    batch: Batch,
    loss: tf.Tensor,
    clean_logits: tf.Tensor,
    adversarial_logits: tf.Tensor,
    certified: Optional[tf.Tensor] = None,
  ) -> Sums:
    """The sums of a batch.

    Args:
      batch: its examples.
      loss: the weighted sum of their losses.
      clean_logits: [B, classes], of the images as they are.
      adversarial_logits: [B, classes], of the adversarial images.
      certified: bool [B]; None counts none.
    """
    labeled = batch.weights * batch.is_labeled
    is_certified = 0.0 if certified is None else tf.cast(certified, tf.float32)
    return cls(
      weight=tf.reduce_sum(batch.weights),
      loss=loss,
      labeled=tf.reduce_sum(labeled),
      correct=tf.reduce_sum(labeled * correct(clean_logits, batch.labels)),
      robust=tf.reduce_sum(labeled * correct(adversarial_logits, batch.labels)),
      certified=tf.reduce_sum(labeled * is_certified),
    )

  @classmethod
  def unstacked(cls, stacked: tf.Tensor) -> Sums:
    """Undoes `stacked`."""
    return cls(*tf.unstack(stacked))

  def stacked(self) -> tf.Tensor:
    """All in one vector, as they travel."""
    return tf.stack(self)

  def means(self, *, attacked: bool) -> dict[str, tf.Tensor]:
    """Loss and accuracies, that under attack where there is one; 0 of no examples."""
    means = {
      "loss": tf.math.divide_no_nan(self.loss, self.weight),
      "accuracy": tf.math.divide_no_nan(self.correct, self.labeled),
    }
    if attacked:
      means["robust_accuracy"] = tf.math.divide_no_nan(self.robust, self.labeled)
    return means

  @property
  def certified_accuracy(self) -> tf.Tensor:
    """The certified part of the labelled examples; 0 of none."""
    return tf.math.divide_no_nan(self.certified, self.labeled)
