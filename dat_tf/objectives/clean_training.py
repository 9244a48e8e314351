"""Cross-entropy on images as they are."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.objectives.losses import cross_entropy
from dat_tf.objectives.objective import (
  Batch,
  Classifier,
  Evaluated,
  Objective,
  shown_logits,
)


@dataclasses.dataclass(frozen=True)
class CleanTraining(Objective):
  """l(x, y), l the cross-entropy; what regularisers of the clean loss are added to.

  Adversarial images, if an attack makes any, are only shown in the metrics.
  """

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    logits = classifier(batch.images, training=True)
    return Evaluated(
      cross_entropy(logits, batch.labels),
      logits,
      shown_logits(classifier, batch, adversarial, logits),
    )
