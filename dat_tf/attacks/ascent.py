"""PGD as an evaluation runs it: with restarts, momentum, any loss, and early exit."""

from __future__ import annotations

import dataclasses
from typing import Callable

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.attacks.gradient import loss_and_gradient
from dat_tf.attacks.iterative import (
  Bounded,
  Classifier,
  Examples,
  State,
  select,
  unfooled,
)
from dat_tf.objectives.losses import cross_entropy


@dataclasses.dataclass(frozen=True)
class Ascent(Bounded):
  """Projected gradient ascent; any of its points may be the adversarial one.

      v_{k+1} = momentum v_k + g / mean |g|,   g = grad loss(f(x_k), y)
      x_{k+1} = project(x_k + step_size * steepest(v_{k+1}))

  Without momentum these are the steps of `PGD` (Madry et al., ICLR 2018), with momentum
  1 and without a random start those of MI-FGSM (Dong et al., CVPR 2018).

  Attributes:
    ball: where adversarial images are sought.
    step_size: length of a step in the ball's norm, greater than 0.
    steps: K, gradient steps in a round.
    restarts: rounds.
    momentum: weight of the earlier gradients, at least 0.
    random_start: whether to start at a random point of the ball, or at the image; from
      there a random direction is taken where the gradient vanishes.
    loss: logits [B, classes] and labels [B] -> [B].
  """

  ball: norms.Ball
  step_size: float
  steps: int
  restarts: int = 1
  momentum: float = 0.0
  random_start: bool = True
  loss: Callable[..., tf.Tensor] = cross_entropy

  def num_steps(self, size: int) -> int:
    del size
    return self.steps + 1  # the last one looks at the last point

  def num_rounds(self, num_classes: int) -> int:
    return self.restarts

  def start(self, examples: Examples) -> State:
    images = examples.images
    point = (
      self.ball.random_start(examples.keys, images) if self.random_start else images
    )
    return {
      **unfooled(images),
      "point": point,
      "velocity": tf.zeros_like(images),
      "best_loss": tf.fill([tf.shape(images)[0]], float("-inf")),
    }

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    images, point = examples.images, state["point"]
    logits, loss, gradient = loss_and_gradient(
      classifier, point, lambda logits: self.loss(logits, examples.labels)
    )
    fooled = examples.fooled(logits)
    better = fooled | (loss > state["best_loss"])
    if not self.random_start:
      gradient = norms.never_zero(gradient, examples.keys, k)
    velocity = gradient
    if self.momentum:
      size = tf.reduce_mean(tf.abs(gradient), [1, 2, 3], keepdims=True)
      velocity = self.momentum * state["velocity"]
      velocity += tf.math.divide_no_nan(gradient, size)
    return {
      "adversarial": select(better, point, state["adversarial"]),
      "norm": tf.where(fooled, self.ball.norm(point - images), float("inf")),
      "point": norms.ascend(self.ball, images, point, velocity, self.step_size),
      "velocity": velocity,
      "best_loss": tf.maximum(loss, state["best_loss"]),
    }
