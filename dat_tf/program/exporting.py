"""A trained classifier in the forms that others open, each checked to be the same."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from dat_tf import compat
from dat_tf.base import files
from dat_tf.base.errors import UserError
from dat_tf.compat import keras

# A further form's file or directory, beside `export`.
FORMATS = {
  "keras": "export.keras",
  "serving": "serving",
  "tflite": "export.tflite",
  "onnx": "export.onnx",
}

# Where `_replace` works; the second form is that of earlier versions.
_LEFTOVER = re.compile(
  rf"\.(export|{'|'.join(map(re.escape, FORMATS.values()))})\.[a-z0-9_]{{8}}"
  r"|tmp[a-z0-9_]{8}"
)
_HALVES = re.compile(r"new(\.\w+)?|old")

_Logits = Callable[[np.ndarray], np.ndarray]


def export(classifier: keras.Model, directory: str) -> None:
  """Writes a plain Keras model that `tf.keras.models.load_model` opens anywhere.

  Args:
    classifier: a plain model (`checkpointing.copy_weights`), images in [0, 1] ->
      logits.
    directory: replaced as a whole, once the new one is complete; in an object store,
      file by file.
  """
  # Keras warns of a model that was never compiled.
  classifier.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
  _replace(
    directory,
    lambda path: classifier.save(path, include_optimizer=False, save_format="tf"),
  )


def export_formats(
  classifier: keras.Model, model_dir: str, formats: Sequence[str]
) -> list[str]:
  """Writes a classifier in further forms, once each gives the classifier's logits.

  Args:
    classifier: a plain model, images [B, H, W, C] in [0, 1] -> logits.
    model_dir: where they are written.
    formats: of `FORMATS`. `keras`: a file for `tf.keras.models.load_model`; `serving`:
      a SavedModel whose signature `serving_default` takes `image` and gives `logits`
      and `probabilities`; `tflite` and `onnx`: files of these, image in, logits out.

  Returns:
    Their paths.

  Raises:
    UserError: a package is missing, the network has what the form has not, or its
      logits differ there.
  """
  check_packages(formats)
  images = np.random.default_rng(0).random((4, *classifier.input_shape[1:]), "f4")
  expected = classifier(images, training=False).numpy()
  paths = []
  for name in formats:
    paths.append(os.path.join(model_dir, FORMATS[name]))

    def write(path: str, name: str = name) -> None:
      logits = _WRITERS[name](classifier, path)(images)
      difference = float(np.max(np.abs(logits - expected)))
      if not difference <= 1e-4 * max(1.0, float(np.max(np.abs(expected)))):
        raise UserError(
          f"--export_formats={name}: its logits differ by {difference:.2g} from the "
          "network's; choose another form."
        )

    _replace(paths[-1], write)
  return paths


def check_packages(formats: Sequence[str]) -> None:
  """Raises UserError if formats need packages that are not there."""
  needed = ("onnxruntime", "tf2onnx") if "onnx" in formats else ()
  if not all(map(importlib.util.find_spec, needed)):
    raise UserError(
      "--export_formats=onnx needs further packages: pip install 'dat-tf[onnx]'."
    )


def _keras(classifier: keras.Model, path: str) -> _Logits:
  classifier.save(path, save_format="keras")
  model = keras.models.load_model(path, compile=False)
  return lambda images: model(images, training=False).numpy()


def _serving(classifier: keras.Model, path: str) -> _Logits:
  shape = [None, *classifier.input_shape[1:]]

  @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="image")])
  def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
    logits = classifier(image, training=False)
    return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

  module = tf.Module()
  module.classifier = classifier  # whose variables the signature uses
  tf.saved_model.save(module, path, signatures={"serving_default": serve})
  loaded = tf.saved_model.load(path)
  signature = loaded.signatures["serving_default"]
  return lambda images: signature(image=tf.constant(images))["logits"].numpy()


def _tflite(classifier: keras.Model, path: str) -> _Logits:
  try:
    with compat.quiet(re.compile(b"")):  # a summary of what it may convert
      content = tf.lite.TFLiteConverter.from_keras_model(classifier).convert()
  except Exception as error:  # the converter has no error of its own
    raise _unsuitable("tflite", error) from error
  with open(path, "wb") as file:
    file.write(content)

  def logits(images: np.ndarray) -> np.ndarray:
    interpreter = tf.lite.Interpreter(path)
    (given,), (made,) = (
      interpreter.get_input_details(),
      interpreter.get_output_details(),
    )
    interpreter.resize_tensor_input(given["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(made["index"])

  return logits


def _onnx(classifier: keras.Model, path: str) -> _Logits:
  import onnxruntime
  import tf2onnx

  shape = [None, *classifier.input_shape[1:]]
  signature = [tf.TensorSpec(shape, tf.float32, name="image")]
  try:
    tf2onnx.convert.from_keras(classifier, signature, output_path=path)
  except Exception as error:  # whatever an operation without a counterpart raises
    raise _unsuitable("onnx", error) from error
  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  return lambda images: session.run(None, {"image": images})[0]


_WRITERS: dict[str, Callable[[keras.Model, str], _Logits]] = {
  "keras": _keras,
  "serving": _serving,
  "tflite": _tflite,
  "onnx": _onnx,
}


def _unsuitable(name: str, error: Exception) -> UserError:
  reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
  return UserError(f"--export_formats={name}: this network cannot be written: {reason}")


def _replace(target: str, write: Callable[[str], Any]) -> None:
  """Writes a file or directory under another name, and then gives it its own."""
  in_store = "://" in target
  parent = None if in_store else os.path.dirname(target) or "."
  if parent:
    os.makedirs(parent, exist_ok=True)
  prefix = f".{os.path.basename(target)}."  # for `remove_leftovers`
  with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as temporary:
    # Its ending tells some writers the form.
    new = os.path.join(temporary, f"new{os.path.splitext(target)[1]}")
    old = os.path.join(temporary, "old")
    write(new)
    if in_store:
      _upload(new, target)
      return
    if os.path.exists(target):
      os.rename(target, old)
    os.rename(new, target)
    if os.path.isdir(old):
      shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(model_dir: str) -> None:
  """Puts right what an export that was killed has left in a directory.

  One that was moved aside, when its successor had not yet got its name, comes back.
  """
  for name in files.names(model_dir):
    match = _LEFTOVER.fullmatch(name)
    path = os.path.join(model_dir, name)
    if not match or not all(_HALVES.fullmatch(half) for half in files.names(path)):
      continue
    old = os.path.join(path, "old")
    target = os.path.join(model_dir, match[1] or "export")
    if tf.io.gfile.exists(old) and not tf.io.gfile.exists(target):
      tf.io.gfile.rename(old, target)
    tf.io.gfile.rmtree(path)


def _upload(source: str, target: str) -> None:
  """Copies a file or directory to an object store, over what is there."""
  if os.path.isfile(source):
    _copy(source, target)
  for folder, _, names in os.walk(source):
    there = os.path.normpath(os.path.join("/", os.path.relpath(folder, source)))
    tf.io.gfile.makedirs(target + there)
    for name in names:
      path = os.path.join(there, name)
      _copy(source + path, target + path)


def _copy(source: str, target: str) -> None:
  if tf.io.gfile.exists(target):  # some stores would write into it
    tf.io.gfile.remove(target)
  tf.io.gfile.copy(source, target)
