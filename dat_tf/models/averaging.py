"""Averages of a network's weights over the course of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from dat_tf.compat import keras, local_value


class WeightAverage(tf.Module):
  """A running average of all weights, batch-norm statistics among them.

      average <- d average + (1 - d) weights,    d = min(decay, n / (n + 1))

  at every `every`-th training step from `start` on, n the number counted before. A
  decay below 1 makes it an exponential average, which begins as a plain mean: that of
  Gowal et al., "Uncovering the limits of adversarial training", 2020, with 0.995 at
  every step. With decay 1 all weights count the same: stochastic weight averaging
  (Izmailov et al., UAI 2018), usually once an epoch, after most of the training; Chen
  et al., "Robust overfitting may be mitigated by properly learned smoothening", ICLR
  2021. (Batch-norm statistics are averaged like weights, where Izmailov et al. estimate
  them anew by another pass over the data.)

  Each replica keeps its own; the weights' are alike, those of statistics are not until
  `AdversarialModel.average_statistics`.
  """

  def __init__(
    self,
    classifier: keras.Model,
    decay: float = 0.995,
    start: int = 0,
    every: int = 1,
  ):
    """Makes an average of zeros; under a strategy, in its scope.

    Args:
      classifier: whose weights are averaged.
      decay: in (0, 1].
      start: number of training steps before the first that counts.
      every: steps between two that count, at least 1.
    """
    super().__init__(name="weight_average")
    self._weights = classifier.weights
    self._decay, self._start, self._every = decay, start, every
    self._counted = _own_variable(tf.constant(0, tf.int64), "counted")
    self._averages = [
      _own_variable(tf.zeros(weight.shape, weight.dtype), "average")
      for weight in self._weights
    ]

  @property
  def statistics(self) -> list[tf.Variable]:
    """The averages that differ from replica to replica: those of statistics."""
    return [
      average
      for average, weight in zip(self._averages, self._weights)
      if weight.synchronization == tf.VariableSynchronization.ON_READ
    ]

  def update(self, step: tf.Tensor) -> None:
    """Counts the weights as they are after so many training steps; on each replica."""
    since = tf.cast(step, tf.int64) - 1 - self._start

    def count() -> tf.Tensor:
      number = tf.cast(self._counted, tf.float32)
      decay = tf.minimum(self._decay, number / (number + 1.0))
      self._counted.assign_add(1)
      for average, weight in zip(self._averages, self._weights):
        part = tf.cast(decay, weight.dtype)
        average.assign(part * average + (1.0 - part) * weight)
      return tf.constant(True)

    is_due = (since >= 0) & (since % self._every == 0)
    tf.cond(is_due, count, lambda: tf.constant(False))

  @contextlib.contextmanager
  def applied(self) -> Iterator[None]:
    """While it lasts, the classifier has the average for its weights.

    To be used outside of replicas. All workers must use it together if they do
    something together meanwhile. As long as nothing has been counted the weights stay.
    """
    if not int(local_value(self._counted)):
      yield
      return
    own = [local_value(weight) for weight in self._weights]
    try:
      for weight, average in zip(self._weights, self._averages):
        weight.assign(local_value(average))
      yield
    finally:
      for weight, value in zip(self._weights, own):
        weight.assign(value)


def _own_variable(value: tf.Tensor, name: str) -> tf.Variable:
  """Each replica's own, without communication."""
  return tf.Variable(
    value,
    trainable=False,
    synchronization=tf.VariableSynchronization.ON_READ,
    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    name=name,
  )
