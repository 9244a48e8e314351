"""Smallest l2 perturbations by a penalty: C&W and L-BFGS.

Both minimise |delta|^2 + weight f(x + delta) inside [0, 1]. The weight is searched for:
it is raised tenfold until the minimum fools the classifier, then halved between the
largest that did not and the smallest that did. Where f has no gradient, and the label
still wins, the search goes on from a random point of the ball.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.attacks import losses, norms
from dat_tf.attacks.iterative import (
  Classifier,
  Examples,
  Smallest,
  State,
  keep_smaller,
  per_example,
  restarted,
  select,
  unfooled,
)
from dat_tf.objectives.losses import cross_entropy

_ADAM = 0.9, 0.999, 1e-8


def _first_weight(images: tf.Tensor, weight: float) -> State:
  batch = [tf.shape(images)[0]]
  return {
    "weight": tf.fill(batch, weight),
    "too_small": tf.zeros(batch),
    "enough": tf.fill(batch, float("inf")),
    "fooled": tf.fill(batch, False),
  }


def _next_weight(state: State, renew: tf.Tensor) -> State:
  """The state with the next weight, where a minimum has been found."""
  weight, fooled = state["weight"], state["fooled"]
  too_small = tf.where(fooled, state["too_small"], weight)
  enough = tf.where(fooled, weight, state["enough"])
  middle = (too_small + tf.minimum(enough, 1e30)) / 2.0
  following = {
    "weight": tf.where(tf.math.is_inf(enough), 10.0 * weight, middle),
    "too_small": too_small,
    "enough": enough,
    "fooled": tf.zeros_like(fooled),
  }
  return {
    **state,
    **{name: tf.where(renew, following[name], state[name]) for name in following},
  }


def _to_line(images: tf.Tensor) -> tf.Tensor:
  """What `_from_line` makes images of; the ends of the range lie at infinity."""
  return tf.atanh((2.0 * images - 1.0) * 0.999999)


def _from_line(x: tf.Tensor) -> tf.Tensor:
  return (tf.tanh(x) + 1.0) / 2.0


def _squared_norm(x: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(tf.square(x), [1, 2, 3])


@dataclasses.dataclass(frozen=True)
class CarliniWagner(Smallest):
  """The l2 attack of Carlini & Wagner, "Towards evaluating the robustness", S&P 2017.

  f is the margin by which the label wins, if it does. Pixels are (tanh(w) + 1) / 2, and
  Adam searches for w.

  Attributes:
    ball: an example is broken by a perturbation inside.
    steps: number of Adam's steps for each weight.
    weights: how many are tried.
    learning_rate: Adam's.
    first_weight: the first that is tried.
  """

  ball: norms.L2
  steps: int = 1000
  weights: int = 9
  learning_rate: float = 0.01
  first_weight: float = 1e-3

  def num_steps(self, size: int) -> int:
    del size
    return self.weights * self.steps

  def start(self, examples: Examples) -> State:
    images = examples.images
    zeros = tf.zeros_like(images)
    return {
      **unfooled(images),
      **_first_weight(images, self.first_weight),
      "point": zeros,
      "mean": zeros,
      "square": zeros,
    }

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    images = examples.images
    number = k % self.steps
    begins = number == 0
    state = _next_weight(state, begins & (k > 0))
    point = select(begins, _to_line(images), state["point"])
    mean, square = (
      select(begins, tf.zeros_like(images), state[name]) for name in ("mean", "square")
    )
    moved = _from_line(point)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(moved)
      logits = classifier(moved)
      wins = tf.nn.relu(-losses.margin(logits, examples.labels))
    input_gradient = tape.gradient(wins, moved)
    lost = (wins > 0.0) & norms.is_zero(input_gradient)
    gradient = 2.0 * (moved - images) + per_example(state["weight"]) * input_gradient
    gradient *= (1.0 - tf.square(tf.tanh(point))) / 2.0
    beta_1, beta_2, tiny = _ADAM
    mean = beta_1 * mean + (1.0 - beta_1) * gradient
    square = beta_2 * square + (1.0 - beta_2) * gradient**2
    power = tf.cast(number + 1, tf.float32)
    first = mean / per_example(1.0 - beta_1**power)
    second = square / per_example(1.0 - beta_2**power)
    point -= self.learning_rate * first / (tf.sqrt(second) + tiny)
    elsewhere = restarted(lost, self.ball, examples, k, images)
    return {
      **state,
      **keep_smaller(self.ball, examples, state, moved, logits),
      "fooled": state["fooled"] | examples.fooled(logits),
      "point": select(lost, _to_line(elsewhere), point),
      "mean": mean,
      "square": square,
    }


@dataclasses.dataclass(frozen=True)
class LBFGS(Smallest):
  """The attack of Szegedy et al., "Intriguing properties of neural networks", 2014.

  f is the cross-entropy of the likeliest wrong class. The minimum is sought by L-BFGS
  with backtracking; entries at an end of their range that would leave it stay there.

  Attributes:
    ball: an example is broken by a perturbation inside.
    steps: evaluations for each weight.
    weights: how many are tried.
    first_weight: the first that is tried.
    memory: pairs of steps and gradient differences that L-BFGS keeps.
  """

  ball: norms.L2
  steps: int = 60
  weights: int = 12
  first_weight: float = 1e-2
  memory: int = 5

  def num_steps(self, size: int) -> int:
    del size
    return self.weights * self.steps

  def start(self, examples: Examples) -> State:
    images = examples.images
    zeros = tf.zeros([tf.shape(images)[0]])
    history = tf.repeat(tf.zeros_like(images)[:, None], self.memory, axis=1)
    return {
      **unfooled(images),
      **_first_weight(images, self.first_weight),
      "point": images,
      "value": zeros,
      "gradient": tf.zeros_like(images),
      "trial": images,
      "length": zeros,
      "lost": tf.zeros_like(zeros, tf.bool),
      "moves": history,
      "changes": history,
    }

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    images = examples.images
    begins = k % self.steps == 0
    state = _next_weight(state, begins & (k > 0))
    trial = select(begins, images, state["trial"])
    begins |= state["lost"]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(trial)
      logits = classifier(trial)
      penalty = state["weight"] * cross_entropy(logits, examples.targets())
    input_gradient = tape.gradient(penalty, trial)
    value = _squared_norm(trial - images) + penalty
    gradient = 2.0 * (trial - images) + input_gradient
    move, change = trial - state["point"], gradient - state["gradient"]
    # Armijo's condition: the value falls by a part of what the slope promises.
    promised = tf.reduce_sum(state["gradient"] * move, [1, 2, 3])
    accepted = begins | (value <= state["value"] + 1e-4 * promised)
    curved = ~begins & accepted & (tf.reduce_sum(move * change, [1, 2, 3]) > 1e-12)
    moves, changes = (
      select(
        begins,
        tf.zeros_like(state[name]),
        select(curved, tf.concat([new[:, None], state[name][:, :-1]], 1), state[name]),
      )
      for name, new in (("moves", move), ("changes", change))
    )
    lost = accepted & norms.is_zero(input_gradient) & ~examples.fooled(logits)
    point = select(accepted, trial, state["point"])
    value = tf.where(accepted, value, state["value"])
    gradient = select(accepted, gradient, state["gradient"])
    length = tf.where(accepted, 1.0, state["length"] / 3.0)
    stuck = ((point <= 0.0) & (gradient > 0.0)) | ((point >= 1.0) & (gradient < 0.0))
    free = tf.where(stuck, 0.0, gradient)
    way = tf.where(stuck, 0.0, _newton_way(free, moves, changes))
    trial_after = tf.clip_by_value(point - per_example(length) * way, 0.0, 1.0)
    return {
      **state,
      **keep_smaller(self.ball, examples, state, trial, logits),
      "fooled": state["fooled"] | examples.fooled(logits),
      "point": point,
      "value": value,
      "gradient": gradient,
      "trial": restarted(lost, self.ball, examples, k, trial_after),
      "length": length,
      "lost": lost,
      "moves": moves,
      "changes": changes,
    }


def _newton_way(gradient: tf.Tensor, moves: tf.Tensor, changes: tf.Tensor) -> tf.Tensor:
  """The inverse Hessian that the history tells of, times the gradient.

  The two loops of Nocedal & Wright, "Numerical optimization", algorithm 7.4, for each
  example; where the history is empty, the gradient shortened to at most 0.1.

  Args:
    gradient: [B, H, W, C].
    moves: [B, memory, H, W, C], the latest first, zeros where there are none yet.
    changes: [B, memory, H, W, C], of the gradient.
  """
  products = tf.reduce_sum(moves * changes, [2, 3, 4])
  way, shares = gradient, []
  for index in range(moves.shape[1]):
    share = tf.reduce_sum(moves[:, index] * way, [1, 2, 3])
    share = tf.math.divide_no_nan(share, products[:, index])
    shares.append(share)
    way -= per_example(share) * changes[:, index]
  scale = tf.math.divide_no_nan(products[:, 0], _squared_norm(changes[:, 0]))
  short = 0.1 / tf.maximum(tf.sqrt(_squared_norm(gradient)), 0.1)
  way *= per_example(tf.where(products[:, 0] > 0.0, scale, short))
  for index in reversed(range(moves.shape[1])):
    share = tf.reduce_sum(changes[:, index] * way, [1, 2, 3])
    share = shares[index] - tf.math.divide_no_nan(share, products[:, index])
    way += per_example(share) * moves[:, index]
  return way
