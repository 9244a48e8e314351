"""APGD: projected gradient ascent that chooses its step size itself.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020; for the l1 ball, "Mind the box: l1-APGD for sparse
adversarial attacks on image classifiers", ICML 2021.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, NamedTuple

import numpy as np
import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.attacks.gradient import loss_and_gradient
from dat_tf.attacks.iterative import (
  Bounded,
  Classifier,
  Examples,
  State,
  per_example,
  select,
  unfooled,
)
from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.objectives.losses import cross_entropy

_MOMENTUM = 0.75
_RHO = 0.75  # share of steps that must raise the loss for the step size to stay
_RADII = 3.0, 2.0, 1.0  # of the stages in l1, in units of epsilon


class _Schedule(NamedTuple):
  """What is known beforehand of each step, arrays [num_steps].

  Attributes:
    first: whether the step evaluates the start of a stage.
    last: whether it evaluates the last point of a stage.
    window: at a checkpoint the number of steps since the one before, else 0.
    radius: of the stage, in units of epsilon.
  """

  first: np.ndarray
  last: np.ndarray
  window: np.ndarray
  radius: np.ndarray

  @classmethod
  def of_stage(cls, windows: list[int], steps: int, radius: float) -> _Schedule:
    """A stage evaluates its start and then as many points as it has steps."""
    number = np.arange(steps + 1)
    window = np.zeros(steps + 1, np.int32)
    window[np.cumsum(windows, dtype=np.int32)] = windows
    return cls(
      number == 0, number == steps, window, np.full(steps + 1, radius, np.float32)
    )


@dataclasses.dataclass(frozen=True)
class APGD(Bounded):
  """Auto-PGD, in the linf and the l2 ball.

      z       = project(x_k + step_size * steepest(grad loss))
      x_{k+1} = project(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1}))

  The step size begins at twice epsilon. At checkpoints, ever closer together, it is
  halved, and the search goes on from the best point, if too few steps raised the loss
  since the last one, or none led to a new best.

  Attributes:
    ball: where adversarial images are sought.
    loss: logits [B, classes] and labels [B] -> [B]; if `targets` is not 0 it takes
      target classes [B] as its third argument.
    steps: gradient steps in a round.
    restarts: rounds, or rounds for each target class, each from its own random point.
    targets: number of wrong classes to aim at, the likeliest first, or as many as there
      are; 0 aims at none.
    samples: calls of the classifier whose mean loss is climbed (EOT), for a classifier
      that draws random numbers. What fools it is told by the mean of their logits: of
      many single calls one may always err.

  Raises:
    UserError: a number is not greater than 0, or the ball is not one that the class is
      for.
  """

  ball: norms.Ball
  loss: Callable[..., tf.Tensor] = cross_entropy
  steps: int = 100
  restarts: int = 1
  targets: int = 0
  samples: int = 1

  def __post_init__(self) -> None:
    super().__post_init__()
    kind = apgd_for(self.ball)
    if type(self) is not kind:
      raise UserError(
        f"{type(self).__name__} is not for {type(self.ball).__name__}: use "
        f"{kind.__name__}."
      )

  def num_steps(self, size: int) -> int:
    del size
    return len(self._schedule().first)

  def num_rounds(self, num_classes: int) -> int:
    return self.restarts * max(min(self.targets, num_classes - 1), 1)

  def start(self, examples: Examples) -> State:
    point = self.ball.random_start(examples.keys, examples.images)
    zeros = tf.zeros([tf.shape(point)[0]])
    return {
      **_started(examples.images, point),
      "previous": point,
      "previous_loss": zeros,
      "increases": zeros,
      "halved": tf.cast(zeros, tf.bool),
      "checked_loss": zeros,
    }

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    extra = (examples.targets(self.restarts),) if self.targets else ()
    point = state["point"]
    logits, loss, gradient = loss_and_gradient(
      classifier,
      point,
      lambda logits: self.loss(logits, examples.labels, *extra),
      self.samples,
    )
    first = tf.gather(self._schedule().first, k)
    better = first | (loss > state["best_loss"])
    best = select(better, point, state["best"])
    fooled = examples.fooled(logits)
    found = {
      "best": best,
      "best_gradient": select(better, gradient, state["best_gradient"]),
      "best_loss": tf.where(better, loss, state["best_loss"]),
      "adversarial": select(fooled, point, best),
      "norm": tf.where(fooled, self.ball.norm(point - examples.images), float("inf")),
    }
    return self._move(examples, {**state, **found}, k, gradient, loss)

  def _move(
    self,
    examples: Examples,
    state: State,
    k: tf.Tensor,
    gradient: tf.Tensor,
    loss: tf.Tensor,
  ) -> State:
    """The next point; `gradient` and `loss` are those at the present one."""
    now = _Schedule(*(tf.gather(values, k) for values in self._schedule()))
    point = state["point"]
    raised = tf.cast(~now.first & (loss > state["previous_loss"]), tf.float32)
    increases = state["increases"] + raised
    check = now.window > 0
    window = tf.cast(now.window, tf.float32)
    stalled = ~state["halved"] & (state["checked_loss"] >= state["best_loss"])
    halve = check & ((increases <= _RHO * window) | stalled)
    step_size = tf.where(now.first, 2.0 * self.ball.epsilon, state["step_size"])
    step_size = tf.where(halve, step_size / 2.0, step_size)
    point = select(halve, state["best"], point)
    gradient = select(halve, state["best_gradient"], gradient)

    ball, images = self.ball, examples.images
    steepest = per_example(step_size) * ball.steepest(gradient)
    step = ball.project(images, point + steepest) - point
    momentum = per_example(tf.where(now.first, 1.0, _MOMENTUM))
    step = momentum * step + (1.0 - momentum) * (point - state["previous"])
    return {
      **state,
      "previous": point,
      "previous_loss": loss,
      "point": ball.project(images, point + step),
      "step_size": step_size,
      "increases": tf.where(check, 0.0, increases),
      # The first checkpoint looks at the increases only.
      "halved": now.first | tf.where(check, halve, state["halved"]),
      "checked_loss": tf.where(
        now.first | check, state["best_loss"], state["checked_loss"]
      ),
    }

  def _schedule(self) -> _Schedule:
    steps = self.steps
    windows: list[int] = []
    window = max(int(0.22 * steps), 1)
    while sum(windows) + window <= steps:
      windows.append(window)
      window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return _Schedule.of_stage(windows, steps, radius=1.0)


class SparseAPGD(APGD):
  """Auto-PGD in the l1 ball: without momentum, and a few entries at a time.

  A step moves the largest entries of the gradient only, fewer the sparser the best
  perturbation is. At checkpoints the step size falls, or begins anew from the best
  point once that has become sparser. The search passes through balls of 3 and 2 epsilon
  before it comes to that of epsilon.

  Its attributes are those of `APGD`.
  """

  def start(self, examples: Examples) -> State:
    assert isinstance(self.ball, norms.L1)
    images = examples.images
    # Noise uniform in the ball moves each entry by almost nothing.
    noise = hashing.normal(examples.keys, images.shape[1:])
    zeros = tf.zeros([tf.shape(images)[0]])
    radius = tf.fill([tf.shape(images)[0]], _RADII[0] * self.ball.epsilon)
    point = self.ball.project(images, images + noise, radius)
    return {**_started(images, point), "density": zeros, "moved": zeros}

  def _move(
    self,
    examples: Examples,
    state: State,
    k: tf.Tensor,
    gradient: tf.Tensor,
    loss: tf.Tensor,
  ) -> State:
    del loss
    assert isinstance(self.ball, norms.L1)
    schedule = self._schedule()
    now = _Schedule(*(tf.gather(values, k) for values in schedule))
    images, point = examples.images, state["point"]
    size = images.shape[1:].num_elements()
    moved = tf.math.count_nonzero(state["best"] - images, [1, 2, 3], dtype=tf.float32)
    density = moved / size / 1.5
    radius = now.radius * self.ball.epsilon
    check = now.window > 0
    sparser = check & (moved < 0.95 * state["moved"])
    step_size = tf.where(now.first | sparser, radius, state["step_size"])
    smaller = tf.maximum(step_size / 1.5, radius / 10.0)
    step_size = tf.where(check & ~sparser, smaller, step_size)
    point = select(sparser, state["best"], point)
    gradient = select(sparser, state["best_gradient"], gradient)

    update = now.first | check
    density = tf.where(update, density, state["density"])
    step = per_example(step_size) * self.ball.steepest(gradient, density)
    # The next stage begins where this one was best, in a ball of its own.
    point = select(now.last, state["best"], point + step)
    last = len(schedule.radius) - 1
    radius = tf.gather(schedule.radius, tf.minimum(k + 1, last)) * self.ball.epsilon
    return {
      **state,
      "point": self.ball.project(images, point, radius),
      "step_size": step_size,
      "density": density,
      "moved": tf.where(update, moved, state["moved"]),
    }

  def _schedule(self) -> _Schedule:
    early = math.ceil(0.3 * self.steps)
    stages = []
    for radius, steps in zip(_RADII, (early, early, self.steps - 2 * early)):
      window = max(int(0.04 * steps), 1)
      stages.append(_Schedule.of_stage([window] * (steps // window), steps, radius))
    return _Schedule(*map(np.concatenate, zip(*stages)))


def apgd_for(ball: norms.Ball) -> type[APGD]:
  """The form of APGD that is for a ball."""
  return SparseAPGD if isinstance(ball, norms.L1) else APGD


def _started(images: tf.Tensor, point: tf.Tensor) -> State:
  zeros = tf.zeros([tf.shape(images)[0]])
  return {
    **unfooled(images),
    "point": point,
    "best": point,
    "best_gradient": tf.zeros_like(images),
    "best_loss": zeros,
    "step_size": zeros,
  }
