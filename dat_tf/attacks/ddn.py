"""DDN: the direction by the gradient, the norm by success.

Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial
attacks and defenses", CVPR 2019.
"""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.attacks.gradient import loss_and_gradient
from dat_tf.attacks.iterative import (
  Classifier,
  Examples,
  Smallest,
  State,
  keep_smaller,
  per_example,
  unfooled,
)
from dat_tf.objectives.losses import cross_entropy


@dataclasses.dataclass(frozen=True)
class DDN(Smallest):
  """Smallest l2 perturbations.

      delta <- delta + step_k g / |g|,   radius <- radius (1 -+ change),
      x_{k+1} = x + radius delta / |delta|

  The radius shrinks while x_k fools the classifier and grows while it does not; step_k
  falls from 1 to 0.01 along a cosine. Where g is zero a random direction stands for it.
  (The authors' program also rounds images to 256 levels.)

  Attributes:
    ball: an example is broken by a perturbation inside.
    steps: gradient steps.
    change: relative change of the radius in a step.
    first_radius: the radius at the start.
  """

  ball: norms.L2
  steps: int = 100
  change: float = 0.05
  first_radius: float = 1.0

  def start(self, examples: Examples) -> State:
    images = examples.images
    return {
      **unfooled(images),
      "point": images,
      "radius": tf.fill([tf.shape(images)[0]], self.first_radius),
    }

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    images, point = examples.images, state["point"]
    logits, _, gradient = loss_and_gradient(
      classifier, point, lambda logits: cross_entropy(logits, examples.labels)
    )
    gradient = norms.never_zero(gradient, examples.keys, k)
    fooled = examples.fooled(logits)
    share = tf.cast(k, tf.float32) / self.steps
    step = 0.01 + 0.99 * (1.0 + tf.cos(math.pi * share)) / 2.0
    delta = point - images + per_example(step) * self.ball.steepest(gradient)
    radius = state["radius"] * tf.where(fooled, 1.0 - self.change, 1.0 + self.change)
    moved = images + per_example(radius) * self.ball.steepest(delta)
    return {
      **keep_smaller(self.ball, examples, state, point, logits),
      "point": tf.clip_by_value(moved, 0.0, 1.0),
      "radius": radius,
    }
