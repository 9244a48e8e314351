"""MART: training that minds which clean examples are misclassified."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.objectives.losses import class_rows, cross_entropy, kl_divergence
from dat_tf.objectives.objective import (
  Batch,
  Classifier,
  Evaluated,
  Objective,
  both_logits,
)

# Keeps the logarithm of 1 - p finite; that of the authors' program.
_SMALLEST = 1e-4


@dataclasses.dataclass(frozen=True)
class MART(Objective):
  """BCE(p(x + delta), y) + beta KL(p(x) || p(x + delta)) (1 - p_y(x)).

      BCE(p, y) = -log p_y - log(1 - max of p_k over k other than y)

  The attacker maximises the cross-entropy. With class probabilities for labels, y is
  the most probable class in the maximum, and p_y the expected probability.

  Wang et al., "Improving adversarial robustness requires revisiting misclassified
  examples", ICLR 2020; beta is their lambda.

  Attributes:
    beta: weight of the divergence, at least 0; the paper uses 5 for ResNet-18 on
      CIFAR-10, 6 for WideResNet-34-10.
  """

  beta: float = 5.0

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    clean_logits, adversarial_logits = both_logits(classifier, batch, adversarial)
    classes = clean_logits.shape[-1]
    rows = class_rows(batch.labels, classes)
    is_label = tf.one_hot(tf.argmax(rows, axis=-1), classes)
    clean, moved = (
      tf.nn.softmax(tf.cast(logits, tf.float32))
      for logits in (clean_logits, adversarial_logits)
    )
    runner_up = tf.reduce_max(moved - is_label, axis=-1)  # the label's is not above 0
    boosted = cross_entropy(adversarial_logits, batch.labels)
    boosted -= tf.math.log(1.0 + _SMALLEST - runner_up)
    divergence = kl_divergence(clean_logits, adversarial_logits)
    doubt = 1.0 - tf.reduce_sum(rows * clean, axis=-1)
    losses = boosted + self.beta * divergence * doubt
    return Evaluated(losses, clean_logits, adversarial_logits)
