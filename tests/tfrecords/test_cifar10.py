"""CIFAR-10's converter, on small archives laid out as the originals are."""

import io
import os
import pickle
import sys
import tarfile
import types
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from builders import load, read, run
from dat_tf.base.errors import UserError

build_cifar10 = load("build_cifar10")

ROWS = {"train": 3, "test": 4}  # in each batch


def python_2_pickle(batch: dict) -> bytes:
  """A batch as Python 2.7 wrote it: protocol 2, byte strings throughout."""

  def string(text: bytes) -> bytes:
    return b"T" + len(text).to_bytes(4, "little") + text

  data, labels = batch["data"], batch["labels"]
  rows, columns = (b"M" + n.to_bytes(2, "little") for n in data.shape)
  array = (
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01" + rows + columns + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    + string(data.tobytes())
    + b"tb"
  )
  listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
  items = b"".join(
    string(name) + value
    for name, value in (
      (b"data", array),
      (b"labels", listed),
      (b"batch_label", string(b"training batch")),
      (b"filenames", b"](" + string(b"\xe9.png") + b"e"),
    )
  )
  return b"\x80\x02}(" + items + b"u."


class Cifar10Test(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.get_temp_dir()
    self.output = os.path.join(self.folder, "out")
    rng = np.random.default_rng(0)
    self.splits = {}
    self.files = {"python": {}, "binary": {}}
    for split, names in (
      ("train", [f"data_batch_{number}" for number in range(1, 6)]),
      ("test", ["test_batch"]),
    ):
      rows = ROWS[split]
      images = rng.integers(0, 256, (rows * len(names), 32, 32, 3), np.uint8)
      labels = rng.integers(0, 10, rows * len(names))
      self.splits[split] = images, labels
      for number, name in enumerate(names):
        part = slice(rows * number, rows * (number + 1))
        # First all red values, row by row, then green, then blue.
        data = np.stack([images[part, ..., c].reshape(rows, -1) for c in range(3)], 1)
        batch = {"data": data.reshape(rows, -1), "labels": labels[part].tolist()}
        self.files["python"][name] = python_2_pickle(batch)
        self.files["binary"][f"{name}.bin"] = b"".join(
          bytes([label]) + pixels.tobytes() for label, pixels in zip(labels[part], data)
        )

  def source(self, kind, *, folder=False):
    """Writes the archive of a kind, or its folder; returns the path."""
    name = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}[kind]
    if folder:
      os.mkdir(os.path.join(self.folder, name))
      for file, content in self.files[kind].items():
        with open(os.path.join(self.folder, name, file), "wb") as opened:
          opened.write(content)
      return os.path.join(self.folder, name)
    path = os.path.join(self.folder, f"cifar-10-{kind}.tar.gz")
    with tarfile.open(path, "w:gz") as tar:
      for file, content in {**self.files[kind], "readme.html": b""}.items():
        info = tarfile.TarInfo(f"{name}/{file}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path

  def assert_written(self):
    for split, (images, labels) in self.splits.items():
      written, written_labels = read(self.output, split)
      self.assertLen(written, len(images))
      self.assertEqual(
        {image.tobytes(): label for image, label in zip(written, written_labels)},
        {image.tobytes(): label for image, label in zip(images, labels)},
      )

  @parameterized.product(kind=["python", "binary"], folder=[False, True])
  def test_original_forms(self, kind, folder):
    build_cifar10.build(self.source(kind, folder=folder), self.output, 2)
    self.assert_written()
    self.assertLen(os.listdir(self.output), 2 * (2 + 1))

  def test_a_pickle_of_python_3(self):
    for name, content in self.files["python"].items():
      batch = pickle.loads(content, encoding="latin1")
      self.files["python"][name] = pickle.dumps(
        {key.encode(): value for key, value in batch.items()}
      )
    build_cifar10.build(self.source("python"), self.output, 2)
    self.assert_written()

  def test_without_a_source_the_images_come_from_tfds(self):
    def load_split(name, split, as_supervised):
      self.assertEqual((name, as_supervised), ("cifar10", True))
      return tf.data.Dataset.from_tensor_slices(self.splits[split])

    tfds = types.SimpleNamespace(load=load_split)
    with mock.patch.dict(sys.modules, tensorflow_datasets=tfds):
      build_cifar10.build(None, self.output, 2)
    self.assert_written()

  def test_without_a_source_and_without_tfds(self):
    with mock.patch.dict(sys.modules, tensorflow_datasets=None):
      with self.assertRaisesRegex(UserError, "ModuleNotFoundError.*`source`"):
        build_cifar10.build(None, self.output, 2)

  def assert_refused(self, pattern, source):
    with self.assertRaisesRegex(UserError, pattern):
      build_cifar10.build(source, self.output, 2)
    self.assertFalse(os.path.exists(self.output))

  def test_missing_batch(self):
    del self.files["binary"]["data_batch_4.bin"]
    self.assert_refused("holds no data_batch_4.bin", self.source("binary"))

  def test_batch_cut_off(self):
    self.files["binary"]["test_batch.bin"] = bytes(3072)
    self.assert_refused("test_batch.bin holds 3,072 bytes", self.source("binary"))
    self.files["python"]["test_batch"] = self.files["python"]["test_batch"][:-3]
    self.assert_refused("test_batch is refused as a pickle", self.source("python"))

  def test_cifar_100_and_the_like(self):
    self.files["binary"]["test_batch.bin"] = bytes([10]) + bytes(3072)
    self.assert_refused("labels outside 0 to 9", self.source("binary"))
    self.files["python"]["test_batch"] = pickle.dumps({b"fine_labels": [1]})
    self.assert_refused("test_batch holds no 'data'", self.source("python"))

  def test_a_pickle_of_anything_else(self):
    self.files["python"]["test_batch"] = pickle.dumps({"data": os.getcwd})
    self.assert_refused("test_batch is refused .*posix.getcwd", self.source("python"))

  def test_truncated_or_no_archive(self):
    path = self.source("binary")
    os.truncate(path, os.path.getsize(path) // 2)
    self.assert_refused("cannot be read .*whole copy", path)
    os.truncate(path, 0)
    self.assert_refused("cannot be read .*whole copy", path)
    self.assert_refused("cannot be read .*No such file", f"{path}.none")

  def test_program(self):
    arguments = f"--source={self.source('python')}", f"--output_dir={self.output}"
    ended = run("build_cifar10", *arguments, "--num_shards=2")
    self.assertEqual(ended.returncode, 0, ended.stderr)
    self.assertRegex(ended.stderr, "Warning: .* is not the published archive")
    self.assert_written()
    again = run("build_cifar10", *arguments, "--num_shards=3")
    self.assertEqual(again.returncode, 2)
    self.assertRegex(again.stderr, "^build_cifar10.py: .* other than 3 files.*\n$")


if __name__ == "__main__":
  tf.test.main()
