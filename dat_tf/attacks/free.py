"""Adversarial training for free: one backward pass for weights and perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.attacks.passes import MinMax, Pass, TrainingPass
from dat_tf.objectives.objective import Batch


class Free(TrainingPass):
  """Adversarial training for "free": one pass moves weights and perturbation.

      g     = grad by delta of loss(f(x + delta), y), from the pass that trains
      delta <- project(delta + step_size * steepest(g))

  delta stays from step to step, also from one batch to the next, as long as training
  goes on; it is not in checkpoints. Each batch is to be trained on m times in a row.
  `data.mixture.replayed` makes such data, of which an epoch has m times the steps, so
  that 1/m of the usual epochs costs as much as clean training. (delta is kept within
  [0, 1] - x too, so that the next batch begins with what the last images had room for;
  the authors' program cuts off x + delta alone.)

  Shafahi et al., "Adversarial training for free!", NeurIPS 2019.
  """

  def __init__(
    self,
    ball: norms.Ball,
    batch_shape: Sequence[int],
    *,
    step_size: Optional[float] = None,
  ):
    """Makes a perturbation of zeros; under a strategy, in its scope.

    Args:
      ball: the allowed perturbations.
      batch_shape: (B, H, W, C), B the images of one replica.
      step_size: length of a step in the ball's norm, pixel units; epsilon unless given.

    Raises:
      UserError: the step size is not greater than 0.
    """
    self._ball = ball
    self._step_size = ball.epsilon if step_size is None else step_size
    norms.check_positive(step_size=self._step_size)
    self._delta = tf.Variable(
      tf.zeros(batch_shape),
      trainable=False,
      # Each replica has its own.
      synchronization=tf.VariableSynchronization.ON_READ,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
      name="free_perturbation",
    )
    self.state = [self._delta]

  def __call__(self, batch: Batch, min_max: MinMax) -> Pass:
    adversarial = self._ball.project(batch.images, batch.images + self._delta)
    adversarial = norms.checked(self._ball, batch.images, adversarial)
    done = min_max.differentiate(
      batch, adversarial, with_respect_to=lambda: adversarial
    )
    gradient = norms.never_zero(done.input_gradient, batch.keys, batch.step)
    moved = norms.ascend(
      self._ball, batch.images, adversarial, gradient, self._step_size
    )
    self._delta.assign(moved - batch.images)
    return done
