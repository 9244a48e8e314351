"""Projected gradient ascent: one loop, whose start, direction and gain are arguments.

PGD(LInfinity(8 / 255), step_size=2 / 255, steps=10)
PGD(L2(0.5), 0.1, 10, start=from_image, direction=Momentum())          # MI-FGSM
PGD(LInfinity(0.1), 0.1, 2, gain=linearity_violation)                  # LLR's ascent
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Optional, Protocol, Union

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.objectives.losses import cross_entropy, gradient_of
from dat_tf.objectives.objective import Classifier

# (logits [B, classes], labels) -> [B]
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# (ball, images, keys) -> the points where the ascent begins
Start = Callable[[norms.Ball, tf.Tensor, tf.Tensor], tf.Tensor]
# (classifier, images, labels, loss) -> (points -> [B], what is to grow)
Gain = Callable[
  [Classifier, tf.Tensor, tf.Tensor, Loss], Callable[[tf.Tensor], tf.Tensor]
]


def from_random(ball: norms.Ball, images: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
  """A random point of the ball; keys: uint32 [B, 2]."""
  return ball.random_start(keys, images)


def from_image(ball: norms.Ball, images: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
  """The image itself."""
  del ball, keys
  return images


def loss_of_logits(
  classifier: Classifier, images: tf.Tensor, labels: tf.Tensor, loss: Loss
) -> Callable[[tf.Tensor], tf.Tensor]:
  """The loss at the adversarial images."""
  del images
  return lambda points: loss(classifier(points), labels)


class Direction(Protocol):
  """Where a step leads, from the gradients so far."""

  def memory(self, images: tf.Tensor) -> Any:
    """What is remembered before the first step: a structure of tensors."""

  def __call__(self, gradient: tf.Tensor, memory: Any) -> tuple[tf.Tensor, Any]:
    """What to climb along, [B, H, W, C], and what to remember."""


@dataclasses.dataclass(frozen=True)
class Gradient:
  """Along the gradient at the point."""

  def memory(self, images: tf.Tensor) -> Any:
    del images
    return ()

  def __call__(self, gradient: tf.Tensor, memory: Any) -> tuple[tf.Tensor, Any]:
    return gradient, memory


@dataclasses.dataclass(frozen=True)
class Momentum:
  """Along an average of the gradients so far (Dong et al., CVPR 2018: MI-FGSM).

      g_{k+1} = decay g_k + grad_k / |grad_k|_1

  Attributes:
    decay: at least 0; with 0 the steps are those of `Gradient`.
  """

  decay: float = 1.0

  def memory(self, images: tf.Tensor) -> Any:
    return tf.zeros_like(images)

  def __call__(self, gradient: tf.Tensor, memory: Any) -> tuple[tf.Tensor, Any]:
    length = tf.reduce_sum(tf.abs(gradient), axis=[1, 2, 3], keepdims=True)
    average = self.decay * memory + tf.math.divide_no_nan(gradient, length)
    return average, average


@dataclasses.dataclass(frozen=True)
class PGD:
  """Projected gradient ascent (Madry et al., ICLR 2018).

      x_0     = start(x)
      x_{k+1} = project(x_k + step_size * steepest(direction(grad gain(x_k))))

  `project` leads back into the ball around x and into [0, 1].

  Attributes:
    ball: `norms.LInfinity`, `norms.L2` or `norms.L1`.
    step_size: length of a step in the ball's norm, pixel units, greater than 0.
    steps: K, number of gradient steps, at least 1; it may be a tensor, int32 [].
    start: where the ascent begins, `from_random` or `from_image`. From the image a
      random direction is taken where the gradient vanishes.
    direction: `Gradient()` or `Momentum()`.
    gain: what is to grow; the loss of the call, unless given.

  Raises:
    UserError: step size or steps are not greater than 0.
  """

  ball: norms.Ball
  step_size: Union[float, tf.Tensor]
  steps: Union[int, tf.Tensor]
  start: Start = from_random
  direction: Direction = Gradient()
  gain: Gain = loss_of_logits

  def __post_init__(self) -> None:
    norms.check_positive(step_size=self.step_size, steps=self.steps)

  def __call__(
    self,
    classifier: Classifier,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images, checked to lie in the ball; arguments as `Attack`'s."""
    gain = self.gain(classifier, images, labels, loss)
    start = self.start(self.ball, images, keys)
    return norms.checked(self.ball, images, self.climb(gain, images, start, keys))

  def climb(
    self,
    gain: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    points: tf.Tensor,
    keys: tf.Tensor,
  ) -> tf.Tensor:
    """The ascent alone.

    Args:
      gain: points -> [B], what is to grow.
      images: float32 [B, H, W, C] in [0, 1], the centers of the balls.
      points: where to begin, of that shape.
      keys: uint32 [B, 2], one random stream an example.

    Returns:
      The points that the last step leads to.
    """

    def step(
      k: Union[int, tf.Tensor], points: tf.Tensor, memory: Any
    ) -> tuple[tf.Tensor, Any]:
      gradient = gradient_of(gain, points)
      if self.start is from_image:
        gradient = norms.never_zero(gradient, keys, k)
      way, memory = self.direction(gradient, memory)
      return norms.ascend(self.ball, images, points, way, self.step_size), memory

    memory = self.direction.memory(images)
    if tf.is_tensor(self.steps):
      return tf.while_loop(
        lambda k, *_: k < self.steps,
        lambda k, *state: (k + 1, *step(k, *state)),
        (tf.constant(0), points, memory),
      )[1]
    # The loop is unrolled: on a CPU that is some 10 % faster than tf.while_loop.
    for k in range(self.steps):
      points, memory = step(k, points, memory)
    return points


def fgsm(ball: norms.Ball, step_size: Optional[float] = None) -> PGD:
  """FGSM with a random start: one long step (Wong et al., "Fast is better than free").

  Args:
    ball: the allowed perturbations.
    step_size: 1.25 epsilon unless given, as that paper recommends.
  """
  return PGD(ball, step_size or 1.25 * ball.epsilon, steps=1)
