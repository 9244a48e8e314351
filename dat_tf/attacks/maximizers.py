"""Attacks of training that are bound to no ball of allowed perturbations."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.attacks.pgd import Loss
from dat_tf.base import hashing
from dat_tf.objectives.losses import cross_entropy, input_gradient
from dat_tf.objectives.objective import Classifier


@dataclasses.dataclass(frozen=True)
class NFGSM:
  """One step from an image with noise, which nothing clips but the pixel range.

      n  = clip(x + u),  u uniform in [-noise epsilon, noise epsilon]
      x' = clip(n + epsilon sign(grad loss(f(n), y)))

  N-FGSM: de Jorge et al., "Make some noise: reliable and efficient single-step
  adversarial training", NeurIPS 2022. It guards FGSM against catastrophic overfitting.
  Its images are up to (1 + noise) epsilon away: it is for training only.

  Attributes:
    epsilon: length of the step, pixel values, in (0, 1].
    noise: k of the paper, at least 0.
  """

  epsilon: float
  noise: float = 2.0

  def __post_init__(self) -> None:
    norms.LInfinity(self.epsilon)  # has the same bounds

  def __call__(
    self,
    classifier: Classifier,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images; arguments as `Attack`'s."""
    noise = 2.0 * hashing.uniform(keys, images.shape[1:]) - 1.0
    noisy = _clip_to_pixels(images + self.noise * self.epsilon * noise)
    gradient = input_gradient(classifier, noisy, labels, loss)
    return _clip_to_pixels(noisy + self.epsilon * tf.sign(gradient))


@dataclasses.dataclass(frozen=True)
class WRM:
  """Gradient ascent on the loss less a price for the distance, without a ball.

      x_{t+1} = clip(x_t + 1 / sqrt(t + 1) * 1 / (2 gamma) * grad phi(x_t))
      phi(z)  = loss(f(z), y) - gamma |z - x|^2

  from x_0 = x, for t = 0 ... steps - 1. Where the loss has no gradient a random
  direction of norm 1 stands for it. phi is concave, and has one maximum, for a large
  gamma.

  WRM: Sinha et al., "Certifying some distributional robustness with principled
  adversarial training", ICLR 2018. The steps have the lengths of the authors' program,
  which takes one more than its `steps` says, 16 for 15, and clips nothing to [0, 1].

  Attributes:
    gamma: price of a squared Euclidean distance, pixels in [0, 1], greater than 0; that
      of the authors' program on MNIST is 0.385 (its eps is 1 / (2 gamma) = 1.3).
    steps: gradients taken, at least 1; 15 in the paper.
  """

  gamma: float = 0.385
  steps: int = 15

  def __post_init__(self) -> None:
    norms.check_positive(gamma=self.gamma, steps=self.steps)

  def __call__(
    self,
    classifier: Classifier,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images; arguments as `Attack`'s."""
    moved = images
    for t in range(self.steps):
      gradient = input_gradient(classifier, moved, labels, loss)
      gradient = norms.never_zero(gradient, keys, t)
      step = gradient / (2.0 * self.gamma) - (moved - images)
      moved = _clip_to_pixels(moved + step / (t + 1) ** 0.5)
    return moved


def _clip_to_pixels(images: tf.Tensor) -> tf.Tensor:
  return tf.clip_by_value(images, 0.0, 1.0)
