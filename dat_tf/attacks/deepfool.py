"""DeepFool: to the nearest boundary, step by step.

Moosavi-Dezfooli et al., "DeepFool: a simple and accurate method to fool deep neural
networks", CVPR 2016.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.attacks import hyperplane, losses, norms
from dat_tf.attacks.iterative import (
  Classifier,
  Examples,
  State,
  per_example,
  smaller,
  unfooled,
)

_OVERSHOOT = 0.02
# As in the authors' program: where steps are cut off they would get ever shorter, and
# not cross the boundary.
_EXTRA = 1e-4


@dataclasses.dataclass(frozen=True)
class DeepFool:
  """DeepFool in any norm.

  Each step takes the boundaries to the likeliest wrong classes for hyperplanes, and
  goes the shortest way to the nearest one; what leaves [0, 1] is cut off. The search
  ends at the first image that fools.

  Attributes:
    ball: the norm; an example is broken by a perturbation inside.
    steps: at most.
    candidates: how many classes are looked at.
  """

  ball: norms.Ball
  steps: int = 50
  candidates: int = 10

  @property
  def stop_norm(self) -> float:
    return float(tf.float32.max)

  @property
  def num_steps(self) -> int:
    return self.steps + 1  # the last one looks at the last point

  def num_rounds(self, num_classes: int) -> int:
    return 1

  def start(self, examples: Examples) -> State:
    return {**unfooled(examples.images), "way": tf.zeros_like(examples.images)}

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    images = examples.images
    point = images + (1.0 + _OVERSHOOT) * state["way"]
    point = tf.clip_by_value(point, 0.0, 1.0)
    wrong = losses.others(examples.logits, examples.labels)
    classes = tf.math.top_k(wrong, min(self.candidates, wrong.shape[1] - 1)).indices
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(point)
      logits = classifier(point)
      values = tf.gather(logits, classes, batch_dims=1)
      values -= losses.chosen(logits, examples.labels)[:, None]
    gradients = tape.batch_jacobian(values, point)  # all classes in one pass
    distances = tf.abs(values) / tf.maximum(self._dual_norm(gradients), 1e-12)
    nearest = tf.argmin(distances, axis=1)
    gradient = tf.gather(gradients, nearest, batch_dims=1)
    if isinstance(self.ball, norms.L1):
      # The shortest way moves one entry, and soon meets the end of its range.
      value = tf.gather(values, nearest, batch_dims=1)
      way = hyperplane.shortest_way(self.ball, point, gradient, value)
    else:
      distance = tf.gather(distances, nearest, batch_dims=1)
      way = per_example(distance + _EXTRA) * self.ball.steepest(gradient)
    return {
      **smaller(self.ball, examples, state, point, logits),
      "way": state["way"] + way,
    }

  def _dual_norm(self, gradients: tf.Tensor) -> tf.Tensor:
    """[B, n, H, W, C] -> [B, n]."""
    if isinstance(self.ball, norms.L1):
      return tf.reduce_max(tf.abs(gradients), [2, 3, 4])
    if isinstance(self.ball, norms.L2):
      return tf.sqrt(tf.reduce_sum(tf.square(gradients), [2, 3, 4]))
    return tf.reduce_sum(tf.abs(gradients), [2, 3, 4])
