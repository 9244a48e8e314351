"""Logit pairing: logits of images that belong together, or do not, are drawn nearer."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.objectives.losses import cross_entropy
from dat_tf.objectives.objective import (
  Batch,
  Classifier,
  Evaluated,
  Objective,
  both_logits,
  shown_logits,
)


def _squared_distance(logits: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
  """[B]: mean over the classes, as in the authors' program."""
  logits, other = (tf.cast(x, tf.float32) for x in (logits, other))
  return tf.reduce_mean(tf.math.squared_difference(logits, other), axis=-1)


@dataclasses.dataclass(frozen=True)
class AdversarialLogitPairing(Objective):
  """lambda l(x, y) + l(x + delta, y) + w d(f(x), f(x + delta)).

  l is the cross-entropy, d the mean over the classes of the squared difference of the
  logits. The attacker maximises l(x + delta, y).

  Kannan et al., "Adversarial logit pairing", 2018. Its "mixed minibatch" is lambda = 1,
  where they halve the sum of the two cross-entropies.

  Attributes:
    weight: w, at least 0; the paper uses 1, 0.5 beside half of the sum.
    clean_weight: lambda, at least 0.
  """

  weight: float = 1.0
  clean_weight: float = 1.0

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    clean_logits, adversarial_logits = both_logits(classifier, batch, adversarial)
    losses = self.clean_weight * cross_entropy(clean_logits, batch.labels)
    losses += cross_entropy(adversarial_logits, batch.labels)
    losses += self.weight * _squared_distance(clean_logits, adversarial_logits)
    return Evaluated(losses, clean_logits, adversarial_logits)


@dataclasses.dataclass(frozen=True)
class CleanLogitPairing(Objective):
  """l(n, y) + w d(f(n), f(n')), n = x + noise, n' another image with noise.

  l is the cross-entropy, d the mean over the classes of the squared difference of the
  logits; the noise is Gaussian, clipped to the pixel range. An image's partner is the
  one half a batch further on. No attack takes part: adversarial images, if an attack
  makes any, are only shown in the metrics.

  Kannan et al., "Adversarial logit pairing", 2018.

  Attributes:
    weight: w, at least 0.
    deviation: of the noise, pixels in [0, 1], at least 0; the paper uses 0.5 on MNIST.
  """

  weight: float = 0.5
  deviation: float = 0.5

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    noise = hashing.normal(batch.keys, batch.images.shape[1:])
    noisy = tf.clip_by_value(batch.images + self.deviation * noise, 0.0, 1.0)
    logits = classifier(noisy, training=True)
    half = tf.shape(logits)[0] // 2
    partner = tf.roll(logits, half, axis=0)
    # Padding is nobody's partner.
    counts = tf.sign(tf.roll(batch.weights, half, axis=0))
    losses = cross_entropy(logits, batch.labels)
    losses += self.weight * counts * _squared_distance(logits, partner)
    return Evaluated(
      losses, logits, shown_logits(classifier, batch, adversarial, logits)
    )
