"""A network as an attack meets it: in inference mode, folded, in any precision.

An attack needs the logits and the gradient with respect to the images, and no weight's
gradient. Whatever of the network stays the same from one of its steps to the next is
therefore computed once:

    view = inference_view(network)       # how, for good
    classifier = view()                  # with the weights of this moment
    logits = classifier(images)          # as often as is wanted

In inference mode batch-norm is y = s x + t by channel, with s = gamma / sqrt(variance +
epsilon) and t = beta - s mean. Behind a convolution or a dense layer, W x + b, it
becomes part of that layer, (s W) x + (s b + t), also when averages over places lie
between (Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", CVPR 2018, section 3.2). Elsewhere it stays, as one
multiplication and one addition.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from typing import Any, Callable, Optional

import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.compat import keras
from dat_tf.models.graph import NoGraphError, follow

layers = keras.layers
_LOG = logging.getLogger(__name__)

Classifier = Callable[[tf.Tensor], tf.Tensor]

# Layers that take any precision, and that have no weights.
_STATELESS = {
  layers.Activation,
  layers.Add,
  layers.AveragePooling2D,
  layers.Concatenate,
  layers.ELU,
  layers.Flatten,
  layers.GlobalAveragePooling2D,
  layers.GlobalMaxPooling2D,
  layers.LeakyReLU,
  layers.MaxPooling2D,
  layers.ReLU,
  layers.Reshape,
  layers.Softmax,
  layers.ZeroPadding2D,
}
# What is the same before as behind y = s x + t.
_AVERAGES = {layers.AveragePooling2D, layers.GlobalAveragePooling2D}
_PIXELS = {layers.Normalization, layers.Rescaling}
_PRODUCTS = {layers.Conv2D, layers.Dense}
# Layers that do nothing in inference mode.
_NOTHING = {
  layers.Dropout,
  layers.GaussianDropout,
  layers.GaussianNoise,
  layers.SpatialDropout2D,
}


class NoViewError(ValueError):
  """The network has no view; the text names the layer that is to blame."""


@dataclasses.dataclass
class _Step:
  """One layer of a network.

  Attributes:
    layer: whose function it is.
    inputs: numbers of the tensors that go in; the images are number 0.
    output: number of the tensor that comes out.
    norm: the batch-norm that became part of it.
  """

  layer: Any
  inputs: list[int]
  output: int
  norm: Any = None

  def weights(self) -> list[tf.Tensor]:
    """What the layer multiplies with and what it adds, or nothing; float32."""
    layer = self.layer
    if type(layer) is layers.BatchNormalization:
      return _scale_and_shift(layer)
    if type(layer) not in _PRODUCTS:
      return []
    kernel = tf.convert_to_tensor(layer.kernel)
    bias = [tf.convert_to_tensor(layer.bias)] if layer.use_bias else []
    if self.norm is None:
      return [kernel, *bias]
    scale, shift = _scale_and_shift(self.norm)
    return [kernel * scale, bias[0] * scale + shift if bias else shift]

  def __call__(self, weights: list[tf.Tensor], inputs: list[tf.Tensor]) -> tf.Tensor:
    layer = self.layer
    if not weights:
      return layer.call(inputs if len(inputs) > 1 else inputs[0])
    (x,), factor = inputs, weights[0]
    if type(layer) is layers.BatchNormalization:
      return x * factor + weights[1]
    if type(layer) is layers.Conv2D:
      x = _convolution(layer, x, factor)
    else:
      x = tf.tensordot(x, factor, 1)
    for bias in weights[1:]:
      x = tf.nn.bias_add(x, bias)
    return layer.activation(x) if layer.activation else x


def attacked_view(
  model: keras.Model, precision: str, *, training: bool
) -> Callable[[], Classifier]:
  """How an attack in training meets a network.

  Args:
    model: a Keras model, images [B, H, W, C] -> logits [B, classes].
    precision: `float32` or `bfloat16`.
    training: whether batch-norm is in training mode.

  Returns:
    As `inference_view`. In training mode, or where the network has no view, it is the
    network as it is; the reason is logged.

  Raises:
    UserError: no such precision; or it is to be bfloat16, and the network has no view.
  """
  if precision not in ("float32", "bfloat16"):
    raise UserError(
      f"A network is attacked in float32 or bfloat16, not in {precision!r} "
      "(`attack_precision`): choose one of them."
    )
  if not training:
    try:
      return inference_view(model, tf.as_dtype(precision))
    except NoViewError as error:
      reason = str(error)
  else:
    reason = "batch-norm is in training mode"
  if precision != "float32":
    raise UserError(
      f"The network cannot be attacked in {precision}: {reason}. Choose float32 "
      "(`attack_precision`)."
    )
  _LOG.info("The attack runs the network as it is: %s.", reason)
  return lambda: lambda images: model(images, training=training)


def inference_view(
  model: keras.Model, dtype: tf.DType = tf.float32
) -> Callable[[], Classifier]:
  """How to see a network in inference mode.

  Args:
    model: a functional Keras model, images [B, H, W, C] -> logits [B, classes].
    dtype: that of weights and activations. What is done with the pixels before the
      first convolution, and the last dense layer, stay in float32.

  Returns:
    A function that reads the weights, and gives images -> logits, both float32, by the
    weights that it read: the same logits as `model(images, training=False)`, up to
    rounding. It is to be called where the weights may be read, such as in a training
    step; its result may be called within the same graph.

  Raises:
    NoViewError: the model is no graph of layers, or one is of a kind that is not known
      here, or is set up in an unusual way.
  """
  steps, last = _folded(*_steps(model))

  def view() -> Classifier:
    weights = {step.output: step.weights() for step in steps}
    for step in steps:
      if not _is_exact(step, last):
        weights[step.output] = [tf.cast(w, dtype) for w in weights[step.output]]

    def classifier(images: tf.Tensor) -> tf.Tensor:
      known = {0: images}
      for step in steps:
        kind = tf.float32 if _is_exact(step, last) else dtype
        inputs = [tf.cast(known[number], kind) for number in step.inputs]
        known[step.output] = step(weights[step.output], inputs)
      return tf.cast(known[last], tf.float32)

    return classifier

  return view


def _convolution(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
  """A layer's convolution, with a faster gradient if there is one input channel.

  TensorFlow's kernels fill up the single channel of that gradient to a whole vector of
  the processor.
  """
  size = layer.kernel_size
  is_plain = layer.padding == "same" and layer.strides == layer.dilation_rate == (1, 1)
  is_plain &= size[0] % 2 == size[1] % 2 == 1 and x.shape[1:].is_fully_defined()
  if not (is_plain and kernel.shape[2] == 1):
    return layer.convolution_op(x, kernel)

  @tf.custom_gradient
  def convolved(
    x: tf.Tensor, kernel: tf.Tensor
  ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
      of_kernel = tf.raw_ops.Conv2DBackpropFilter(
        input=x,
        filter_sizes=kernel.shape,
        out_backprop=upstream,
        strides=[1, 1, 1, 1],
        padding="SAME",
      )
      return _input_gradient(kernel, upstream), of_kernel

    return tf.nn.conv2d(x, kernel, 1, "SAME"), gradients

  return convolved(x, kernel)


def _input_gradient(kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
  """That of a "same" convolution with stride 1 of one channel, by one matrix product.

  Args:
    kernel: [I, J, 1, F], I and J odd.
    upstream: [B, H, W, F], the gradient with respect to what comes out.

  Returns:
    [B, H, W, 1].
  """
  rows, columns, _, filters = kernel.shape
  height, width = upstream.shape[1:3]
  # What each output owes to the input at each place of the window around it.
  parts = tf.matmul(
    tf.reshape(kernel, [-1, filters]),
    tf.reshape(upstream, [-1, filters]),
    transpose_b=True,
  )
  parts = tf.cast(tf.reshape(parts, [rows, columns, -1, height, width]), tf.float32)
  moved = [
    tf.pad(parts[i, j], [[0, 0], [i, rows - 1 - i], [j, columns - 1 - j]])
    for i in range(rows)
    for j in range(columns)
  ]
  top, left = rows // 2, columns // 2
  total = tf.add_n(moved)[:, top : top + height, left : left + width, None]
  return tf.cast(total, upstream.dtype)


def _is_exact(step: _Step, last: int) -> bool:
  """Whether a layer stays in float32."""
  kind = type(step.layer)
  return kind in _PIXELS or (step.output == last and kind is layers.Dense)


def _scale_and_shift(layer: Any) -> list[tf.Tensor]:
  """Batch-norm in inference mode: s and t of s x + t, by channel."""
  scale = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
  scale = scale * layer.gamma if layer.scale else scale
  shift = -scale * layer.moving_mean
  return [scale, shift + layer.beta if layer.center else shift]


def _folded(steps: list[_Step], last: int) -> tuple[list[_Step], int]:
  """Batch-norm becomes part of the layer before, where nothing else sees that one."""
  made_by = {step.output: step for step in steps}
  uses = collections.Counter([last, *(x for step in steps for x in step.inputs)])
  instead: dict[int, int] = {}
  kept = []
  for step in steps:
    step.inputs = [instead.get(number, number) for number in step.inputs]
    product = None
    if type(step.layer) is layers.BatchNormalization:
      product = _product_before(step.inputs[0], made_by, uses)
    if product is None:
      kept.append(step)
      continue
    product.norm = step.layer
    instead[step.output] = step.inputs[0]
    uses[step.inputs[0]] = uses[step.output]
  return kept, instead.get(last, last)


def _product_before(
  number: int, made_by: dict[int, _Step], uses: collections.Counter[int]
) -> Optional[_Step]:
  """The layer that can take over what is done with a tensor by channel."""
  while number in made_by and uses[number] == 1:
    step = made_by[number]
    if type(step.layer) in _PRODUCTS:
      is_linear = step.layer.activation in (None, keras.activations.linear)
      return step if is_linear and step.norm is None else None
    if type(step.layer) not in _AVERAGES:
      return None
    number = step.inputs[0]
  return None


def _steps(model: keras.Model) -> tuple[list[_Step], int]:
  """A network's layers in order, and the number of its output.

  Those of networks inside it are taken too; what does nothing is left out.
  """
  steps: list[_Step] = []

  def add(layer: Any, inputs: list[int]) -> int:
    _check(layer)
    if type(layer) in _NOTHING:
      return inputs[0]
    steps.append(_Step(layer, inputs, len(steps) + 1))
    return len(steps)

  try:
    return steps, follow(model, add)
  except NoGraphError as error:
    raise NoViewError(f"the network {error} is no graph of layers") from None


def _check(layer: Any) -> None:
  kind = type(layer)
  known = _STATELESS | _PIXELS | _PRODUCTS | _NOTHING | {layers.BatchNormalization}
  if kind not in known:
    raise NoViewError(f"the layer {layer.name} is a {kind.__name__}")
  if layer.compute_dtype != "float32":
    raise NoViewError(f"the layer {layer.name} computes in {layer.compute_dtype}")
  if kind is layers.BatchNormalization:
    if list(layer.axis) != [len(layer.input_shape) - 1]:
      raise NoViewError(f"the layer {layer.name} normalizes another axis than channels")
  elif getattr(layer, "data_format", "channels_last") != "channels_last":
    raise NoViewError(f"the layer {layer.name} has its channels first")
