"""FAB: adversarial images that are as near as possible.

Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
attack", ICML 2020; aimed at one class at a time, or at none, as in AutoAttack.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.attacks import hyperplane, losses, norms
from dat_tf.attacks.gradient import loss_and_gradient
from dat_tf.attacks.iterative import (
  Classifier,
  Examples,
  Iterative,
  State,
  keep_smaller,
  per_example,
  restarted,
  select,
  unfooled,
)
from dat_tf.base import hashing

_BIAS = 0.1  # alpha_max: the largest weight of the way from the image itself
_OVERSHOOT = 1.05  # eta
_BACK = 0.9  # beta: where the search goes on once it has crossed the boundary


@dataclasses.dataclass(frozen=True)
class FAB(Iterative):
  """Fast adaptive boundary attack, targeted (FAB-T) or not.

  The boundary to the target class, or to the nearest of the likeliest wrong classes,
  is taken for the hyperplane that it is to first order. A step goes to it, a little
  further than the shortest way leads, with a bias towards its point nearest to the
  image. Beyond the boundary the search turns back towards the image. Where the gradient
  vanishes it goes on from a random point of the ball.

  Attributes:
    ball: the norm; an example is broken by a perturbation inside.
    steps: in a round.
    targets: number of wrong classes, the likeliest first, or as many as there are: one
      round each; 0 aims at none. (The authors' then look at all wrong classes, this at
      the likeliest `hyperplane.CANDIDATES`.)
    minimal: whether to go on for the smallest norm when one inside the ball is found.
    restarts: rounds, or rounds for each target class: the first from the image, others
      from random points half-way to the edge of the ball.
  """

  ball: norms.Ball
  steps: int = 100
  targets: int = 9
  minimal: bool = False
  restarts: int = 1

  @property
  def stop_norm(self) -> float:
    return 0.0 if self.minimal else self.ball.epsilon

  def num_rounds(self, num_classes: int) -> int:
    return self.restarts * max(min(self.targets, num_classes - 1), 1)

  def start(self, examples: Examples) -> State:
    images = point = examples.images
    if self.restarts > 1:
      again = examples.rounds % self.restarts > 0
      point = select(again, self._halfway(examples), images)
    return {**unfooled(images), "point": point}

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    images, point = examples.images, state["point"]
    value, gradient = self._boundary(classifier, examples, point)
    # The same hyperplane, seen from the image.
    value_at_image = value + tf.reduce_sum(gradient * (images - point), [1, 2, 3])
    ways = hyperplane.shortest_way(
      self.ball,
      tf.concat([point, images], 0),
      tf.concat([gradient, gradient], 0),
      tf.concat([value, value_at_image], 0),
    )
    lengths = tf.split(tf.maximum(self.ball.norm(ways), 1e-8), 2)
    way, way_from_image = tf.split(ways, 2)
    bias = per_example(tf.minimum(lengths[0] / (lengths[0] + lengths[1]), _BIAS))
    point = (1.0 - bias) * (point + _OVERSHOOT * way)
    point += bias * (images + _OVERSHOOT * way_from_image)
    point = tf.clip_by_value(point, 0.0, 1.0)
    point = restarted(norms.is_zero(gradient), self.ball, examples, k, point)
    logits = classifier(point)
    fooled = examples.fooled(logits)
    return {
      **keep_smaller(self.ball, examples, state, point, logits),
      "point": select(fooled, images + _BACK * (point - images), point),
    }

  def _boundary(
    self, classifier: Classifier, examples: Examples, point: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Value and gradient, at the point, of what is 0 at the boundary."""
    if not self.targets:
      near = hyperplane.nearest(self.ball, classifier, examples, point)
      return near.value, near.gradient
    targets = examples.targets(self.restarts)

    def difference(logits: tf.Tensor) -> tf.Tensor:
      chosen = losses.chosen(logits, targets)
      return chosen - losses.chosen(logits, examples.labels)

    _, value, gradient = loss_and_gradient(classifier, point, difference)
    return value, gradient

  def _halfway(self, examples: Examples) -> tf.Tensor:
    shape = examples.images.shape[1:]
    if isinstance(self.ball, norms.LInfinity):
      noise = 2.0 * hashing.uniform(examples.keys, shape) - 1.0
    else:
      noise = hashing.normal(examples.keys, shape)
    length = per_example(0.5 * self.ball.epsilon / self.ball.norm(noise))
    return tf.clip_by_value(examples.images + length * noise, 0.0, 1.0)
