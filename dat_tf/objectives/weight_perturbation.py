"""Adversarial weight perturbation, around any objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dat_tf.objectives.objective import Batch, Classifier, Evaluated, Objective, Wrapper


@dataclasses.dataclass(frozen=True)
class WeightPerturbation(Wrapper):
  """An objective L at the weights that are, nearby, the worst for it: L(w + v).

      v = gamma |w| / |grad L(w)| grad L(w)     for each tensor w of two or more axes

  AWP: Wu et al., "Adversarial weight perturbation helps robust generalization", NeurIPS
  2020. Biases and batch-norm's scales stay. The images are attacked at w; the gradient
  is that at w + v, and the step is taken from w.

  Each replica moves its own copy of the weights, for the loss of its own images, and
  puts it back: nothing more is sent. It costs one more pass forward and backward, whose
  batch-norm statistics count like the other's.

  Attributes:
    objective: L.
    gamma: greater than 0; the paper uses 0.01 for adversarial training, 0.005 for
      TRADES.
  """

  objective: Objective
  gamma: float = 0.005

  def __call__(
    self, classifier: Classifier, batch: Batch, adversarial: tf.Tensor
  ) -> Evaluated:
    kernels = [
      variable
      for variable in classifier.trainable_variables  # type: ignore[attr-defined]
      if variable.shape.rank > 1
    ]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(kernels)
      losses = self.objective(classifier, batch, adversarial).losses
      loss = tf.reduce_sum(batch.weights * losses)
    gradients = tape.gradient(loss, kernels, unconnected_gradients="zero")
    weights = [tf.identity(kernel) for kernel in kernels]
    _assign(
      kernels,
      [
        weight + self.gamma * tf.norm(weight) * _direction(gradient)
        for weight, gradient in zip(weights, gradients)
      ],
    )
    evaluated = self.objective(classifier, batch, adversarial)
    _assign(kernels, weights)
    return evaluated


def _direction(gradient: tf.Tensor) -> tf.Tensor:
  # Scaled first: a squared gradient may underflow.
  scaled = tf.math.divide_no_nan(gradient, tf.reduce_max(tf.abs(gradient)))
  return tf.math.divide_no_nan(scaled, tf.norm(scaled))


def _assign(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
  """Gives each replica's copies this replica's values, without any communication.

  A plain `assign` would average the values over the replicas.
  """

  def in_cross_replica(strategy: tf.distribute.Strategy, *values: Any) -> None:
    for variable, value in zip(variables, values):
      strategy.extended.update(
        variable, lambda copy, new: copy.assign(new), args=(value,)
      )

  tf.distribute.get_replica_context().merge_call(in_cross_replica, args=values)
