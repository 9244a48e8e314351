"""Keras models and SavedModels from files, which are programs as much as data.

A layer `Lambda` brings Python code of its own, a Keras file may name any module to be
imported, and the graph of a SavedModel may read and write files. Models are looked
through for all this before they are opened. What is known is found; to open a model of
a stranger is still to run a program of his.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py
import tensorflow as tf

from dat_tf import compat
from dat_tf.base.errors import UserError
from dat_tf.compat import keras

_LONGEST_CONFIG = 2**28  # bytes
# Where the parts of a Keras model come from.
_MODULES = ("keras", "tf_keras", "builtins")
_LAMBDA = "a Lambda"
# Operations that reach out of the graph; those that restore a SavedModel's own
# variables, and read its vocabularies, are left to it.
_REACHING = (
  "ReadFile",
  "WriteFile",
  "MatchingFiles",
  "PyFunc",
  "EagerPyFunc",
  "PyFuncStateless",
  "Reader",  # WholeFileReaderV2 and so on
  "Dataset",  # TFRecordDataset, DataServiceDataset and so on
  "SummaryWriter",
  "Debug",
  "PrintV2",
  "ImmutableConst",
  "_Send",
  "_Recv",
  "RemoteCall",
  "FileSystemSetConfiguration",
)


class UnopenedError(UserError):
  """A model that is not opened; the text begins with its path."""


def load_keras(path: str, *, unsafe: bool = False) -> Any:
  """Opens a model by the Keras that wrote it.

  Args:
    path: a .keras or .h5 file, or a SavedModel that Keras 2 wrote.
    unsafe: whether it may run code of its own.

  Returns:
    A model of Keras 2 or 3.

  Raises:
    UnopenedError: it holds code of its own, and must not, or needs Keras 3, which is
      not here.
    Exception: whatever Keras raises for what is no such model.
  """
  load_model = keras.models.load_model
  version = _version_of_writer(path)
  if version.startswith("3."):
    load_model = _keras_3(path, version).saving.load_model
  if not unsafe:
    _refuse_code(path)
  return load_model(path, compile=False, safe_mode=not unsafe)


def load_saved_model(path: str, *, unsafe: bool = False) -> Any:
  """Opens any SavedModel; as `load_keras`."""
  if not unsafe:
    _refuse_code(path)
  return tf.saved_model.load(path)


def _keras_3(path: str, version: str) -> Any:
  try:
    import keras as keras_3

    if not keras_3.__version__.startswith("3."):
      raise ImportError
  except ImportError:
    raise UnopenedError(
      f"{path}: it was written by Keras {version}, which needs TensorFlow 2.16 or "
      "later; install DAT-TF on Python 3.12 or 3.13, or write the model there with "
      "model.export(DIR) and name that directory."
    ) from None
  if keras_3.backend.backend() != "tensorflow":
    raise UnopenedError(
      f"{path}: Keras 3 runs on {keras_3.backend.backend()} here, not on TensorFlow; "
      "set KERAS_BACKEND=tensorflow."
    )
  return keras_3


def _version_of_writer(path: str) -> str:
  """The version of the Keras that wrote a file; empty where the file does not say."""
  if tf.io.gfile.isdir(path):
    return ""
  with tf.io.gfile.GFile(path, "rb") as file:
    if zipfile.is_zipfile(file):
      with zipfile.ZipFile(file) as archive:
        return json.loads(archive.read("metadata.json")).get("keras_version", "")
  if h5py.is_hdf5(path):
    with h5py.File(path) as file:
      version = file.attrs.get("keras_version", "")
      return version.decode() if isinstance(version, bytes) else str(version)
  return ""


def _refuse_code(path: str) -> None:
  found = sorted({*_code_in(path)})
  if found:
    raise UnopenedError(
      f"{path} holds code of its own ({', '.join(found[:5])}), which could do whatever "
      "you can: if you trust who made it, open it as unsafe (`unsafe_model`)."
    )


def _code_in(path: str) -> Iterator[str]:
  """What of a model runs code that is not TensorFlow's and Keras' own."""
  if tf.io.gfile.isdir(path):
    yield from _reaching_operations(os.path.join(path, "saved_model.pb"))
    if compat.is_written_by_keras_2(path):
      # The modules that it names are not imported.
      found = _code_in_texts(_read(compat.keras_metadata(path)))
      yield from (each for each in found if each == _LAMBDA)
    return
  content = _read(path)
  if zipfile.is_zipfile(io.BytesIO(content)):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      with archive.open("config.json") as file:
        yield from _code_in_config(json.loads(file.read(_LONGEST_CONFIG)))
  else:
    with h5py.File(io.BytesIO(content), "r") as file:
      yield from _code_in_config(json.loads(file.attrs.get("model_config", "{}")))


def _read(path: str) -> bytes:
  with tf.io.gfile.GFile(path, "rb") as file:
    return file.read()


def _code_in_texts(content: bytes) -> Iterator[str]:
  """What runs code in any JSON object in a protocol buffer of texts."""
  text, place = content.decode("utf-8", "replace"), 0
  decoder = json.JSONDecoder()
  while (place := text.find("{", place)) >= 0:
    try:
      config, place = decoder.raw_decode(text, place)
    except ValueError:
      place += 1
    else:
      yield from _code_in_config(config)


def _code_in_config(config: Any) -> Iterator[str]:
  if isinstance(config, dict):
    name, module = config.get("class_name"), config.get("module")
    if str(name).rpartition(">")[2] in ("Lambda", "__lambda__") or (
      config.get("function_type") == "lambda"
    ):
      yield _LAMBDA
    if (
      isinstance(name, str)
      and isinstance(module, str)
      and module.split(".")[0] not in _MODULES
    ):
      yield f"{name:.60} of the module {module:.60}"
    config = list(config.values())
  if isinstance(config, list):
    for part in config:
      yield from _code_in_config(part)
  elif isinstance(config, str) and config.lstrip()[:1] in "[{" and config.strip():
    try:  # Keras writes some configs as texts in texts
      inner = json.loads(config)
    except ValueError:
      return
    yield from _code_in_config(inner)


def _reaching_operations(path: str) -> Iterator[str]:
  if not tf.io.gfile.exists(path):
    return
  for graph in compat.saved_model_proto(_read(path)).meta_graphs:
    functions = [f.node_def for f in graph.graph_def.library.function]
    for nodes in (graph.graph_def.node, *functions):
      for node in nodes:
        if any(name in node.op for name in _REACHING):
          yield f"the operation {node.op:.60}"
