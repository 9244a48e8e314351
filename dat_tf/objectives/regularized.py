"""Objectives with a penalty added.

    fgsm_without_overfitting = Regularized(
      AdversarialTraining(0), GradientAlignment(ball.random_start), training=False
    )

A penalty is a function of the classifier, the batch and its adversarial images. It runs
the network in training mode, as the loss does: by moving averages, to which the weights
are not bound, a penalty could be made small by changes that batch-norm takes back. So
with batch-norm an example's gradient has a part by way of the others in its batch, and
with dropout two passes that are compared have masks of their own. But what guards an
attack, as GradAlign does, belongs to the network in the mode in which it is attacked.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Callable

import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.objectives.losses import cross_entropy, input_gradient
from dat_tf.objectives.objective import Batch, Classifier, Evaluated, Objective, Wrapper

# (images -> logits, batch, adversarial images) -> [B]
Penalty = Callable[[Classifier, Batch, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Regularized(Wrapper):
  """An objective's losses plus a penalty on each example.

  Attributes:
    objective: whose losses they are, and what the attacker maximises.
    penalty: (images -> logits, batch, adversarial images) -> [B], weight included.
    training: whether the penalty runs the network in training mode.
  """

  objective: Objective
  penalty: Penalty
  training: bool = True

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    evaluated = self.objective(classifier, batch, adversarial)
    logits = functools.partial(classifier, training=self.training)
    penalties = self.penalty(logits, batch, adversarial)
    return evaluated._replace(losses=evaluated.losses + penalties)


@dataclasses.dataclass(frozen=True)
class InputGradient:
  """weight |grad l(x, y)|^2: the input gradient, its norm Euclidean.

  Ross and Doshi-Velez, "Improving the adversarial robustness and interpretability of
  deep neural networks by regularizing their input gradients", AAAI 2018; also known as
  double backpropagation.

  Attributes:
    weight: at least 0; the gradient is with respect to pixels in [0, 1].
  """

  weight: float

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> tf.Tensor:
    del adversarial
    gradient = input_gradient(classifier, batch.images, batch.labels)
    return self.weight * _squared_norm(gradient)


@dataclasses.dataclass(frozen=True)
class Curvature:
  """weight |grad l(x + h z, y) - grad l(x, y)|^2, z = sign(grad l(x, y)) of length 1.

  CURE: Moosavi-Dezfooli et al., "Robustness via curvature regularization, and vice
  versa", CVPR 2019. z is a constant to the gradient with respect to the weights. (The
  authors' program takes the norm itself, not its square, runs the network in inference
  mode, and lets h grow to 3.)

  Attributes:
    weight: at least 0; the paper uses 4.
    step: h, Euclidean length with pixels in [0, 1], greater than 0; the paper uses
      1.5 on CIFAR-10.
  """

  weight: float = 4.0
  step: float = 1.5

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> tf.Tensor:
    del adversarial
    gradient = input_gradient(classifier, batch.images, batch.labels)
    sign = tf.stop_gradient(tf.sign(gradient))
    length = tf.sqrt(_squared_norm(sign))[:, tf.newaxis, tf.newaxis, tf.newaxis]
    moved = batch.images + self.step * tf.math.divide_no_nan(sign, length)
    moved_gradient = input_gradient(classifier, moved, batch.labels)
    return self.weight * _squared_norm(moved_gradient - gradient)


@dataclasses.dataclass(frozen=True)
class GradientAlignment:
  """weight (1 - cos(grad l(x, y), grad l(x + eta, y))), eta uniform in the ball.

  GradAlign, which keeps FGSM from catastrophic overfitting: Andriushchenko and
  Flammarion, "Understanding and improving fast adversarial training", NeurIPS 2020. An
  example with a zero gradient has no penalty. (The authors' program takes the first
  gradient for a constant.)

  Attributes:
    random_start: keys and images -> images moved at random (a ball's `random_start`).
    weight: at least 0; the paper uses 0.2 on CIFAR-10 with epsilon = 8/255.
  """

  random_start: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
  weight: float = 0.2

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> tf.Tensor:
    del adversarial
    # Another stream than that of the attack's random start.
    keys = hashing.stream_keys(2, batch.keys[:, 0], batch.keys[:, 1])
    moved = self.random_start(keys, batch.images)
    directions, exists = zip(
      *(
        _direction(input_gradient(classifier, images, batch.labels))
        for images in (batch.images, moved)
      )
    )
    cosine = tf.reduce_sum(directions[0] * directions[1], axis=[1, 2, 3])
    return self.weight * tf.where(exists[0] & exists[1], 1.0 - cosine, 0.0)


@dataclasses.dataclass(frozen=True)
class LocalLinearity:
  """weight g(delta) + gradient_weight |delta . grad l(x, y)|.

      g(delta) = |l(x + delta, y) - l(x, y) - delta . grad l(x, y)|

  LLR: Qin et al., "Adversarial robustness through local linearization", NeurIPS 2019,
  to be added to the clean loss. Its attack looks for the largest g
  (`PGD` with `linearity_violation` for its gain), here with PGD's steps; the
  authors' program takes 10 of Adam with a rate of 0.1, which lead to corners of the
  ball as PGD's do if they are as long as epsilon. Its loss is 2 l + 4 (g + 0.3 |delta .
  grad l|), with the statistics of the clean batch throughout.

  Attributes:
    weight: lambda of the paper, at least 0; the paper uses 4 on CIFAR-10.
    gradient_weight: mu of the paper, at least 0; the paper uses 3 on CIFAR-10.
  """

  weight: float = 4.0
  gradient_weight: float = 3.0

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> tf.Tensor:
    violation, change = _linearity(
      classifier, batch.images, batch.labels, cross_entropy
    )(adversarial)
    return self.weight * violation + self.gradient_weight * tf.abs(change)


@dataclasses.dataclass(frozen=True)
class AttributionNorm:
  """weight |IG(x, x + delta)|_1, integrated gradients of the loss along delta.

      IG_i = delta_i 1/m sum of dl(x + k/m delta, y) / dx_i over k = 1 ... m

  IG-NORM: Chen et al., "Robust attribution regularization", NeurIPS 2019, to be added
  to the clean loss. Its attack looks for the largest norm
  (`PGD` with `attribution_norm` for its gain). All m points go through the
  network as one batch.

  Attributes:
    weight: at least 0; the paper uses 1 on Fashion-MNIST.
    points: m, at least 1; the paper uses 50.
  """

  weight: float = 1.0
  points: int = 50

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> tf.Tensor:
    norm = attribution_norm(classifier, batch.images, batch.labels, points=self.points)
    return self.weight * norm(adversarial)


def linearity_violation(
  classifier: Classifier,
  images: tf.Tensor,
  labels: tf.Tensor,
  loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = cross_entropy,
) -> Callable[[tf.Tensor], tf.Tensor]:
  """The g of `LocalLinearity` as a function of the adversarial images: -> [B]."""
  linearity = _linearity(classifier, images, labels, loss)
  return lambda adversarial: linearity(adversarial)[0]


def attribution_norm(
  classifier: Classifier,
  images: tf.Tensor,
  labels: tf.Tensor,
  loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = cross_entropy,
  *,
  points: int = 10,
) -> Callable[[tf.Tensor], tf.Tensor]:
  """The |IG|_1 of `AttributionNorm` as a function of the adversarial images: -> [B].

  The authors' attack takes 10 points, as is the default here (their penalty 50).
  """
  repeats = [points, *[1] * (len(labels.shape) - 1)]
  many_labels = tf.tile(labels, repeats)

  def norm(adversarial: tf.Tensor) -> tf.Tensor:
    delta = adversarial - images
    path = [images + k / points * delta for k in range(1, points + 1)]
    gradients = input_gradient(classifier, tf.concat(path, axis=0), many_labels, loss)
    mean = tf.add_n(tf.split(gradients, points)) / points
    return tf.reduce_sum(tf.abs(delta * mean), axis=[1, 2, 3])

  return norm


def _linearity(
  classifier: Classifier,
  images: tf.Tensor,
  labels: tf.Tensor,
  loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
  """Adversarial images -> g and delta . grad l, [B] each."""
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(images)
    clean = loss(classifier(images), labels)
  gradient = tape.gradient(clean, images)

  def linearity(adversarial: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    change = tf.reduce_sum((adversarial - images) * gradient, axis=[1, 2, 3])
    moved = loss(classifier(adversarial), labels)
    return tf.abs(moved - clean - change), change

  return linearity


def _squared_norm(x: tf.Tensor) -> tf.Tensor:
  """[B, H, W, C] -> [B]."""
  return tf.reduce_sum(tf.square(x), axis=[1, 2, 3])


def _direction(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """The gradient at length 1, and whether it is other than zero, bool [B]."""
  largest = tf.reduce_max(tf.abs(gradient), axis=[1, 2, 3], keepdims=True)
  exists = largest > 0
  # Scaled first, so that squaring does not underflow; no derivative of the square root
  # is taken at 0.
  scaled = gradient / tf.stop_gradient(tf.where(exists, largest, 1.0))
  squared = tf.reduce_sum(tf.square(scaled), axis=[1, 2, 3], keepdims=True)
  return scaled * tf.math.rsqrt(tf.where(exists, squared, 1.0)), exists[:, 0, 0, 0]
