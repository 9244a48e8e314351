"""Classifiers of a user's own, from a Keras model or a SavedModel.

model = UserModel("resnet.keras", input_range=(0, 255), probabilities=True)
model.check(images, num_classes=10)
logits = model(images)                      # of images in [0, 1]
"""

from __future__ import annotations

import math
import os
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from dat_tf import compat
from dat_tf.base.errors import UserError
from dat_tf.base.run_directory import RunDirectory
from dat_tf.evaluation.robustness import finite
from dat_tf.models import stored
from dat_tf.models.view import NoViewError, inference_view

# The ranges of pixels that models usually take.
_USUAL_RANGES = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0))
# How far the probabilities of all classes, in 16 bits, may be from 1 together.
_SUM_TOLERANCE = 1e-2


class UserModel:
  """A model as attacks take it: images in [0, 1] to logits."""

  def __init__(
    self,
    path: str,
    input_range: tuple[float, float] = (0.0, 1.0),
    *,
    probabilities: bool = False,
    flag: str = "",
    unsafe: bool = False,
  ):
    """Loads a model.

    Args:
      path: a file of Keras 2, or of Keras 3 beside TensorFlow 2.16 and later; or a
        SavedModel of Keras 2, or with one signature, or with `serving_default`, from
        one tensor of images to logits, as Keras 3's `model.export` writes it. Of
        several outputs that which is called `logits` or `probabilities` is taken.
      input_range: the model's pixels for black and white.
      probabilities: whether it gives probabilities. Logits are then their logarithms.
      flag: by which the user of a program named it, for messages: `model_path`, or
        `source_model_path`.
      unsafe: whether it may run code of its own (`models.stored`).

    Raises:
      UserError: it cannot be loaded, or is not of that kind.
    """
    self._path, self.range, self._probabilities = path, input_range, probabilities
    self._name = f"`{flag}`={path}" if flag else path
    self._prefix = flag.removesuffix("model_path")
    if not tf.io.gfile.exists(path):
      raise self._mistake("there is no such file or directory", "mend the path")
    if tf.io.gfile.exists(exported := RunDirectory(path).export):
      raise self._mistake("it is the directory of a run", f"name {exported}")
    try:
      self._outputs, self._input = self._load(unsafe=unsafe)
    except stored.UnopenedError as error:
      raise UserError(f"`{flag}`={error}" if flag else str(error)) from None
    except UserError:
      raise
    except Exception as error:  # a model of any kind may fail in any way
      raise self._mistake(
        f"it cannot be loaded ({_first_line(error)})",
        "export it as a SavedModel with a signature from images to logits",
      ) from error

  def __call__(self, images: tf.Tensor) -> tf.Tensor:
    """Logits, float32 [B, classes], of images [B, H, W, C] in [0, 1]."""
    low, high = self.range
    pixels = low + (high - low) * _with_shaped_gradient(images)
    outputs = tf.cast(self._outputs(pixels), tf.float32)
    if not outputs.shape.is_fully_defined():
      outputs = tf.ensure_shape(outputs, [images.shape[0], None])
    if self._probabilities:
      return tf.math.log(tf.maximum(outputs, np.finfo(np.float32).tiny))
    return outputs

  def accuracies(
    self, images: np.ndarray, labels: np.ndarray, batch_size: int
  ) -> dict[tuple[float, float], float]:
    """The share of images that is right, by the range to which pixels are brought.

    Args:
      images: float32 [N, H, W, C] in [0, 1].
      labels: int [N].
      batch_size: images in a batch.

    Returns:
      Shares for the usual ranges, and for the one that was given.
    """
    found = {}
    given = self.range
    try:
      for pixels in dict.fromkeys((given, *_USUAL_RANGES)):
        self.range = pixels
        right = []
        for start in range(0, len(images), batch_size):
          part = images[start : start + batch_size]
          # The batch has one size, as some models have it.
          batch = np.resize(part, (batch_size, *part.shape[1:]))
          right += [*self(tf.constant(batch)).numpy().argmax(axis=1)[: len(part)]]
        found[pixels] = float(np.mean(np.array(right) == labels))
    finally:
      self.range = given
    return found

  def check(self, images: np.ndarray, num_classes: int) -> None:
    """Tries the model on a batch of the size and shape that it will get.

    Args:
      images: float32 [B, H, W, C] in [0, 1], as the data are.
      num_classes: of the data.

    Raises:
      UserError: it takes images of another shape, gives numbers for other classes or
        what was not stated, logits or probabilities, or it has no gradient.
    """
    if self._input is not None and not self._input.is_compatible_with(images.shape):
      wanted, given = (
        " x ".join("any" if size is None else str(size) for size in shape)
        for shape in (self._input, images.shape)
      )
      raise self._mistake(
        f"it takes images of {wanted} numbers, and would get {given}",
        _remedy(self._input.as_list(), list(images.shape)),
      )
    batch = tf.constant(images)
    try:
      with tf.GradientTape() as tape:
        tape.watch(batch)
        logits = self(batch)
        best = tf.reduce_sum(tf.reduce_max(logits, axis=-1))
    except UserError:
      raise
    except Exception as error:
      raise self._mistake(
        f"it does not take the images, {images.shape} ({_first_line(error)})",
        "give a model from images to logits, and the data that it is for",
      ) from error
    if logits.shape != (len(images), num_classes):
      raise self._mistake(
        f"for {len(images)} images it gives numbers of the shape {logits.shape}, and "
        f"`num_classes={num_classes}`",
        "give a model with as many logits as the data have classes",
      )
    finite(logits.numpy())
    self._check_kind((tf.exp(logits) if self._probabilities else logits).numpy())
    try:
      gradient = tape.gradient(best, batch)
    except LookupError:  # an operation without one
      gradient = None
    if gradient is None:
      raise self._mistake(
        "its output has no gradient with respect to the image",
        "take out what rounds or casts on the way, such as uint8",
      )

  def _check_kind(self, outputs: np.ndarray) -> None:
    """Raises UserError if probabilities were said to be logits, or logits them."""
    sums = outputs.sum(axis=1)
    if self._probabilities == bool(
      np.all(outputs >= 0) and np.all(np.abs(sums - 1.0) < _SUM_TOLERANCE)
    ):
      return
    if self._probabilities:
      raise self._mistake(
        f"it gives no probabilities: those of the first image add up to {sums[0]:g}",
        f"drop `{self._prefix}probabilities`, which says so",
      )
    raise self._mistake(
      "it gives probabilities, of all classes together 1, where logits are expected",
      f"set `{self._prefix}probabilities`, or better give the model without its last "
      "softmax",
    )

  def _load(self, *, unsafe: bool) -> tuple[Callable[[tf.Tensor], tf.Tensor], Any]:
    """The model's function of its own pixels, and the shape that it takes, if known."""
    saved = os.path.join(self._path, "saved_model.pb")
    if tf.io.gfile.exists(saved) and not compat.is_written_by_keras_2(self._path):
      return self._from_signature(stored.load_saved_model(self._path, unsafe=unsafe))
    model = stored.load_keras(self._path, unsafe=unsafe)
    inputs = getattr(model, "inputs", None) or [None]
    if len(inputs) > 1:
      raise self._mistake(f"it has {len(inputs)} inputs", "give one that takes images")
    shape = getattr(inputs[0], "shape", None)
    shape = None if shape is None else tf.TensorShape(shape)
    try:
      return inference_view(model)(), shape
    except NoViewError:
      return lambda images: self._chosen(model(images, training=False)), shape

  def _from_signature(
    self, loaded: Any
  ) -> tuple[Callable[[tf.Tensor], tf.Tensor], tf.TensorShape]:
    signatures = dict(loaded.signatures)
    signature = signatures.get("serving_default")
    if signature is None and len(signatures) == 1:
      (signature,) = signatures.values()
    inputs = signature.structured_input_signature[1] if signature else {}
    if signature is None or len(inputs) != 1:
      raise self._mistake(
        "it is a SavedModel without a signature of one input",
        "save it with a signature from images to logits",
      )
    ((name, spec),) = inputs.items()
    self._loaded = loaded  # its variables live as long as it does

    def call(images: tf.Tensor) -> tf.Tensor:
      return self._chosen(signature(**{name: tf.cast(images, spec.dtype)}))

    return call, spec.shape

  def _chosen(self, outputs: Any) -> tf.Tensor:
    """The one output that counts."""
    kind = "probabilities" if self._probabilities else "logits"
    if isinstance(outputs, dict) and kind in outputs:
      return outputs[kind]
    values = tf.nest.flatten(outputs)
    if len(values) != 1:
      raise self._mistake(
        f"it has {len(values)} outputs, none of them called {kind}", "give one of one"
      )
    return values[0]

  def _mistake(self, what: str, remedy: str) -> UserError:
    return UserError(f"{self._name}: {what}; {remedy}.")


def _remedy(wanted: list[Optional[int]], given: list[int]) -> str:
  """What brings images of one shape to a model that takes another; both [B, ...]."""
  if wanted[0] not in (None, given[0]):
    return f"give batches of {wanted[0]} images (`global_batch_size={wanted[0]}`)"
  shape = tuple(given[1:])
  layer = ""
  if wanted[1:] == [math.prod(shape)]:
    layer = "Flatten()"
  elif wanted[1:] == [shape[2], *shape[:2]]:
    layer = "Permute((3, 1, 2))"
  if layer:
    return (
      "save it behind a layer that brings them to its shape, such as "
      f"Sequential([Input({shape}), {layer}, model])"
    )
  return "give the data that it is for, or bring them to its size (`image_size`)"


@tf.custom_gradient
def _with_shaped_gradient(images: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
  """The images, whose gradient has their shape even where a model has lost it."""
  return tf.identity(images), lambda gradient: tf.reshape(gradient, tf.shape(images))


def _first_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")
