"""Inner maximisers that are made for training.

They are called as every attack is. Some of them change as training goes on: those have
a method `for_batch`, which the training step calls for the maximiser of this batch.
"""

from __future__ import annotations

import dataclasses
from typing import Callable

import tensorflow as tf

from dat_tf import hashing
from dat_tf.attacks import norms
from dat_tf.attacks.gradient import Logits, Loss
from dat_tf.objectives.losses import cross_entropy, input_gradient

# (images -> logits, images, labels, loss) -> (adversarial images -> [B])
Gain = Callable[[Logits, tf.Tensor, tf.Tensor, Loss], Callable[[tf.Tensor], tf.Tensor]]


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

  def __call__(
    self,
    classifier: Logits,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images; arguments as those of `PGD`."""
    noise = 2.0 * hashing.uniform(keys, images.shape[1:]) - 1.0
    noisy = _clip_to_pixels(images + self.noise * self.epsilon * noise)
    gradient = input_gradient(classifier, noisy, labels, loss)
    return _clip_to_pixels(noisy + self.epsilon * tf.sign(gradient))


@dataclasses.dataclass(frozen=True)
class MomentumPGD:
  """PGD along an average of past gradients (Dong et al., CVPR 2018: MI-FGSM).

      g_{k+1} = decay g_k + grad_k / |grad_k|_1
      x_{k+1} = project(x_k + step_size * steepest(g_{k+1}))

  Attributes:
    ball: the allowed perturbations.
    step_size: length of a step in the ball's norm, pixel units, greater than 0.
    steps: K, at least 1.
    decay: at least 0; with 0 it is PGD.
    random_start: whether to start at a random point of the ball, or at x.
  """

  ball: norms.Ball
  step_size: float
  steps: int
  decay: float = 1.0
  random_start: bool = True

  def __call__(
    self,
    classifier: Logits,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images; arguments as those of `PGD`."""
    moved = self.ball.random_start(keys, images) if self.random_start else images
    momentum = tf.zeros_like(images)
    for k in range(self.steps):
      gradient = input_gradient(classifier, moved, labels, loss)
      if not self.random_start:
        gradient = norms.never_zero(gradient, keys, k)
      length = tf.reduce_sum(tf.abs(gradient), axis=[1, 2, 3], keepdims=True)
      momentum = self.decay * momentum + tf.math.divide_no_nan(gradient, length)
      moved = norms.ascend(self.ball, images, moved, momentum, self.step_size)
    return norms.checked(self.ball, images, moved)


@dataclasses.dataclass(frozen=True)
class GainAscent:
  """PGD on something else than a loss of the logits, such as g of LLR or IG-NORM.

      GainAscent(linearity_violation, LInfinity(8 / 255), step_size=4 / 255, steps=2)

  Attributes:
    gain: what is maximised; from classifier, images, labels and loss it makes a
      function of the adversarial images, -> [B].
    ball: the allowed perturbations.
    step_size: length of a step in the ball's norm, pixel units, greater than 0.
    steps: K, at least 1.
  """

  gain: Gain
  ball: norms.Ball
  step_size: float
  steps: int

  def __call__(
    self,
    classifier: Logits,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images; arguments as those of `PGD`."""
    gain = self.gain(classifier, images, labels, loss)
    # At x itself such gains have no gradient.
    moved = self.ball.random_start(keys, images)
    for _ in range(self.steps):
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(moved)
        total = tf.reduce_sum(gain(moved))
      gradient = tape.gradient(total, moved)
      moved = norms.ascend(self.ball, images, moved, gradient, self.step_size)
    return norms.checked(self.ball, images, moved)


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

  def __call__(
    self,
    classifier: Logits,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images; arguments as those of `PGD`."""
    moved = images
    for t in range(self.steps):
      gradient = input_gradient(classifier, moved, labels, loss)
      gradient = norms.never_zero(gradient, keys, t)
      step = gradient / (2.0 * self.gamma) - (moved - images)
      moved = _clip_to_pixels(moved + step / (t + 1) ** 0.5)
    return moved


def _clip_to_pixels(images: tf.Tensor) -> tf.Tensor:
  return tf.clip_by_value(images, 0.0, 1.0)
