"""Models by name: our own, every network of tf.keras.applications, and a user's."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Sequence
from typing import Callable

import tensorflow as tf

from dat_tf.base.errors import UserError, one_line
from dat_tf.compat import keras, preprocess_input
from dat_tf.models.plain_cnn import plain_cnn
from dat_tf.models.preact_resnet import preact_resnet18
from dat_tf.models.resnet import resnet
from dat_tf.models.small_cnn import small_cnn
from dat_tf.models.vit import vit_small
from dat_tf.models.wide_resnet import wide_resnet

_OWN: dict[str, Callable[[Sequence[int], int], keras.Model]] = {
  "small_cnn": small_cnn,
  "plain_cnn": plain_cnn,
  "preact_resnet18": preact_resnet18,
  "wide_resnet28_10": wide_resnet,
  "wide_resnet28_10_swish": functools.partial(wide_resnet, activation="swish"),
  "wide_resnet34_10": functools.partial(wide_resnet, depth=34),
  "wide_resnet34_10_swish": functools.partial(
    wide_resnet, depth=34, activation="swish"
  ),
  "imagenet_resnet18": functools.partial(resnet, depth=18),
  "imagenet_resnet50": resnet,
  "denoising_resnet18": functools.partial(resnet, depth=18, denoising=True),
  "denoising_resnet50": functools.partial(resnet, denoising=True),
  "vit_small16": vit_small,
}
_APPLICATIONS = {
  name: value
  for name, value in vars(keras.applications).items()
  if inspect.isfunction(value)
}


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
  before = keras.mixed_precision.global_policy()
  keras.mixed_precision.set_global_policy(precision)
  try:
    model = _make(name, image_shape, num_classes)
  finally:
    keras.mixed_precision.set_global_policy(before)
  if model.output.dtype == tf.float32:
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
  if name in _APPLICATIONS:
    return _application(name, image_shape, num_classes)
  known = [*_OWN, *_APPLICATIONS]
  nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(_OWN)
  raise UserError(
    f"No model is called {name} (`model`); the nearest names are {', '.join(nearest)}."
  )


def _application(
  name: str, image_shape: Sequence[int], num_classes: int
) -> keras.Model:
  constructor = _APPLICATIONS[name]
  preprocess = preprocess_input(constructor)
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
  if name not in _APPLICATIONS:
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
    return _APPLICATIONS[name](
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
  if not isinstance(model, keras.Model) or shapes != expected:
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
