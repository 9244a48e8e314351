"""Models by name: our own, every network of tf.keras.applications, and a user's.

The help of --model has the names from here, so TensorFlow is imported when a network is
made, not before.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable

from dat_tf import compat
from dat_tf.base.errors import UserError, one_line

if TYPE_CHECKING:
  from dat_tf.compat import keras


@dataclasses.dataclass(frozen=True)
class _Own:
  """A network of this room, whose module is imported when it is made.

  Attributes:
    module: the module's name in this room.
    function: the function's name there; that of the module unless given.
    form: its further arguments.
  """

  module: str
  function: str = ""
  form: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __call__(self, image_shape: Sequence[int], num_classes: int) -> keras.Model:
    module = importlib.import_module(f"dat_tf.models.{self.module}")
    function = getattr(module, self.function or self.module)
    return function(image_shape, num_classes, **self.form)


_OWN = {
  "small_cnn": _Own("small_cnn"),
  "plain_cnn": _Own("plain_cnn"),
  "preact_resnet18": _Own("preact_resnet", "preact_resnet18"),
  "wide_resnet28_10": _Own("wide_resnet"),
  "wide_resnet28_10_swish": _Own("wide_resnet", form={"activation": "swish"}),
  "wide_resnet34_10": _Own("wide_resnet", form={"depth": 34}),
  "wide_resnet34_10_swish": _Own(
    "wide_resnet", form={"depth": 34, "activation": "swish"}
  ),
  "imagenet_resnet18": _Own("resnet", form={"depth": 18}),
  "imagenet_resnet50": _Own("resnet"),
  "denoising_resnet18": _Own("resnet", form={"depth": 18, "denoising": True}),
  "denoising_resnet50": _Own("resnet", form={"denoising": True}),
  "vit_small16": _Own("vit", "vit_small"),
}

# The names that the help of --model lists.
OWN_NAMES = tuple(_OWN)


@functools.cache
def _applications() -> dict[str, Callable[..., keras.Model]]:
  """The functions of tf.keras.applications by their names."""
  functions = vars(compat.keras.applications).items()
  return {name: value for name, value in functions if inspect.isfunction(value)}


def make_model(
  name: str,
  image_shape: Sequence[int],
  num_classes: int,
  *,
  precision: str = "float32",
) -> keras.Model:
  """A new, randomly initialised classifier.

  Args:
    name: one of our own, such as `small_cnn`; a function of `tf.keras.applications`,
      such as `ResNet50`; or `package.module:function`, a user's own function of
      image_shape and num_classes.
    image_shape: (height, width, channels).
    num_classes: number of logits.
    precision: `float32`, or `mixed_bfloat16`: layers compute in bfloat16, which has
      float32's range, so that no loss need be scaled, and eight bits of significance,
      to which pixels are rounded. Weights and logits are float32.

  Returns:
    Keras model: float32 [B, *image_shape] in [0, 1] -> float32 logits [B, num_classes].
    It consists of Keras' own layers only (a user's is what it is), so that an export
    opens without this package.

  Raises:
    UserError: no such name, or the network does not take such images.
  """
  keras = compat.keras
  before = keras.mixed_precision.global_policy()
  keras.mixed_precision.set_global_policy(precision)
  try:
    model = _make(name, image_shape, num_classes)
  finally:
    keras.mixed_precision.set_global_policy(before)
  if model.output.dtype == "float32":
    return model
  cast = keras.layers.Activation("linear", dtype="float32", name="float32_logits")
  return keras.Model(model.inputs, cast(model.output), name=model.name)


def _make(name: str, image_shape: Sequence[int], num_classes: int) -> keras.Model:
  if ":" in name:
    return _users_own(name, image_shape, num_classes)
  if name in _OWN:
    try:
      return _OWN[name](image_shape, num_classes)
    except ValueError as error:
      raise _unsuitable(name, image_shape, error) from error
  if name in _applications():
    return _application(name, image_shape, num_classes)
  known = [*_OWN, *_applications()]
  nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(_OWN)
  raise UserError(
    f"No model is called {name} (`model`); the nearest names are {', '.join(nearest)}."
  )


def _application(
  name: str, image_shape: Sequence[int], num_classes: int
) -> keras.Model:
  keras = compat.keras
  constructor = _applications()[name]
  preprocess = compat.preprocess_input(constructor)
  inputs = keras.Input(image_shape, name="image")
  x = keras.layers.Rescaling(255.0, name="to_255")(inputs)
  try:
    network = constructor(
      weights=None,
      input_shape=tuple(image_shape),
      classes=num_classes,
      classifier_activation=None,
    )
    return keras.Model(inputs, network(preprocess(x)), name=name.lower())
  except ValueError as error:
    raise _unsuitable(name, image_shape, error) from error


def make_pretrained(name: str, image_shape: Sequence[int]) -> keras.Model:
  """A network of tf.keras.applications with the weights that Keras has for ImageNet.

  Args:
    name: of a function of `tf.keras.applications`.
    image_shape: (height, width, channels).

  Returns:
    Keras model: normalised images -> features, without the last layer; that of VGG,
    which has dense layers before it, is whole.

  Raises:
    UserError: Keras has no such weights, or they cannot be downloaded.
  """
  if name not in _applications():
    raise UserError(
      f"Keras has no weights of ImageNet for the model {name}; choose a network of "
      "tf.keras.applications, such as ResNet50, or begin with a saved model."
    )
  if name.startswith("EfficientNetB"):
    # Keras scales its images by other numbers if it loads weights: see
    # github.com/tensorflow/tensorflow/issues/49930.
    raise UserError(
      f"With the weights of ImageNet {name} is another network than without them; "
      "choose EfficientNetV2B0 or a larger one of its kind."
    )
  try:
    return _applications()[name](
      weights="imagenet",
      # There layers below the last belong to the top as well.
      include_top=name.startswith(("VGG", "MobileNetV3")),
      input_shape=tuple(image_shape),
    )
  except ValueError as error:
    raise _unsuitable(name, image_shape, error) from error
  except Exception as error:  # Keras raises a bare one if it cannot download
    reason = one_line(error)
    raise UserError(f"The weights could not be downloaded: {reason}") from error


def _users_own(name: str, image_shape: Sequence[int], num_classes: int) -> keras.Model:
  module, _, function = name.partition(":")
  try:
    make = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise UserError(
      f"The model {name} cannot be had ({error}): give package.module:function "
      "(`model`), and have the package on PYTHONPATH."
    ) from error
  model = make(tuple(image_shape), num_classes)
  shapes = [getattr(model, end, None) for end in ("input_shape", "output_shape")]
  expected = [(None, *image_shape), (None, num_classes)]
  if not isinstance(model, compat.keras.Model) or shapes != expected:
    raise UserError(
      f"The function {name} (`model`) must return a Keras model from {expected[0]} to "
      f"{expected[1]}; it returned {type(model).__name__}, from {shapes[0]} to "
      f"{shapes[1]}."
    )
  return model


def _unsuitable(name: str, image_shape: Sequence[int], error: Exception) -> UserError:
  return UserError(
    f"The model {name} (`model`) does not take images of shape "
    f"{tuple(image_shape)}: {error}"
  )
