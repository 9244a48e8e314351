"""Batch-norm statistics that can be trusted after few steps and on many workers.

Keras' moving averages m <- momentum m + (1 - momentum) batch start at 0 and 1. With the
usual momentum of 0.99 and the few steps that a large batch needs, much of that start is
still in them when the network is attacked or evaluated (45 steps: 64 %). So the
momentum is warmed up, min(momentum, (1 + step) / (10 + step)), as in
tf.train.ExponentialMovingAverage with `num_updates`: after two steps less than 2 % of
the start is left, and at any time the average reaches back over a tenth of the steps so
far, or less.

An average over the last 100 steps also lags behind weights that move fast. An attack in
inference mode then meets another network than the one that is trained, and is weak:
robust accuracy in training looks high, and is not. The networks of this package
therefore average over ten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from dat_tf.compat import keras

MOMENTUM = 0.9  # of the networks of this package


@contextlib.contextmanager
def warmed_up_momentum(model: keras.Model, step: tf.Tensor) -> Iterator[None]:
  """While it lasts, batch-norm layers that are traced use the momentum of `step`.

  The layers' own momentum, and so their configuration, comes back at the end.

  Args:
    model: Keras model, of any nesting.
    step: integer scalar, number of training steps done before this one.
  """
  layers = [layer for layer in model.submodules if _has_momentum(layer)]
  configured = [layer.momentum for layer in layers]
  step = tf.cast(step, tf.float32)
  warm_up = (1.0 + step) / (10.0 + step)
  try:
    for layer, momentum in zip(layers, configured):
      layer.momentum = tf.minimum(momentum, warm_up)
    yield
  finally:
    for layer, momentum in zip(layers, configured):
      layer.momentum = momentum


def largest_momentum(model: keras.Model) -> float:
  """The largest momentum of its batch-norm layers, 0 to 1; 0 if it has none.

  Args:
    model: Keras model, of any nesting.
  """
  layers = filter(_has_momentum, model.submodules)
  return max((float(layer.momentum) for layer in layers), default=0.0)


def _has_momentum(layer: tf.Module) -> bool:
  # Keras has several batch-norm classes without a public one above them.
  return hasattr(layer, "moving_mean") and hasattr(layer, "momentum")


def statistics(model: keras.Model) -> list[tf.Variable]:
  """The variables that each replica keeps for itself, such as moving averages."""
  return [
    variable
    for variable in model.non_trainable_variables
    if variable.synchronization == tf.VariableSynchronization.ON_READ
  ]
