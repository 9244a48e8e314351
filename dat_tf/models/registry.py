"""Models by name: our own, and every network of tf.keras.applications."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Sequence

import tensorflow as tf

from dat_tf.errors import UserError
from dat_tf.models.preact_resnet import preact_resnet18
from dat_tf.models.small_cnn import small_cnn

_OWN = {"small_cnn": small_cnn, "preact_resnet18": preact_resnet18}
_APPLICATIONS = {
  name: value
  for name, value in vars(tf.keras.applications).items()
  if inspect.isfunction(value)
}


def make_model(
  name: str, image_shape: Sequence[int], num_classes: int
) -> tf.keras.Model:
  """A new, randomly initialised classifier.

  Args:
    name: `small_cnn`, `preact_resnet18`, or a function of `tf.keras.applications`
      such as `ResNet50`.
    image_shape: (height, width, channels).
    num_classes: number of logits.

  Returns:
    Keras model: float32 [B, *image_shape] in [0, 1] -> logits [B, num_classes]. It
    consists of Keras' own layers only, so that an export opens without this package.

  Raises:
    UserError: no such name, or the network does not take such images.
  """
  if name in _OWN:
    return _OWN[name](image_shape, num_classes)
  if name in _APPLICATIONS:
    return _application(name, image_shape, num_classes)
  known = [*_OWN, *_APPLICATIONS]
  nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(_OWN)
  raise UserError(
    f"--model={name}: no such model; the nearest names are {', '.join(nearest)}."
  )


def _application(
  name: str, image_shape: Sequence[int], num_classes: int
) -> tf.keras.Model:
  constructor = _APPLICATIONS[name]
  # Each network has its own idea of a normalised image; its module's
  # `preprocess_input` turns pixels in [0, 255] into that.
  preprocess = sys.modules[constructor.__module__].preprocess_input
  inputs = tf.keras.Input(image_shape, name="image")
  x = tf.keras.layers.Rescaling(255.0, name="to_255")(inputs)
  try:
    network = constructor(
      weights=None,
      input_shape=tuple(image_shape),
      classes=num_classes,
      classifier_activation=None,
    )
    return tf.keras.Model(inputs, network(preprocess(x)), name=name.lower())
  except ValueError as error:
    raise UserError(
      f"--model={name} does not take images of shape {tuple(image_shape)}: {error}"
    ) from error
