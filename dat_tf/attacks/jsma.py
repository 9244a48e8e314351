"""JSMA: a few pixels, each changed as far as it goes.

Papernot et al., "The limitations of deep learning in adversarial settings", EuroS&P
2016; on logits, as Carlini & Wagner (S&P 2017) found it to work better.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.attacks import losses, norms
from dat_tf.attacks.iterative import Classifier, Examples, State, smaller, unfooled


@dataclasses.dataclass(frozen=True)
class JSMA:
  """The Jacobian saliency map attack.

  A step sets two entries to 1: those that raise the target's logit and lower the sum of
  the others, by the largest product of both derivatives. (The paper looks for the best
  pair, which takes the square of the number of entries; this for the two best entries.)

  Attributes:
    ball: in whose norm the result is measured; a perturbation inside breaks an example.
    steps: at most; two entries each. 39 are a tenth of 28 x 28 pixels, as in the paper.
    targets: number of wrong classes, the likeliest first: one round each.
  """

  ball: norms.Ball
  steps: int = 39
  targets: int = 9

  @property
  def stop_norm(self) -> float:
    return 0.0

  @property
  def num_steps(self) -> int:
    return self.steps + 1  # the last one looks at the last point

  def num_rounds(self, num_classes: int) -> int:
    return min(self.targets, num_classes - 1)

  def start(self, examples: Examples) -> State:
    return {**unfooled(examples.images), "point": examples.images}

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    point, targets = state["point"], examples.targets()
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(point)
      logits = classifier(point)
      target = losses.chosen(logits, targets)
      values = tf.stack([target, tf.reduce_sum(logits, axis=1) - target], axis=1)
    up, down = tf.unstack(tape.batch_jacobian(values, point), axis=1)
    useful = (up > 0.0) & (down < 0.0) & (point < 1.0)
    saliency = tf.where(useful, -up * down, 0.0)
    flat = tf.reshape(saliency, [-1, saliency.shape[1:].num_elements()])
    second = tf.math.top_k(flat, 2).values[:, 1][:, None, None, None]
    moved = tf.where(useful & (saliency >= second), 1.0, point)
    return {
      **smaller(self.ball, examples, state, point, logits),
      "point": moved,
    }
