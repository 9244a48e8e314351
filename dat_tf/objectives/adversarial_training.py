"""Clean and adversarial cross-entropy: the objective of DAT."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.objectives.losses import cross_entropy
from dat_tf.objectives.objective import Batch, Classifier, Evaluated, Objective


@dataclasses.dataclass(frozen=True)
class AdversarialTraining(Objective):
  """lambda * l(x, y) + l(x + delta, y), l the cross-entropy.

  The attacker maximises l(x + delta, y). The objective of Zhang et
  al., "Distributed Adversarial Training to Robustify Deep Neural Networks at Scale",
  UAI 2022; with clean_weight 0 it is that of Madry et al., ICLR 2018.

  Clean and adversarial images go through the network as one batch: batch-norm then
  normalises by, and keeps, the statistics of the mixture that it will meet.

  Attributes:
    clean_weight: lambda, the weight of the clean loss, at least 0.
  """

  clean_weight: float = 1.0

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    if self.clean_weight == 0:
      adversarial_logits = classifier(adversarial, training=True)
      # Only to be shown: it neither costs a gradient nor touches the statistics.
      clean_logits = tf.stop_gradient(classifier(batch.images, training=False))
      losses = cross_entropy(adversarial_logits, batch.labels)
    else:
      logits = classifier(tf.concat([batch.images, adversarial], axis=0), training=True)
      clean_logits, adversarial_logits = tf.split(logits, 2, axis=0)
      losses = self.clean_weight * cross_entropy(clean_logits, batch.labels)
      losses += cross_entropy(adversarial_logits, batch.labels)
    return Evaluated(losses, clean_logits, adversarial_logits)
