"""TRADES: clean loss, and agreement of clean and adversarial predictions."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.objectives.losses import cross_entropy, kl_divergence
from dat_tf.objectives.objective import (
  Batch,
  Classifier,
  Evaluated,
  Objective,
  both_logits,
)


@dataclasses.dataclass(frozen=True)
class TRADES(Objective):
  """l(x, y) + beta KL(p(x) || p(x + delta)), l the cross-entropy.

  The attacker maximises the divergence, by way of the cross-entropy to p(x), which
  differs from it by a number that delta cannot change. Its gradient is zero at delta =
  0, so the attack must start elsewhere (in the paper beside the image, here in the
  ball).

  Zhang et al., "Theoretically principled trade-off between robustness and accuracy",
  ICML 2019; beta is their 1 / lambda.

  Attributes:
    beta: weight of the divergence, at least 0; the paper uses 6 on CIFAR-10.
  """

  beta: float = 6.0

  def attack_targets(self, classifier: Classifier, batch: Batch) -> tf.Tensor:
    return tf.stop_gradient(tf.nn.softmax(classifier(batch.images)))

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    clean_logits, adversarial_logits = both_logits(classifier, batch, adversarial)
    losses = cross_entropy(clean_logits, batch.labels)
    losses += self.beta * kl_divergence(clean_logits, adversarial_logits)
    return Evaluated(losses, clean_logits, adversarial_logits)
