"""Bounds on a network's logits for all images of a box: what certified training needs.

    margins = interval_margins(model, lower, upper, labels)     # IBP
    margins = linear_margins(model, lower, upper, labels)       # CROWN-IBP

They follow a Keras model layer by layer, in inference form. Every layer is one of
three: affine, y = L x + c; rectified, y = max(x, 0); or a maximum over places.
Intervals go forward (Gowal et al., "On the effectiveness of interval bound propagation
for training verifiably robust models", 2018): center and radius of an affine layer's
result are L center + c and |L| radius. Linear bounds of the margins go backward from
the logits to the image, with the intervals as bounds in between (Zhang et al., "Towards
stable and efficient training of verifiably robust neural networks", ICLR 2020).

They hold up to rounding in float32, and suit shallow networks: with every layer they
grow wider.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Protocol

import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.compat import keras
from dat_tf.models.graph import NoGraphError, follow

layers = keras.layers


class Interval(NamedTuple):
  """Tensors of one shape: lower <= x <= upper, element by element."""

  lower: tf.Tensor
  upper: tf.Tensor


class Affine(Protocol):
  """L x + c of a layer; or |L| x, if `absolute`."""

  def __call__(
    self, layer: Any, inputs: list[tf.Tensor], *, absolute: bool
  ) -> tf.Tensor: ...


def _convolution(layer: Any, inputs: list[tf.Tensor], *, absolute: bool) -> tf.Tensor:
  if absolute:
    return layer.convolution_op(inputs[0], tf.abs(layer.kernel))
  y = layer.convolution_op(inputs[0], layer.kernel)
  return y + layer.bias if layer.use_bias else y


def _dense(layer: Any, inputs: list[tf.Tensor], *, absolute: bool) -> tf.Tensor:
  if absolute:
    return tf.tensordot(inputs[0], tf.abs(layer.kernel), 1)
  y = tf.tensordot(inputs[0], layer.kernel, 1)
  return y + layer.bias if layer.use_bias else y


def _batch_norm(layer: Any, inputs: list[tf.Tensor], *, absolute: bool) -> tf.Tensor:
  scale = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
  scale = scale * layer.gamma if layer.scale else scale
  if absolute:
    return tf.abs(scale) * inputs[0]
  y = scale * (inputs[0] - layer.moving_mean)
  return y + layer.beta if layer.center else y


def _rescaling(layer: Any, inputs: list[tf.Tensor], *, absolute: bool) -> tf.Tensor:
  scale = tf.convert_to_tensor(layer.scale, inputs[0].dtype)
  return tf.abs(scale) * inputs[0] if absolute else scale * inputs[0] + layer.offset


def _normalization(layer: Any, inputs: list[tf.Tensor], *, absolute: bool) -> tf.Tensor:
  y = layer(inputs[0])  # its scale is positive
  return y - layer(tf.zeros_like(inputs[0])) if absolute else y


def _positive(layer: Any, inputs: list[tf.Tensor], *, absolute: bool) -> tf.Tensor:
  del absolute  # L has no negative entry, and there is no c
  return layer(inputs[0] if len(inputs) == 1 else inputs)


def _identity(layer: Any, inputs: list[tf.Tensor], *, absolute: bool) -> tf.Tensor:
  del layer, absolute
  return inputs[0]


_AFFINE: dict[type, Affine] = {
  layers.Conv2D: _convolution,
  layers.Dense: _dense,
  layers.BatchNormalization: _batch_norm,
  layers.Rescaling: _rescaling,
  layers.Normalization: _normalization,
  layers.Dropout: _identity,
  **dict.fromkeys(
    [
      layers.Add,
      layers.AveragePooling2D,
      layers.Concatenate,
      layers.Flatten,
      layers.GlobalAveragePooling2D,
      layers.Reshape,
      layers.ZeroPadding2D,
    ],
    _positive,
  ),
}
_MAXIMA = (layers.MaxPooling2D, layers.GlobalMaxPooling2D)


@dataclasses.dataclass(frozen=True)
class _Step:
  """One function of a network: of which tensors, by number, and which it makes.

  Attributes:
    layer: where it comes from.
    inputs: numbers of the tensors that go in.
    output: number of the tensor that comes out.
    affine: L x + c, if it is affine.
  """

  layer: Any
  inputs: list[int]
  output: int
  affine: Any = None

  def __call__(self, inputs: list[Interval]) -> Interval:
    """The interval forward."""
    if self.affine is None:
      apply = self.layer if isinstance(self.layer, _MAXIMA) else tf.nn.relu
      return Interval(apply(inputs[0].lower), apply(inputs[0].upper))
    center = self.affine(
      self.layer, [(x.upper + x.lower) / 2 for x in inputs], absolute=False
    )
    radius = self.affine(
      self.layer, [(x.upper - x.lower) / 2 for x in inputs], absolute=True
    )
    return Interval(center - radius, center + radius)


def check(model: keras.Model) -> None:
  """Raises UserError if a layer of the model has no bounds."""
  _steps(model)


def interval_margins(
  model: keras.Model, lower: tf.Tensor, upper: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
  """Upper bounds of the margins z_k - z_y by intervals (IBP).

  The last layer, if it is dense, is merged with the difference.

  Args:
    model: a Keras model of layers that have bounds, images -> logits.
    lower: float32 [B, H, W, C], the smallest pixels.
    upper: float32 [B, H, W, C], the largest pixels.
    labels: integer [B].

  Returns:
    float32 [B, classes]; 0 at the label.

  Raises:
    UserError: a layer has no bounds.
  """
  steps = _steps(model)
  known = _forward(steps, Interval(lower, upper))
  last = steps[-1]
  logits = known[last.output]
  if not isinstance(last.layer, layers.Dense) or last.affine is None:
    own = [tf.gather(x, labels, axis=1, batch_dims=1)[:, tf.newaxis] for x in logits]
    is_label = tf.one_hot(
      labels, logits.upper.shape[-1], on_value=True, off_value=False
    )
    return tf.where(is_label, 0.0, logits.upper - own[0])
  before = known[last.inputs[0]]
  rows = tf.transpose(last.layer.kernel)  # [classes, features]
  difference = rows - tf.gather(rows, labels)[:, tf.newaxis]
  margins = tf.einsum("bkn,bn->bk", difference, (before.upper + before.lower) / 2)
  margins += tf.einsum(
    "bkn,bn->bk", tf.abs(difference), (before.upper - before.lower) / 2
  )
  if last.layer.use_bias:
    margins += last.layer.bias - tf.gather(last.layer.bias, labels)[:, tf.newaxis]
  return margins


def linear_margins(
  model: keras.Model, lower: tf.Tensor, upper: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
  """Upper bounds of the margins z_k - z_y by CROWN-IBP.

  One linear bound of each margin goes backward through the network. A unit that is
  positive or negative for the whole box is linear; between, max(x, 0) lies below the
  line through its ends, and above x or 0, whichever leaves the smaller area. A maximum
  lies above the input with the greatest lower bound, and below all upper bounds.

  Arguments, result and error are those of `interval_margins`. It takes as much memory
  and time as passes of B times the number of classes.
  """
  steps = _steps(model)
  known = _forward(steps, Interval(lower, upper))
  classes = known[steps[-1].output].upper.shape[-1]
  specification = tf.eye(classes) - tf.one_hot(labels, classes)[:, tf.newaxis]
  # Coefficients [B, classes, ...] of each tensor, and what is added to them.
  coefficients = {steps[-1].output: specification}
  constant = tf.zeros(tf.shape(specification)[:2])
  for step in reversed(steps):
    rows = coefficients.pop(step.output)
    before = [known[number] for number in step.inputs]
    if step.affine is not None:
      parts, added = _through_affine(step, rows, before)
    elif isinstance(step.layer, _MAXIMA):
      parts, added = _through_maximum(step, rows, before[0])
    else:
      parts, added = _through_relu(rows, before[0])
    constant += added
    for number, part in zip(step.inputs, parts):
      coefficients[number] = coefficients.get(number, 0.0) + part
  rows = coefficients[0]
  highest = tf.nn.relu(rows) * upper[:, tf.newaxis]
  highest -= tf.nn.relu(-rows) * lower[:, tf.newaxis]
  return constant + _total(highest)


def _forward(steps: Sequence[_Step], box: Interval) -> dict[int, Interval]:
  """The interval of every tensor; the image is number 0."""
  known = {0: box}
  for step in steps:
    known[step.output] = step([known[number] for number in step.inputs])
  return known


def _through_affine(
  step: _Step, rows: tf.Tensor, before: list[Interval]
) -> tuple[list[tf.Tensor], tf.Tensor]:
  """L^T rows for each input, and rows . c."""
  shapes = [x.lower.shape[1:] for x in before]
  constant = step.affine(
    step.layer, [tf.zeros([1, *shape]) for shape in shapes], absolute=False
  )
  count = tf.shape(rows)[0] * rows.shape[1]
  parts = _transposed(
    lambda inputs: step.affine(step.layer, inputs, absolute=False),
    [tf.zeros([count, *shape]) for shape in shapes],
    rows,
  )
  return parts, _total(rows * constant[:, tf.newaxis])


def _through_maximum(
  step: _Step, rows: tf.Tensor, before: Interval
) -> tuple[list[tf.Tensor], tf.Tensor]:
  # A negative coefficient needs a lower bound of the maximum: the derivative at the
  # lower bounds picks the greatest of them.
  places = tf.repeat(before.lower, rows.shape[1], axis=0)
  parts = _transposed(
    lambda inputs: step.layer(inputs[0]), [places], -tf.nn.relu(-rows)
  )
  highest = step.layer(before.upper)[:, tf.newaxis]
  return parts, _total(tf.nn.relu(rows) * highest)


def _through_relu(
  rows: tf.Tensor, before: Interval
) -> tuple[list[tf.Tensor], tf.Tensor]:
  lower, upper = (x[:, tf.newaxis] for x in before)
  crosses = (lower < 0) & (upper > 0)
  slope = tf.where(crosses, upper / tf.where(crosses, upper - lower, 1.0), 0.0)
  offset = tf.where(crosses, -lower * slope, 0.0)
  slope = tf.where(lower >= 0, 1.0, slope)
  lower_slope = tf.where(upper > -lower, 1.0, 0.0)
  positive, negative = tf.nn.relu(rows), tf.nn.relu(-rows)
  return [positive * slope - negative * lower_slope], _total(positive * offset)


def _transposed(
  function: Callable[[list[tf.Tensor]], tf.Tensor],
  inputs: list[tf.Tensor],
  rows: tf.Tensor,
) -> list[tf.Tensor]:
  """The function's derivative, transposed, times rows [B, classes, ...], by input."""
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(inputs)
    outputs = function(inputs)
  flat = tf.reshape(rows, tf.concat([[-1], tf.shape(rows)[2:]], axis=0))
  return [
    tf.reshape(part, [-1, rows.shape[1], *part.shape[1:]])
    for part in tape.gradient(outputs, inputs, flat)
  ]


def _total(x: tf.Tensor) -> tf.Tensor:
  """[B, classes, ...] -> [B, classes]."""
  return tf.reduce_sum(x, axis=list(range(2, x.shape.rank)))


def _steps(model: keras.Model) -> list[_Step]:
  """The functions of a network in order, those of networks inside it too."""
  steps: list[_Step] = []

  def add(layer: Any, inputs: list[int], affine: Any = None) -> int:
    steps.append(_Step(layer, inputs, len(steps) + 1, affine))
    return len(steps)

  def add_layer(layer: Any, inputs: list[int]) -> int:
    if layer.compute_dtype != "float32":
      raise UserError(
        f"The layer {layer.name} computes in {layer.compute_dtype}, too coarse for "
        "bounds: train without mixed precision."
      )
    activation = getattr(layer, "activation", None)
    function = getattr(activation, "__name__", None)
    if type(layer) in _AFFINE and function in (None, "linear", "relu"):
      if _has_usual_form(layer):
        output = add(layer, inputs, _AFFINE[type(layer)])
        return add(layer, [output]) if function == "relu" else output
    if type(layer) in _MAXIMA or _is_relu(layer, function):
      return add(layer, inputs)
    if isinstance(layer, layers.Activation) and function == "linear":
      return add(layer, inputs, _identity)
    kind = type(layer).__name__ + (f" with {function}" if function else "")
    names = sorted(x.__name__ for x in (*_AFFINE, *_MAXIMA, layers.ReLU))
    raise UserError(
      f"There are no bounds for the layer {layer.name} ({kind}), but for "
      f"{', '.join(names)}: choose a network of those, such as plain_cnn."
    )

  try:
    follow(model, add_layer)
  except NoGraphError as error:
    raise UserError(
      f"There are no bounds for the network {error}, which is no graph of layers: "
      "choose a functional one, such as plain_cnn."
    ) from None
  return steps


def _has_usual_form(layer: Any) -> bool:
  if isinstance(layer, layers.BatchNormalization):
    return list(layer.axis) == [len(layer.input_shape) - 1]
  if isinstance(layer, layers.Normalization):
    return not layer.invert
  return getattr(layer, "data_format", "channels_last") == "channels_last"


def _is_relu(layer: Any, function: Any) -> bool:
  if isinstance(layer, layers.Activation):
    return function == "relu"
  return (
    type(layer) is layers.ReLU
    and layer.max_value is None
    and not layer.negative_slope
    and not layer.threshold
  )
