"""Maximisers that share the backward pass with the training of the weights.

They make adversarial images and the gradient of the weights together: the training step
hands them a function that does one pass, forward and backward, and takes what they
return for its gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.compat import keras
from dat_tf.errors import UserError
from dat_tf.objectives.objective import Batch, Evaluated


class Pass(NamedTuple):
  """One pass of a batch through the network, forward and backward.

  Attributes:
    loss: scalar, sum over the batch.
    evaluated: what the objective made of it.
    gradients: of `loss`, by the trainable variables, up to a factor.
    slope: of `loss`, by what was asked for, up to the same factor; else None.
  """

  loss: tf.Tensor
  evaluated: Evaluated
  gradients: list[tf.Tensor]
  slope: tf.Tensor = None


# differentiate(batch, adversarial, classifier=, slope_by=): the objective's gradient by
# the weights and by slope_by(), once the objective has run `classifier`.
Differentiate = Callable[..., Pass]


class Interleaved:
  """A maximiser with a training pass of its own."""

  def train(self, differentiate: Differentiate, batch: Batch) -> Pass:
    """The loss and the gradients of this batch's step."""
    raise NotImplementedError


class Free(Interleaved):
  """Adversarial training for "free": one pass moves weights and perturbation.

      g     = grad by delta of loss(f(x + delta), y), from the pass that trains
      delta <- project(delta + step_size * steepest(g))

  delta stays from step to step, also from one batch to the next, as long as training
  goes on; it is not in checkpoints. Each batch is to be trained on m times in a row:
  `replayed` makes such data, of which an epoch then has m times the steps, so that 1/m
  of the usual number of epochs costs as much as clean training. (delta is kept within
  [0, 1] - x too, so that the next batch begins with what the last images had room for;
  the authors' program cuts off x + delta alone.)

  Shafahi et al., "Adversarial training for free!", NeurIPS 2019.
  """

  def __init__(
    self,
    ball: norms.Ball,
    batch_shape: Sequence[int],
    step_size: Optional[float] = None,
  ):
    """Makes a perturbation of zeros; under a strategy, in its scope.

    Args:
      ball: the allowed perturbations.
      batch_shape: (B, H, W, C), B the images of one replica.
      step_size: length of a step in the ball's norm, pixel units; epsilon unless given.
    """
    self._ball = ball
    self._step_size = ball.epsilon if step_size is None else step_size
    self._delta = tf.Variable(
      tf.zeros(batch_shape),
      trainable=False,
      # Each replica has its own.
      synchronization=tf.VariableSynchronization.ON_READ,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
      name="free_perturbation",
    )

  def train(self, differentiate: Differentiate, batch: Batch) -> Pass:
    adversarial = self._ball.project(batch.images, batch.images + self._delta)
    adversarial = norms.checked(self._ball, batch.images, adversarial)
    result = differentiate(batch, adversarial, slope_by=lambda: adversarial)
    slope = norms.never_zero(result.slope, batch.keys, batch.step)
    moved = norms.ascend(self._ball, batch.images, adversarial, slope, self._step_size)
    self._delta.assign(moved - batch.images)
    return result


def replayed(dataset: tf.data.Dataset, replays: int) -> tf.data.Dataset:
  """Each of a dataset's batches `replays` times in a row."""
  if replays == 1:
    return dataset
  return dataset.flat_map(
    lambda *batch: tf.data.Dataset.from_tensors(
      batch[0] if len(batch) == 1 else batch
    ).repeat(replays)
  )


class YOPO(Interleaved):
  """YOPO-m-n: m full passes, and n steps of the attack through the first layer in each.

  With f = g(f0(x)), f0 ending at the first layer with weights:

      p = grad by z of loss(g(z), y) at z = f0(x + delta)               a full pass
      delta <- project(delta + step_size * steepest(grad by delta of H))    n times
      H = p . f0(x + delta), p constant, the Hamiltonian of the first layer

  m times over, from a random start. The weights' gradient is the mean over the m full
  passes, each at the images that it starts from; the first layer's has also the mean of
  H's, at the images that each pass ends with. So the m-th pass starts from m - 1 rounds
  of the attack, and the last round reaches the first layer alone.

  Zhang et al., "You only propagate once: accelerating adversarial training via maximal
  principle", NeurIPS 2019, as their program has it, which sums where this takes the
  mean, divides the learning rate by m, and gives the first layer its own optimizer.
  """

  def __init__(
    self,
    classifier: keras.Model,
    ball: norms.Ball,
    step_size: float,
    passes: int = 5,
    inner_steps: int = 3,
  ):
    """Splits the classifier.

    Args:
      classifier: the Keras model that is trained.
      ball: the allowed perturbations.
      step_size: length of a step in the ball's norm, pixel units, greater than 0.
      passes: m, full passes a step; 5 is theirs. With 1 the layers above the first
        see no image but the random starts.
      inner_steps: n, steps of the attack a pass, at least 1; 3 is theirs.

    Raises:
      UserError: the classifier has no first layer to split at.
    """
    self._first, self._rest = split(classifier)
    self._classifier = classifier
    self._ball, self._step_size = ball, step_size
    self._passes, self._inner_steps = passes, inner_steps

  def train(self, differentiate: Differentiate, batch: Batch) -> Pass:
    adversarial = self._ball.random_start(batch.keys, batch.images)
    results, gradients = [], []
    for _ in range(self._passes):
      adversarial = norms.checked(self._ball, batch.images, adversarial)
      recorded = _Recorded(self._classifier, self._first, self._rest)
      result = differentiate(
        batch, adversarial, classifier=recorded, slope_by=lambda r=recorded: r.features
      )
      results.append(result)
      # Where clean images go first, those that are attacked come last.
      p = tf.stop_gradient(result.slope[-tf.shape(adversarial)[0] :])
      for _ in range(self._inner_steps):
        adversarial = self._climb(batch.images, adversarial, p)
      gradients += [result.gradients, self._of_first_layer(adversarial, p)]
    loss = tf.add_n([result.loss for result in results]) / self._passes
    return Pass(
      loss,
      results[-1].evaluated,
      [tf.add_n(list(parts)) / self._passes for parts in zip(*gradients)],
    )

  def _climb(self, images: tf.Tensor, moved: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(moved)
      hamiltonian = self._hamiltonian(moved, p)
    gradient = tape.gradient(hamiltonian, moved)
    return norms.ascend(self._ball, images, moved, gradient, self._step_size)

  def _of_first_layer(self, moved: tf.Tensor, p: tf.Tensor) -> list[tf.Tensor]:
    """The Hamiltonian's gradient by all weights: 0 but for the first layer's."""
    with tf.GradientTape() as tape:
      hamiltonian = self._hamiltonian(moved, p)
    return tape.gradient(
      hamiltonian,
      self._classifier.trainable_variables,
      unconnected_gradients="zero",
    )

  def _hamiltonian(self, images: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(p * self._first(images, training=False))


@dataclasses.dataclass
class _Recorded:
  """A split classifier that keeps the features of its last training pass."""

  classifier: keras.Model
  first: keras.Model
  rest: keras.Model
  features: Any = None

  @property
  def trainable_variables(self) -> list[tf.Variable]:
    return self.classifier.trainable_variables

  def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
    features = self.first(images, training=training)
    if training:
      self.features = features
    return self.rest(features, training=training)


def split(classifier: keras.Model) -> tuple[keras.Model, keras.Model]:
  """Two models, which share the classifier's layers: up to its first weights, and on.

  Raises:
    UserError: it is no graph of layers, all layers with weights are in a network inside
      the network, or the image reaches later layers by another way too.
  """
  if not classifier.inputs:
    raise _unsplittable(classifier, "it is no graph of layers")
  for layer in classifier.layers:
    if not layer.trainable_weights:
      continue
    if isinstance(layer, keras.Model):
      raise _unsplittable(
        classifier, f"its first weights are inside the network {layer.name}"
      )
    try:
      first = keras.Model(classifier.inputs, layer.output)
      return first, keras.Model(layer.output, classifier.outputs[0])
    except (AttributeError, ValueError):
      raise _unsplittable(
        classifier, f"the image also passes by its first layer {layer.name}"
      ) from None
  raise _unsplittable(classifier, "it has no layer with weights")


def _unsplittable(classifier: keras.Model, reason: str) -> UserError:
  return UserError(
    f"YOPO cannot split the network {classifier.name}: {reason}; choose a network such "
    "as preact_resnet18, or PGD."
  )
