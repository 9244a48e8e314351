"""DeepFool: to the nearest boundary, step by step.

Moosavi-Dezfooli et al., "DeepFool: a simple and accurate method to fool deep neural
networks", CVPR 2016.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.attacks import hyperplane, norms
from dat_tf.attacks.iterative import (
  Classifier,
  Examples,
  Smallest,
  State,
  keep_smaller,
  per_example,
  restarted,
  unfooled,
)

_OVERSHOOT = 0.02
# As in the authors' program: where steps are cut off they would get ever shorter, and
# not cross the boundary.
_EXTRA = 1e-4


@dataclasses.dataclass(frozen=True)
class DeepFool(Smallest):
  """DeepFool in any norm.

  Each step takes the boundaries to the likeliest wrong classes for hyperplanes, and
  goes the shortest way to the nearest one; what leaves [0, 1] is cut off. The search
  ends at the first image that fools. Where all gradients vanish it goes on from a
  random point of the ball.

  Attributes:
    ball: the norm; an example is broken by a perturbation inside.
    steps: at most.
    candidates: how many classes are looked at.
  """

  ball: norms.Ball
  steps: int = 50
  candidates: int = hyperplane.CANDIDATES

  @property
  def stop_norm(self) -> float:
    return float(tf.float32.max)

  def start(self, examples: Examples) -> State:
    return {**unfooled(examples.images), "way": tf.zeros_like(examples.images)}

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    images = examples.images
    point = images + (1.0 + _OVERSHOOT) * state["way"]
    point = tf.clip_by_value(point, 0.0, 1.0)
    near = hyperplane.nearest(self.ball, classifier, examples, point, self.candidates)
    if isinstance(self.ball, norms.L1):
      # The shortest way moves one entry, and soon meets the end of its range.
      way = hyperplane.shortest_way(self.ball, point, near.gradient, near.value)
    else:
      length = per_example(near.distance + _EXTRA)
      way = length * self.ball.steepest(near.gradient)
    lost = norms.is_zero(near.gradient)
    following = restarted(lost, self.ball, examples, k, images + state["way"] + way)
    return {
      **keep_smaller(self.ball, examples, state, point, near.logits),
      "way": following - images,
    }
