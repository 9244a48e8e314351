"""The graph of a functional Keras model, layer by layer."""

from __future__ import annotations

from typing import Any, Callable

from dat_tf.compat import keras, layer_and_inputs


class NoGraphError(ValueError):
  """A network is no graph of layers; its name is the text."""


def follow(model: keras.Model, add: Callable[[Any, list[int]], int]) -> int:
  """Goes through a network from its input to its output.

  Args:
    model: a functional Keras model with one input and one output.
    add: called for each layer in order, those of networks inside it too, with the
      numbers of the tensors that go in. The model's input is number 0. It returns the
      number of the tensor that comes out.

  Returns:
    The number of the model's output.

  Raises:
    NoGraphError: the model, or one inside it, is a subclass, is of another Keras, or
      has several outputs.
  """

  def through(network: keras.Model, inputs: list[int]) -> int:
    is_graph = isinstance(network, keras.Model) and network.inputs
    if not is_graph or len(network.outputs) != 1:
      raise NoGraphError(network.name)
    numbers = {id(x): number for x, number in zip(network.inputs, inputs)}

    def number_of(tensor: Any) -> int:
      if id(tensor) not in numbers:
        layer, before = layer_and_inputs(tensor)
        go = through if isinstance(layer, keras.Model) else add
        numbers[id(tensor)] = go(layer, [number_of(x) for x in before])
      return numbers[id(tensor)]

    return number_of(network.outputs[0])

  return through(model, [0])
