"""YOPO: few passes through the whole network, many through its first layer."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.attacks.passes import MinMax, Pass, TrainingPass
from dat_tf.attacks.pgd import PGD
from dat_tf.base.errors import UserError
from dat_tf.compat import keras
from dat_tf.objectives.objective import Batch


class YOPO(TrainingPass):
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
    *,
    passes: int = 5,
    inner_steps: int = 3,
  ):
    """Splits the classifier.

    Args:
      classifier: the Keras model that is trained.
      ball: the allowed perturbations.
      step_size: length of a step in the ball's norm, pixel units, greater than 0.
      passes: m, full passes a step; the paper uses 5. With 1 the layers above the first
        see no image but the random starts.
      inner_steps: n, steps of the attack a pass, at least 1; the paper uses 3.

    Raises:
      UserError: the classifier has no first layer to split at, or a number is not
        greater than 0.
    """
    norms.check_positive(passes=passes)
    self._first, self._rest = split(classifier)
    self._classifier = classifier
    self._inner = PGD(ball, step_size, inner_steps)
    self._passes = passes

  def __call__(self, batch: Batch, min_max: MinMax) -> Pass:
    ball = self._inner.ball
    adversarial = ball.random_start(batch.keys, batch.images)
    done, gradients = [], []
    for _ in range(self._passes):
      adversarial = norms.checked(ball, batch.images, adversarial)
      recorded = _Recorded(self._classifier, self._first, self._rest)
      result = min_max.differentiate(
        batch, adversarial, recorded, with_respect_to=recorded.last_features
      )
      done.append(result)
      # Where clean images go first, those that are attacked come last.
      p = tf.stop_gradient(result.input_gradient[-tf.shape(adversarial)[0] :])
      adversarial = self._inner.climb(
        functools.partial(self._hamiltonian, p),
        batch.images,
        adversarial,
        batch.keys,
      )
      gradients += [result.gradients, self._of_first_layer(p, adversarial)]
    return Pass(
      tf.add_n([each.loss for each in done]) / self._passes,
      done[-1].evaluated,
      [tf.add_n(list(parts)) / self._passes for parts in zip(*gradients)],
    )

  def _of_first_layer(self, p: tf.Tensor, points: tf.Tensor) -> list[tf.Tensor]:
    """The gradient of H with respect to all weights: 0 but for the first layer's."""
    with tf.GradientTape() as tape:
      hamiltonian = self._hamiltonian(p, points)
    return tape.gradient(
      hamiltonian,
      self._classifier.trainable_variables,
      unconnected_gradients="zero",
    )

  def _hamiltonian(self, p: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(p * self._first(points, training=False))


@dataclasses.dataclass
class _Recorded:
  """A split classifier that keeps the features of its last training pass."""

  classifier: keras.Model
  first: keras.Model
  rest: keras.Model
  _features: Any = None

  def last_features(self) -> tf.Tensor:
    return self._features

  @property
  def trainable_variables(self) -> list[tf.Variable]:
    return self.classifier.trainable_variables

  def __call__(self, images: tf.Tensor, *, training: bool = False) -> tf.Tensor:
    features = self.first(images, training=training)
    if training:
      self._features = features
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
