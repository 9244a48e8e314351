"""Measurements on a few images, by which to tell whether attacks can be trusted.

PGD with more room, with more steps, beside random noise; the gradient; the same call
again. `checks` judges them, and a report plots them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from dat_tf.attacks import iterative, norms
from dat_tf.base import hashing
from dat_tf.evaluation.prober import PGD_STEPS, Prober
from dat_tf.evaluation.robustness import batch_difference, finite

# AutoAttack's: how often the same images are classified.
_CALLS = 5
# Multiples of the run's epsilon.
RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
STEPS = (0, 1, 2, 5, 10, 20, 50)
_SURFACE = np.linspace(-2.0, 2.0, 21, dtype=np.float32)
_SURFACE_IMAGES = _GALLERY = 8


def probe(
  classifier: iterative.Classifier,
  ball: norms.Ball,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  example_ids: np.ndarray,
  batch_size: int = 64,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Measures a classifier.

  PGD takes 20 steps of 2.5 / 20 of its epsilon from a random point, for `steps` up to
  50 of them; noise is a random direction at the full length.

  Args:
    classifier: any callable from images [B, H, W, C] to logits [B, classes].
    ball: the allowed perturbations.
    images: float32 [N, H, W, C] in [0, 1], N at least 1.
    labels: int [N].
    example_ids: int [N], on which the random numbers depend.
    batch_size: images in a batch.
    seed: of all random numbers.

  Returns:
    Arrays by name, those of probes.npz: with E perturbation sizes, S numbers of steps
    and P points of an axis
      epsilons [E], epsilon_accuracy [E] under PGD, noise_accuracy [E];
      steps [S], steps_accuracy [S], steps_loss [S], its mean, in nats;
      surface_gradient, surface_random [P], in units of epsilon; surface [P, P], mean
        loss of a few images moved along the steepest and a random direction;
      gallery_*: a few images, adversarial ones first, with classes and confidences;
      example_id, pgd_broken, noise_broken [N], at epsilon;
      zero_gradient, share of images without a gradient, as they are or at the random
        point where APGD starts; random_difference, the largest between an image's
        logits in two of five calls, each over its norm; batch_difference, that
        between one image's logits in two batches, over their norm;
      grey_epsilon, at which all images can be made the same grey one; grey_accuracy,
        under PGD there.

  Raises:
    UserError: logits are not finite.
  """
  labels = np.asarray(labels, np.int32)
  prober = Prober(classifier, ball, batch_size)
  keys = hashing.stream_keys(seed, example_ids).numpy()
  logits = finite(prober.logits(images))
  prediction = logits.argmax(axis=1).astype(np.int32)
  right = prediction == labels
  epsilon = ball.epsilon

  at_epsilon = prober.climb(images, labels, keys, epsilon, max(STEPS))
  fooled = {0.0: ~right, 1.0: at_epsilon.fooled[: PGD_STEPS + 1].any(axis=0)}
  noise_fooled = {0.0: ~right}
  for ratio in RATIOS[1:]:
    if ratio not in fooled:
      climbed = prober.climb(images, labels, keys, ratio * epsilon, PGD_STEPS)
      fooled[ratio] = climbed.fooled.any(axis=0)
    noisy = prober.noisy(images, keys, ratio * epsilon)
    noise_fooled[ratio] = prober.logits(noisy).argmax(axis=1) != labels
  grey_epsilon = float(ball.norm(tf.fill([1, *images.shape[1:]], 0.5))[0])
  grey = prober.climb(images, labels, keys, grey_epsilon, PGD_STEPS)

  gradient = prober.gradients(images, labels)
  at_start = prober.gradients(prober.starts(images, keys), labels)
  smallest = np.min(
    [np.abs(one).max(axis=(1, 2, 3)) for one in (gradient, at_start)], axis=0
  )
  calls = [logits, *(prober.logits(images) for _ in range(_CALLS - 1))]

  def accuracy(broken: np.ndarray) -> np.float32:
    return np.float32((right & ~broken).mean())

  return {
    "example_id": np.asarray(example_ids, np.int64),
    "epsilons": np.float32(epsilon) * np.array(RATIOS, np.float32),
    "epsilon_accuracy": np.array([accuracy(fooled[ratio]) for ratio in RATIOS]),
    "noise_accuracy": np.array([accuracy(noise_fooled[ratio]) for ratio in RATIOS]),
    "steps": np.array(STEPS, np.int32),
    "steps_accuracy": np.array(
      [accuracy(at_epsilon.fooled[: k + 1].any(axis=0)) for k in STEPS]
    ),
    "steps_loss": at_epsilon.losses[list(STEPS)].mean(axis=1),
    "pgd_broken": ~right | fooled[1.0],
    "noise_broken": ~right | noise_fooled[1.0],
    # As good as zero: float32 has no normal numbers much smaller.
    "zero_gradient": np.float32((smallest < 1e-30).mean()),
    "random_difference": _largest_difference(calls),
    "batch_difference": np.float32(
      batch_difference(classifier, np.resize(images, (batch_size, *images.shape[1:])))
    ),
    "grey_epsilon": np.float32(grey_epsilon),
    "grey_accuracy": accuracy(grey.fooled.any(axis=0)),
    **_surface(prober, images, labels, keys, gradient),
    **_gallery(prober, images, labels, at_epsilon.worst, ~right | fooled[1.0]),
  }


def _largest_difference(calls: Sequence[np.ndarray]) -> np.float32:
  """Between an image's logits in any two calls, each divided by its norm."""
  units = [
    logits / (np.linalg.norm(logits, axis=1, keepdims=True) + 1e-10) for logits in calls
  ]
  return np.max(
    [
      np.linalg.norm(one - other, axis=1).max()
      for one, other in itertools.combinations(units, 2)
    ]
  )


def _surface(
  prober: Prober,
  images: np.ndarray,
  labels: np.ndarray,
  keys: np.ndarray,
  gradient: np.ndarray,
) -> dict[str, np.ndarray]:
  """The mean loss over a plane through a few images, [P, P]."""
  images, labels, keys, gradient = (
    x[:_SURFACE_IMAGES] for x in (images, labels, keys, gradient)
  )
  streams = hashing.stream_keys(2, keys[:, 0], keys[:, 1])
  noise = hashing.normal(streams, images.shape[1:])
  along, across = (
    prober.ball.epsilon * prober.ball.steepest(tf.constant(x)).numpy()
    for x in (gradient, noise)
  )

  def loss(a: float) -> np.ndarray:
    plane = [np.clip(images + a * along + b * across, 0.0, 1.0) for b in _SURFACE]
    many = np.concatenate(plane)
    values = prober.losses(many, np.tile(labels, len(_SURFACE)))
    return values.reshape(len(_SURFACE), -1).mean(axis=1)

  surface = np.stack([loss(a) for a in _SURFACE])
  axes = {"surface_gradient": _SURFACE, "surface_random": _SURFACE}
  return {**axes, "surface": surface.astype(np.float32)}


def _gallery(
  prober: Prober,
  images: np.ndarray,
  labels: np.ndarray,
  adversarial: np.ndarray,
  broken: np.ndarray,
) -> dict[str, np.ndarray]:
  """A few images, and what the classifier says of them and of the adversarial ones."""
  clean = prober.logits(images)
  attacked = prober.logits(adversarial)
  # First those that attacks change, then those that withstand, then what was wrong.
  order = np.where(clean.argmax(axis=1) != labels, 2, ~broken)
  chosen = np.argsort(order, kind="stable")[:_GALLERY]

  def confidence(logits: np.ndarray) -> np.ndarray:
    return tf.nn.softmax(logits[chosen]).numpy().max(axis=1)

  return {
    "gallery_image": images[chosen],
    "gallery_adversarial": adversarial[chosen],
    "gallery_label": labels[chosen],
    "gallery_prediction": clean[chosen].argmax(axis=1).astype(np.int32),
    "gallery_adversarial_prediction": attacked[chosen].argmax(axis=1).astype(np.int32),
    "gallery_confidence": confidence(clean),
    "gallery_adversarial_confidence": confidence(attacked),
  }
