"""Clean and adversarial cross-entropy on labelled images, and a term for the others."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.objectives.losses import cross_entropy
from dat_tf.objectives.objective import Batch, Classifier, Evaluated, Objective


@dataclasses.dataclass(frozen=True)
class SemiSupervised(Objective):
  """DAT's objective on labelled images, and one on unlabelled ones.

  With l the cross-entropy, p(x) the network's own prediction (through which no gradient
  flows), z a pseudo-label and w the weight of unlabelled images, an example's loss is

      labelled       lambda l(x, y) + l(x + delta, y)
      pseudo-label   w (lambda l(x, z) + l(x + delta, z))
      consistency    w r KL(p(x) || p(x + delta))

  at training step t, counted from 0, with r = min(1, (t + 1) / consistency_growing): a
  network that has learnt little agrees with itself best by saying nothing definite of
  any image.

  Pseudo-labels are those of robust self-training (Carmon et al., "Unlabeled data
  improves adversarial robustness", NeurIPS 2019), whose loss of all images is that of
  TRADES, where it is DAT's here; consistency needs no label (the online target
  of unsupervised adversarial training, "UAT-OT": Stanforth et al., "Are labels required
  for improving adversarial robustness?", NeurIPS 2019). Of both, an image has the sum
  ("UAT++", ibid.). An unlabelled image that has no pseudo-label, since its confidence
  was too low, has none of that term.

  The attacker maximises the second part of each, l(x + delta, y) and so on; the
  divergence differs from the cross-entropy to p(x) by a number that delta cannot
  change.

  Attributes:
    clean_weight: lambda, the weight of clean losses, at least 0.
    unlabeled_weight: w, at least 0.
    pseudo_labels: whether unlabelled images have the pseudo-label term.
    consistency: whether they have the consistency term.
    label_smoothing: s in [0, 1): a pseudo-label z counts as (1 - s) z + s / classes.
    consistency_growing: training steps in which the consistency term grows from nothing
      to its full weight, in a line; 0 if it always has it.
  """

  clean_weight: float = 1.0
  unlabeled_weight: float = 1.0
  pseudo_labels: bool = True
  consistency: bool = False
  label_smoothing: float = 0.0
  consistency_growing: int = 0

  def attack_targets(self, classifier: Classifier, batch: Batch) -> tf.Tensor:
    # One extra pass, whose logits also tell the number of classes.
    logits = tf.stop_gradient(classifier(batch.images))
    return self._labels(batch, logits) + self._predictions(batch, logits)

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    logits = classifier(tf.concat([batch.images, adversarial], axis=0), training=True)
    clean_logits, adversarial_logits = tf.split(logits, 2, axis=0)
    labels = self._labels(batch, clean_logits)
    predictions = self._predictions(batch, tf.stop_gradient(clean_logits))
    log_p = tf.stop_gradient(tf.nn.log_softmax(clean_logits))
    losses = self.clean_weight * cross_entropy(clean_logits, labels)
    losses += cross_entropy(adversarial_logits, labels + predictions)
    losses += tf.reduce_sum(predictions * log_p, axis=-1)
    weights = tf.where(batch.is_labeled > 0, 1.0, self.unlabeled_weight)
    return Evaluated(weights * losses, clean_logits, adversarial_logits)

  def _labels(self, batch: Batch, logits: tf.Tensor) -> tf.Tensor:
    """[B, classes]: labels and pseudo-labels, zeros where there is none."""
    classes = logits.shape[-1]
    rows = batch.labels
    if rows.shape.rank == 1:
      rows = tf.one_hot(rows, classes)  # -1 becomes zeros
    is_labeled = batch.is_labeled[:, tf.newaxis]
    if not self.pseudo_labels:
      return is_labeled * rows
    exists = tf.reduce_sum(rows, axis=-1, keepdims=True)
    smooth = (1 - self.label_smoothing) * rows + self.label_smoothing / classes * exists
    return tf.where(is_labeled > 0, rows, smooth)

  def _predictions(self, batch: Batch, logits: tf.Tensor) -> tf.Tensor:
    """[B, classes]: r times what the network says of unlabelled images, else zeros."""
    if not self.consistency:
      return tf.zeros_like(logits)
    grown = 1.0
    if self.consistency_growing:
      done = tf.cast(batch.step, tf.float32) + 1.0
      grown = tf.minimum(done / self.consistency_growing, 1.0)
    return grown * (1 - batch.is_labeled[:, tf.newaxis]) * tf.nn.softmax(logits)
