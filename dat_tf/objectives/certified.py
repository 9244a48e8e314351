"""Certified training: the loss at bounds that hold for every image of a box."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.compat import keras
from dat_tf.objectives import bounds
from dat_tf.objectives.losses import cross_entropy
from dat_tf.objectives.objective import (
  Batch,
  Classifier,
  Evaluated,
  Objective,
  shown_logits,
)


@dataclasses.dataclass(frozen=True)
class CertifiedTraining(Objective):
  """kappa l(z, y) + (1 - kappa) l(m, y), m upper bounds of the margins z_k - z_y.

      m = m_IBP                                    without CROWN
      m = beta m_CROWN-IBP + (1 - beta) m_IBP      with CROWN

  for all images within epsilon of x, in the maximum norm, and in [0, 1]; l is the
  cross-entropy. With t = 0 during `warm_up_steps` of training, and growing in a line to
  1 during the next `ramp_steps`, the radius is t epsilon, kappa goes from 1 to its last
  value, and beta = 1 - t.

  IBP: Gowal et al., "On the effectiveness of interval bound propagation for training
  verifiably robust models", 2018. CROWN-IBP: Zhang et al., "Towards stable and
  efficient training of verifiably robust neural networks", ICLR 2020. The bounds are
  those of the network in inference form, as it will be used: it is for shallow networks
  without batch-norm, such as `plain_cnn`. No attack takes part: adversarial images, if
  an attack makes any, are only shown in the metrics. Where labels are probabilities,
  as label smoothing makes them, the clean term takes them as they are, the bounds the
  likeliest class.

  Attributes:
    epsilon: radius in pixel values, in (0, 1].
    warm_up_steps: training steps on clean images, at least 0.
    ramp_steps: training steps in which the radius grows, at least 1.
    kappa: last weight of the clean loss, in [0, 1]; 0.5 is Gowal et al.'s.
    crown: whether CROWN-IBP's bounds take part.
  """

  epsilon: float
  warm_up_steps: int = 0
  ramp_steps: int = 1
  kappa: float = 0.5
  crown: bool = False

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    logits = classifier(batch.images, training=True)
    labels = class_numbers(batch.labels)
    done = tf.cast(batch.step, tf.float32) - self.warm_up_steps
    grown = tf.clip_by_value(done / self.ramp_steps, 0.0, 1.0)
    box = _box(batch.images, grown * self.epsilon)
    margins = bounds.interval_margins(classifier, *box, labels)
    if self.crown:
      margins = tf.cond(  # linear bounds cost a pass for each class
        grown < 1.0,
        lambda: (
          (1.0 - grown) * bounds.linear_margins(classifier, *box, labels)
          + grown * margins
        ),
        lambda: margins,
      )
    kappa = 1.0 - grown * (1.0 - self.kappa)
    losses = kappa * cross_entropy(logits, batch.labels)
    losses += (1.0 - kappa) * cross_entropy(margins, labels)
    return Evaluated(
      losses, logits, shown_logits(classifier, batch, adversarial, logits)
    )

  def certified(self, classifier: keras.Model, batch: Batch) -> tf.Tensor:
    return is_certified(classifier, batch.images, batch.labels, self.epsilon)


def is_certified(
  classifier: keras.Model,
  images: tf.Tensor,
  labels: tf.Tensor,
  epsilon: float,
  *,
  crown: bool = True,
) -> tf.Tensor:
  """Which images no perturbation of the ball can bring to another class.

  The mean is the certified accuracy, never above the accuracy under any attack.

  Args:
    classifier: a Keras model of layers that have bounds (`objectives.bounds`).
    images: float32 [B, H, W, C] in [0, 1].
    labels: integer [B], or [B, classes].
    epsilon: radius in the maximum norm, pixel values.
    crown: whether the bounds of CROWN-IBP may certify what intervals cannot; it costs
      passes of B times the number of classes.

  Returns:
    bool [B].

  Raises:
    UserError: a layer has no bounds.
  """
  labels = class_numbers(labels)
  box = _box(images, epsilon)
  margins = bounds.interval_margins(classifier, *box, labels)
  if crown:
    tighter = bounds.linear_margins(classifier, *box, labels)
    margins = tf.minimum(margins, tighter)
  is_label = tf.one_hot(labels, margins.shape[-1], on_value=True, off_value=False)
  return tf.reduce_all(is_label | (margins < 0.0), axis=-1)


def class_numbers(labels: tf.Tensor) -> tf.Tensor:
  """int64 [B]: the labels, or the most probable classes."""
  labels = tf.convert_to_tensor(labels)
  if labels.shape.rank == 1:
    return tf.cast(labels, tf.int64)
  return tf.argmax(labels, axis=-1)


def _box(images: tf.Tensor, epsilon: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """The smallest and the largest pixels."""
  return (
    tf.maximum(images - epsilon, 0.0),
    tf.minimum(images + epsilon, 1.0),
  )
