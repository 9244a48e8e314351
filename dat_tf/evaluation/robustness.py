"""Runs attacks on a classifier, example by example.

What becomes of an example depends on nothing but the example, the attack and the seed:
its random numbers are keyed by its id, and the shape of a batch never changes, since
the last bits of a convolution depend on it. So the examples may be split over workers
in any way; nothing here is a collective.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Mapping
from typing import Callable, Union

import numpy as np
import tensorflow as tf

from dat_tf.attacks import iterative, losses, norms
from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.data.examples import class_numbers
from dat_tf.evaluation.refilling import Portion, Runner

# How far from [0, 1] a pixel may be that was computed.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a sequence of attacks did to each of N examples.

  Attributes:
    norm: float32 [N], of the perturbation found: 0 for an image that is misclassified
      as it is, infinity if no attack fooled the classifier.
    broken: bool [N], whether that is at most epsilon.
    attack: int32 [N], which attack of the sequence found it; -1 is none.
    prediction: int32 [N], the class of the adversarial image where `broken`, else of
      the image as it is.
    images: float32 [N, H, W, C], adversarial where `norm` is finite.
  """

  norm: np.ndarray
  broken: np.ndarray
  attack: np.ndarray
  prediction: np.ndarray
  images: np.ndarray

  @property
  def robust_accuracy(self) -> float:
    """Share of examples that are not broken, 0 to 1."""
    return 1.0 - float(self.broken.mean())


Sequence = Union[Mapping[str, iterative.Iterative], Iterable[iterative.Iterative]]


def _values(sequence: Sequence) -> Iterable[iterative.Iterative]:
  return sequence.values() if isinstance(sequence, Mapping) else sequence


class Evaluator:
  """Attacks the examples that a classifier gets right."""

  def __init__(
    self,
    classifier: iterative.Classifier,
    attacks: Mapping[str, Sequence],
    *,
    batch_size: int = 32,
    seed: int = 0,
  ):
    """Makes the evaluation of a classifier; graphs are traced at its first call.

    Args:
      classifier: any callable from images [B, H, W, C] to logits [B, classes].
      attacks: by a name each, what `attacks.make_attacks` gives, or any attacks in
        their order; each gets the examples that those before it did not break.
      batch_size: examples in a batch, of which two are attacked side by side. Outcomes
        may depend on it, by rounding.
      seed: of all random numbers.
    """
    # A partial: tf.function copies the attributes of a callable object over its own,
    # and warns of endless retracing when it wraps several lambdas from one line.
    self._classify = tf.function(functools.partial(classifier))
    self._runners = {
      name: [Runner(classifier, attack, batch_size) for attack in _values(sequence)]
      for name, sequence in attacks.items()
    }
    self._batch_size, self._seed = batch_size, seed
    self._is_tried = False

  def __call__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    example_ids: np.ndarray,
    advance: Callable[[], None] = lambda: None,
  ) -> tuple[np.ndarray, dict[str, Outcome]]:
    """Attacks some examples.

    Args:
      images: float32 [N, H, W, C] in [0, 1].
      labels: class numbers [N] or [N, 1], of any type.
      example_ids: int [N], on which the random numbers depend.
      advance: called after each attack of each sequence.

    Returns:
      int32 [N], the class of each image as it is; the outcomes by name.

    Raises:
      UserError: there are more of one than of another, images or labels are out of
        range, an attack needs more classes than the model has, or logits are not
        finite.

    Warns:
      BatchDependence: an image's logits depend on what else is in its batch.
    """
    if not len(images) == len(labels) == len(example_ids):
      raise UserError(
        f"{len(images)} images, {len(labels)} labels and {len(example_ids)} "
        "example_ids: an example has one of each."
      )
    images = np.asarray(images, np.float32)
    if not (images.min() >= -_ROUNDING and images.max() <= 1.0 + _ROUNDING):
      raise UserError(
        f"Pixels reach from {images.min():g} to {images.max():g}: bring the images to "
        "[0, 1]; a model that takes another range gets it by `input_range`."
      )
    if not self._is_tried:
      self._is_tried = True
      batch = np.resize(images, (self._batch_size, *images.shape[1:]))
      if batch_difference(self._classify, batch) > BATCH_NOISE:
        warnings.warn(BATCH_MATTERS, BatchDependence, stacklevel=2)
    logits = self._logits(images)
    examples = Portion(
      images,
      labels := class_numbers(labels, logits.shape[1]),
      logits,
      hashing.stream_keys(self._seed, np.asarray(example_ids)).numpy(),
    )
    prediction = logits.argmax(axis=1).astype(np.int32)
    correct = prediction == labels
    outcomes = {}
    for name, runners in self._runners.items():
      norm = np.where(correct, np.inf, 0.0).astype(np.float32)
      broken, attack = ~correct, np.full(len(images), -1, np.int32)
      adversarial = images.copy()
      for index, runner in enumerate(runners):
        found = runner.run(examples, np.flatnonzero(~broken))
        smaller = found.norm < norm
        norm = np.where(smaller, found.norm, norm)
        attack[smaller] = index
        adversarial[smaller] = found.images[smaller]
        broken = broken | (norm <= norms.with_tolerance(runner.epsilon))
        advance()
      attacked = prediction.copy()
      fooled = np.flatnonzero(correct & broken)
      logits = self._logits(adversarial[fooled], f"under {name}")
      # Not the label, whatever rounding makes of a tie at another place in the batch.
      rest = losses.others(logits, labels[fooled])
      attacked[fooled] = rest.numpy().argmax(axis=1)
      outcomes[name] = Outcome(norm, broken, attack, attacked, adversarial)
    return prediction, outcomes

  def _logits(self, images: np.ndarray, when: str = "as they are") -> np.ndarray:
    parts = []
    for start in range(0, max(1, len(images)), self._batch_size):
      part = images[start : start + self._batch_size]
      padding = [(0, self._batch_size - len(part))] + [(0, 0)] * (images.ndim - 1)
      padded = tf.constant(np.pad(part, padding))
      parts.append(self._classify(padded).numpy()[: len(part)])
    return finite(np.concatenate(parts), when)


class BatchDependence(UserWarning):
  """What becomes of an example depends on the others in its batch."""


BATCH_MATTERS = (
  "The same image in another batch has other logits, so that accuracies depend on the "
  "size of batches and on the number of workers: have batch-norm use its averages "
  "(training=False)"
)
# A part of the logits' norm; differences that come of rounding stay far below it.
BATCH_NOISE = 1e-3


def batch_difference(
  classify: Callable[[tf.Tensor], tf.Tensor], images: np.ndarray
) -> float:
  """How far the logits of the first image of a batch depend on the other images.

  Args:
    classify: from images [B, H, W, C] to logits [B, classes].
    images: float32 [B, H, W, C]; where all are alike, none is told from none.

  Returns:
    The difference, over the norm of the logits; 0 if these are not finite, or the same
    batch gives others from one call to the next.
  """

  def first(batch: np.ndarray) -> np.ndarray:
    return np.asarray(classify(tf.constant(batch)))[0]

  as_given, with_itself = first(images), first(np.repeat(images[:1], len(images), 0))
  if not (np.isfinite(with_itself).all() and np.array_equal(first(images), as_given)):
    return 0.0
  norm = float(np.linalg.norm(as_given)) or 1.0
  return float(np.linalg.norm(with_itself - as_given)) / norm


def finite(logits: np.ndarray, when: str = "as they are") -> np.ndarray:
  """Logits [N, classes], once it is seen that all are numbers.

  Args:
    logits: of images.
    when: what the images are, for the message.

  Raises:
    UserError: some are not.
  """
  bad = (~np.isfinite(logits)).any(axis=1).sum()
  if bad:
    raise UserError(
      f"The logits of {bad} of {len(logits)} images {when} are not finite: the model "
      "is broken, or takes images in another range than [0, 1] (`input_range`)."
    )
  return logits
