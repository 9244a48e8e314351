"""Attacks that are made of equal steps, so that a batch may hold each at another step.

An evaluation swaps an example that is broken for one that waits, in the middle of an
attack (`dat_tf.evaluation.robustness`). So an attack keeps all that it knows of an
example in a row of its state, and each row has its own step number. In one shot:

    attack = OneShot(APGD(LInfinity(8 / 255), dlr))
    adversarial = attack(classifier, images, labels, keys)
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple, Optional

import tensorflow as tf

from dat_tf.attacks import losses, norms
from dat_tf.base import hashing
from dat_tf.objectives.objective import Classifier

# At least "adversarial", float32 [B, H, W, C], the best image so far; "norm", float32
# [B], that of its perturbation, infinity until it fools the classifier; and "k", int32
# [B], the number of the next step.
State = dict[str, tf.Tensor]


class Examples(NamedTuple):
  """What an attack is given of each example.

  Attributes:
    images: float32 [B, H, W, C] in [0, 1].
    labels: int32 [B].
    keys: uint32 [B, 2], a random stream of this example in this round.
    logits: float32 [B, classes], of the images.
    rounds: int32 [B], which of the attack's rounds this is, from 0.
  """

  images: tf.Tensor
  labels: tf.Tensor
  keys: tf.Tensor
  logits: tf.Tensor
  rounds: tf.Tensor

  @property
  def size(self) -> int:
    """Pixel values of an image."""
    return self.images.shape[1:].num_elements()

  def step_keys(self, step: tf.Tensor, stream: int = 0) -> tf.Tensor:
    """Streams of a step of each example, uint32 [B, 2]; step: int32 [B]."""
    return hashing.stream_keys(stream, step, self.keys[:, 0], self.keys[:, 1])

  def targets(self, rounds_per_class: int = 1) -> tf.Tensor:
    """The class that a round aims at, the likeliest wrong one first; int32 [B]."""
    order = tf.argsort(
      losses.others(self.logits, self.labels), axis=1, direction="DESCENDING"
    )
    return tf.gather(order, self.rounds // rounds_per_class, batch_dims=1)

  def fooled(self, logits: tf.Tensor) -> tf.Tensor:
    """Whether the largest logit is not the label's, or one is no number; bool [B]."""
    largest = tf.argmax(logits, axis=1, output_type=self.labels.dtype)
    numbers = tf.reduce_all(tf.math.is_finite(logits), axis=1)
    return (largest != self.labels) | ~numbers


class Iterative:
  """An attack as `evaluation.Evaluator` runs it; base of those in this package.

  Attributes:
    ball: what counts as an adversarial image, and the norm.
    steps: number of steps of a round.
    stop_norm: a round ends once `norm` is at most this.
  """

  ball: norms.Ball
  steps: Any

  def __post_init__(self) -> None:
    """Raises UserError if a number that must be greater than 0 is not."""
    positive = ("steps", "restarts", "samples", "step_size", "weights")
    given = {name: getattr(self, name, None) for name in positive}
    norms.check_positive(**{name: x for name, x in given.items() if x is not None})

  @property
  def stop_norm(self) -> float:
    raise NotImplementedError

  def num_rounds(self, num_classes: int) -> int:
    """Restarts and target classes: rounds for an example that withstands them all."""
    del num_classes
    return 1

  def num_steps(self, size: int) -> int:
    """How often `step` is called in a round, for images of so many pixel values."""
    del size
    return self.steps

  def start(self, examples: Examples) -> State:
    """The state before the first step."""
    raise NotImplementedError

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    """One step; k: int32 [B], the number of each example's step, from 0.

    `state` is without "k": the next step is k + 1, unless the step gives a "k" of its
    own, having done more than one.
    """
    raise NotImplementedError


class Bounded(Iterative):
  """Looks for an adversarial image anywhere in the ball."""

  @property
  def stop_norm(self) -> float:
    return norms.with_tolerance(self.ball.epsilon)


class Smallest(Iterative):
  """Looks for the adversarial image that is nearest."""

  @property
  def stop_norm(self) -> float:
    return 0.0

  def num_steps(self, size: int) -> int:
    del size
    return self.steps + 1  # the last one looks at the last point


def ended(attack: Iterative, norm: Any, k: Any, size: int) -> Any:
  """Whether a round is over: bool [B], of a state's "norm" and "k".

  Args:
    attack: whose round it is.
    norm: float [B].
    k: int [B].
    size: pixel values of an image.
  """
  return (norm <= attack.stop_norm) | (k >= attack.num_steps(size))


def advanced(
  attack: Iterative, classifier: Classifier, examples: Examples, state: State
) -> State:
  """One step of an attack; what it found in a round that has ended stays."""
  over = ended(attack, state["norm"], state["k"], examples.size)
  k = tf.minimum(state["k"], attack.num_steps(examples.size) - 1)
  own = {name: value for name, value in state.items() if name != "k"}
  after = attack.step(classifier, examples, own, k)
  return {
    "k": k + 1,
    **after,
    "norm": tf.where(over, state["norm"], after["norm"]),
    "adversarial": select(over, state["adversarial"], after["adversarial"]),
  }


@dataclasses.dataclass(frozen=True)
class OneShot:
  """An iterative attack as the plain call that training makes."""

  attack: Any

  def __call__(
    self,
    classifier: Classifier,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Optional[Callable[..., tf.Tensor]] = None,
  ) -> tf.Tensor:
    """Adversarial images; of several rounds, from the first that fools the classifier.

    Args:
      classifier: any callable from images [B, H, W, C] to logits [B, classes].
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], or [B, classes], of which the likeliest counts.
      keys: uint32 [B, 2], one random stream an example (`hashing.stream_keys`).
      loss: what the attack climbs, if it climbs one, instead of its own.

    Returns:
      float32 [B, H, W, C] in [0, 1]: the best images that the attack knows, whether or
      not they fool the classifier.
    """
    attack = (
      self.attack if loss is None else dataclasses.replace(self.attack, loss=loss)
    )
    labels = tf.convert_to_tensor(labels)
    labels = labels if labels.shape.rank == 1 else tf.argmax(labels, axis=1)
    labels, logits = tf.cast(labels, tf.int32), classifier(images)
    best: State = {}
    for number in range(attack.num_rounds(logits.shape[1])):
      examples = Examples(
        images,
        labels,
        hashing.stream_keys(number, keys[:, 0], keys[:, 1]),
        logits,
        tf.fill(tf.shape(labels), number),
      )
      state = run(attack, classifier, examples, attack.start(examples))
      found = {name: state[name] for name in ("adversarial", "norm")}
      if best:
        keep = (best["norm"] <= attack.stop_norm) | (best["norm"] <= found["norm"])
        found = {name: select(keep, best[name], found[name]) for name in found}
      best = found
    return best["adversarial"]


def run(
  attack: Iterative,
  classifier: Classifier,
  examples: Examples,
  state: State,
  steps: Optional[tf.Tensor] = None,
) -> State:
  """Some steps in a row.

  Args:
    attack: what makes the steps.
    classifier: from images to logits.
    examples: what is attacked.
    state: the attack's.
    steps: int32 [], how many; all unless given.
  """
  steps = tf.constant(attack.num_steps(examples.size)) if steps is None else steps
  return tf.while_loop(
    lambda step, _: step < steps,
    lambda step, before: (
      step + 1,
      advanced(attack, classifier, examples, before),
    ),
    (tf.constant(0), state),
    parallel_iterations=1,
  )[1]


def select(condition: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
  """Rows of x where the condition, bool [B], holds, else of y."""
  shape = tf.concat([tf.shape(condition), tf.ones([tf.rank(x) - 1], tf.int32)], 0)
  return tf.where(tf.reshape(condition, shape), x, y)


def per_example(x: tf.Tensor) -> tf.Tensor:
  """[B] -> [B, 1, 1, 1]."""
  return x[:, None, None, None]


def keep_smaller(
  ball: norms.Ball,
  examples: Examples,
  state: State,
  moved: tf.Tensor,
  logits: tf.Tensor,
) -> State:
  """The result in `state`, or `moved` where it fools with a smaller perturbation."""
  norm = ball.norm(moved - examples.images)
  better = examples.fooled(logits) & (norm < state["norm"])
  return {
    "adversarial": select(better, moved, state["adversarial"]),
    "norm": tf.where(better, norm, state["norm"]),
  }


def restarted(
  where: tf.Tensor, ball: norms.Ball, examples: Examples, k: tf.Tensor, point: tf.Tensor
) -> tf.Tensor:
  """`point`, but a random point of the ball where an attack has lost its way.

  Args:
    where: bool [B], such as where the gradient is zero.
    ball: the allowed perturbations.
    examples: what is attacked.
    k: int32 [B], the step, on which the random point depends.
    point: float32 [B, H, W, C].
  """
  return tf.cond(
    tf.reduce_any(where),
    lambda: select(
      where, ball.random_start(examples.step_keys(k, stream=4), examples.images), point
    ),
    lambda: point,
  )


def unfooled(images: tf.Tensor) -> State:
  """The state of all attacks before the first step, when nothing is found."""
  count = tf.shape(images)[:1]
  return {
    "adversarial": images,
    "norm": tf.fill(count, float("inf")),
    "k": tf.zeros(count, tf.int32),
  }
