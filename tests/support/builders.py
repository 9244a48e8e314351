"""Runs the programs in tfrecords/, and reads what they write by feature names."""

import contextlib
import importlib.util
import io
import os
import pathlib
import subprocess
import types

import numpy as np
import sklearn.datasets
import tensorflow as tf
from absl import flags
from PIL import Image
from programs import ROOT, run_program


@contextlib.contextmanager
def loaded(name: str):
  """A builder as a module, while its flags are defined.

  Builders are programs of their own and name their flags alike, so the flags of one
  are taken out before the next is loaded.
  """
  path = ROOT / "tfrecords" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  before, parsed = set(flags.FLAGS), flags.FLAGS.is_parsed()
  try:
    spec.loader.exec_module(module)
    yield module
  finally:
    for flag in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, flag)
    if not parsed:
      flags.FLAGS.unparse_flags()


def load(name: str) -> types.ModuleType:
  """A builder as a module, without its flags."""
  with loaded(name) as module:
    return module


def call(name: str, *arguments: str) -> tuple[str, str]:
  """Runs a builder's main here; returns what it printed to stdout and to stderr."""
  stdout, stderr = io.StringIO(), io.StringIO()
  with loaded(name) as module:
    remaining = flags.FLAGS([f"{name}.py", *arguments])
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
      module.main(remaining)
  return stdout.getvalue(), stderr.getvalue()


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
  """Runs a builder as a process of its own."""
  return run_program([f"tfrecords/{name}.py", *arguments], os.environ)


def records(directory: str, split: str) -> list:
  """All records of a split, file by file."""
  paths = sorted(map(str, pathlib.Path(directory).glob(f"{split}-*")))
  return list(tf.data.TFRecordDataset(paths).as_numpy_iterator())


def read(directory: str, split: str) -> tuple:
  """All images and labels of a split in our own form; -1 where there is no label."""
  images, labels = [], []
  for record in records(directory, split):
    feature = tf.train.Example.FromString(record).features.feature
    pixels = np.frombuffer(feature["image/raw"].bytes_list.value[0], np.uint8)
    images.append(pixels.reshape(feature["image/shape"].int64_list.value))
    labels.extend(feature["label"].int64_list.value if "label" in feature else [-1])
  return np.stack(images), np.array(labels)


# The features of the canonical form, as TensorFlow's own ImageNet readers parse them.
CANONICAL = {
  "image/encoded": tf.io.FixedLenFeature([], tf.string),
  "image/format": tf.io.FixedLenFeature([], tf.string),
  "image/colorspace": tf.io.FixedLenFeature([], tf.string),
  "image/channels": tf.io.FixedLenFeature([], tf.int64),
  "image/height": tf.io.FixedLenFeature([], tf.int64),
  "image/width": tf.io.FixedLenFeature([], tf.int64),
  "image/filename": tf.io.FixedLenFeature([], tf.string),
  "image/class/label": tf.io.FixedLenFeature([], tf.int64, -1),
  "image/class/synset": tf.io.FixedLenFeature([], tf.string, ""),
  "image/class/text": tf.io.FixedLenFeature([], tf.string, ""),
}


def read_canonical(directory: str, split: str) -> dict:
  """All records of a split in the canonical form, by file name."""
  found = {}
  for record in records(directory, split):
    parsed = tf.io.parse_single_example(record, CANONICAL)
    one = {
      name.removeprefix("image/"): value.numpy().decode()
      if value.dtype == tf.string and name != "image/encoded"
      else value.numpy()
      for name, value in parsed.items()
    }
    assert one["filename"] not in found, one["filename"]
    found[one["filename"]] = one
  return found


def photograph(number: int, height: int = 24, width: int = 32) -> Image.Image:
  """A part of one of scikit-learn's two photographs, another one for each number."""
  whole = sklearn.datasets.load_sample_images().images[number % 2]
  top = 17 * number % (whole.shape[0] - height)
  left = 29 * number % (whole.shape[1] - width)
  return Image.fromarray(whole[top : top + height, left : left + width])


def encode(image: Image.Image, form: str = "JPEG", **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def mean_difference(one, other) -> float:
  """Of two images of uint8, in steps of brightness."""
  return float(np.mean(np.abs(np.asarray(one, float) - np.asarray(other, float))))
