"""Beginning with another network's weights, and training its layers at other rates."""

from __future__ import annotations

from collections.abc import Iterator

from dat_tf.base.errors import UserError
from dat_tf.compat import keras


def layers_with_weights(model: keras.Model) -> Iterator[keras.layers.Layer]:
  """From the image to the logits; those of a network in the network are among them."""
  for layer in model.layers:
    if isinstance(layer, keras.Model):
      yield from layers_with_weights(layer)
    elif layer.weights:
      yield layer


def copy_weights_by_layer(source: keras.Model, target: keras.Model) -> bool:
  """Gives a network the weights of another one of the same architecture.

  Where the last layer has another shape, or the source ends before it, that of the
  target stays as it is: it is a new head.

  Args:
    source: a Keras model; names of layers and the image's size play no part.
    target: a Keras model, made under any strategy.

  Returns:
    Whether the head is new.

  Raises:
    UserError: the architectures differ.
  """
  theirs, ours = (list(layers_with_weights(model)) for model in (source, target))
  if not len(ours) - 1 <= len(theirs) <= len(ours):
    raise UserError(
      f"{source.name} has {len(theirs)} layers with weights, {target.name} has "
      f"{len(ours)}: source and target must be of one architecture."
    )
  is_new = len(theirs) < len(ours) or _shapes(theirs[-1]) != _shapes(ours[-1])
  number = len(ours) - is_new
  for there, here in zip(theirs[:number], ours[:number]):
    if _shapes(there) != _shapes(here):
      raise UserError(
        f"Layer {there.name} of {source.name} has weights of shapes {_shapes(there)}, "
        f"{here.name} of {target.name} has {_shapes(here)}: source and target "
        "must be of one architecture."
      )
  for there, here in zip(theirs[:number], ours[:number]):
    for value, variable in zip(there.weights, here.weights):
      variable.assign(value)
  return is_new


def _shapes(layer: keras.layers.Layer) -> list[tuple[int, ...]]:
  return [tuple(weight.shape) for weight in layer.weights]


def freeze_backbone(model: keras.Model) -> None:
  """Leaves nothing but the last layer to train; batch-norm then infers."""
  *backbone, _ = layers_with_weights(model)
  for layer in backbone:
    layer.trainable = False


def layer_rate_factors(model: keras.Model, decay: float) -> dict[str, float]:
  """decay^n for the variables of the n-th layer below the last, by their names.

  Raises:
    UserError: variables of different layers have one name.
  """
  factors: dict[str, float] = {}
  for depth, layer in enumerate(reversed(list(layers_with_weights(model)))):
    for variable in layer.trainable_weights:
      if factors.setdefault(variable.name, decay**depth) != decay**depth:
        raise UserError(
          "A rate by layer (`layer_decay`) needs weights of different names, and two "
          f"are called {variable.name}: give the network's layers different names."
        )
  return factors
