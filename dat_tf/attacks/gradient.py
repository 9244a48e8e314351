"""Attacks that climb the gradient of a loss."""

from __future__ import annotations

import dataclasses
from typing import Callable, NamedTuple, Optional

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.objectives.losses import cross_entropy, input_gradient

Logits = Callable[[tf.Tensor], tf.Tensor]
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class PGD:
  """Projected gradient ascent from a random point (Madry et al., ICLR 2018).

      x_0     = project(x + uniform noise in the ball)
      x_{k+1} = project(x_k + step_size * steepest(grad loss(f(x_k), y)))

  `project` leads back into the ball around x and into [0, 1].

  Attributes:
    ball: `norms.LInfinity`, `norms.L2` or `norms.L1`.
    step_size: length of a step in the ball's norm, pixel units, greater than 0.
    steps: K, number of gradient steps, at least 1.
    random_start: whether to start at a random point of the ball, or at x; from x a
      random direction is taken where the gradient vanishes.
  """

  ball: norms.Ball
  step_size: float
  steps: int
  random_start: bool = True

  def __call__(
    self,
    classifier: Logits,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images.

    Args:
      classifier: any callable from images [B, H, W, C] to logits [B, classes].
      images: float32 [B, H, W, C] in [0, 1].
      labels: [B] or [B, classes], whatever `loss` takes.
      keys: uint32 [B, 2], one random stream an example (`hashing.stream_keys`).
      loss: logits and labels -> [B], what is maximised.

    Returns:
      float32 [B, H, W, C]: in the ball around `images` and in [0, 1], checked.
    """
    adversarial = self.ball.random_start(keys, images) if self.random_start else images
    # The loop is unrolled: on a CPU that is some 10 % faster than tf.while_loop.
    for k in range(self.steps):
      gradient = input_gradient(classifier, adversarial, labels, loss)
      if not self.random_start:
        gradient = norms.never_zero(gradient, keys, k)
      adversarial = norms.ascend(
        self.ball, images, adversarial, gradient, self.step_size
      )
    return norms.checked(self.ball, images, adversarial)


def fgsm(ball: norms.Ball, step_size: Optional[float] = None) -> PGD:
  """FGSM with a random start: one long step (Wong et al., "Fast is better than free").

  Args:
    ball: the allowed perturbations.
    step_size: 1.25 epsilon unless given, as that paper recommends.
  """
  return PGD(ball, step_size or 1.25 * ball.epsilon, steps=1)


class Evaluated(NamedTuple):
  """A classifier at some images: logits [B, classes], loss [B], gradient [B, ...]."""

  logits: tf.Tensor
  loss: tf.Tensor
  gradient: tf.Tensor


def evaluated(
  classifier: Logits,
  images: tf.Tensor,
  loss: Callable[[tf.Tensor], tf.Tensor],
  samples: int = 1,
) -> Evaluated:
  """Logits, loss and its gradient with respect to each image.

  Args:
    classifier: from images to logits.
    images: float32 [B, H, W, C].
    loss: logits -> [B].
    samples: calls of the classifier, of which the means are taken, for a classifier
      that draws random numbers (Athalye et al., ICML 2018: EOT).
  """

  def sample() -> Evaluated:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(images)
      logits = classifier(images)
      values = loss(logits)
      # The sum, not the mean: each example's gradient is then its own, whatever the
      # batch size, and does not underflow in half precision.
      total = tf.reduce_sum(values)
    return Evaluated(logits, values, tape.gradient(total, images))

  if samples == 1:
    return sample()

  def add(number: tf.Tensor, before: Evaluated) -> tuple[tf.Tensor, Evaluated]:
    return number + 1, Evaluated(*(x + y for x, y in zip(before, sample())))

  _, sums = tf.while_loop(
    lambda number, _: number < samples,
    add,
    (tf.constant(1), sample()),
    parallel_iterations=1,
  )
  return Evaluated(*(x / samples for x in sums))
