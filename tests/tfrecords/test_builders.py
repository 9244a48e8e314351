"""The builders of small sets, on scikit-learn's digits and on small archives."""

import gzip
import os
import pathlib
import struct
import sys
import types
from unittest import mock

import numpy as np
import sklearn.datasets
import tensorflow as tf
from absl.testing import parameterized

from builders import load, read, run
from dat_tf.base.errors import UserError

build_digits = load("build_digits")
build_fashion_mnist = load("build_fashion_mnist")


class DigitsTest(tf.test.TestCase):
  def test_program_writes_both_splits(self):
    directory = self.get_temp_dir()
    ended = run("build_digits", f"--output_dir={directory}", "--num_shards=3")
    self.assertEqual((ended.returncode, ended.stderr), (0, ""))
    self.assertCountEqual(
      os.listdir(directory),
      [f"{split}-0000{k}-of-00003" for split in ("train", "test") for k in range(3)],
    )
    train, test = read(directory, "train"), read(directory, "test")
    self.assertEqual(train[0].shape, (1437, 8, 8, 1))
    self.assertEqual(test[0].shape, (360, 8, 8, 1))
    # Both splits together are the data set: the same images with the same labels.
    data = sklearn.datasets.load_digits()
    expected = sorted(
      (int(label), tuple(np.floor(image.ravel() * 255 / 16 + 0.5).astype(int)))
      for image, label in zip(data.images, data.target)
    )
    written = sorted(
      (int(label), tuple(image.ravel().astype(int)))
      for images, labels in (train, test)
      for image, label in zip(images, labels)
    )
    self.assertLen(written, 1797)
    for (label, image), (wanted_label, wanted) in zip(written, expected):
      self.assertEqual(label, wanted_label)
      # A half, as 8 * 255 / 16 = 127.5, may be rounded either way.
      self.assertAllClose(image, wanted, atol=1)
    self.assertEqual((train[0].min(), train[0].max()), (0, 255))
    shares = np.bincount(test[1]) / np.bincount(data.target)
    self.assertAllClose(shares, np.full(10, 360 / 1797), atol=0.01)

  def test_split_is_fixed(self):
    first, second = build_digits.digits(), build_digits.digits()
    for split in ("train", "test"):
      for one, other in zip(first[split], second[split]):
        self.assertAllEqual(one, other)


def idx(array: np.ndarray) -> bytes:
  head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
  return head + array.astype(np.uint8).tobytes()


class FashionMnistTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.source = self.get_temp_dir()
    self.output = os.path.join(self.source, "output")
    self.splits = {}
    self.files = {}
    for split, prefix, count in (("train", "train", 7), ("test", "t10k", 3)):
      images = rng.integers(0, 256, (count, 4, 5), np.uint8)
      labels = rng.integers(0, 10, count, np.uint8)
      self.splits[split] = images, labels
      self.files[f"{prefix}-images-idx3-ubyte"] = idx(images)
      self.files[f"{prefix}-labels-idx1-ubyte"] = idx(labels)

  def build(self, *, compress=False, **options):
    for name, content in self.files.items():
      path = os.path.join(self.source, name)
      with gzip.open(f"{path}.gz", "wb") if compress else open(path, "wb") as file:
        file.write(content)
    build_fashion_mnist.build(self.source, self.output, 2, **options)

  def assert_written(self):
    for split, (images, labels) in self.splits.items():
      self.assertLen(list(pathlib.Path(self.output).glob(f"{split}-*-of-00002")), 2)
      written, written_labels = read(self.output, split)
      # The labels are compared image by image: dealing out changes the order.
      by_image = {image.tobytes(): label for image, label in zip(images, labels)}
      self.assertLen(written, len(images))
      self.assertEqual(written.shape[1:], (4, 5, 1))
      self.assertEqual(
        {i.tobytes(): n for i, n in zip(written, written_labels)}, by_image
      )

  @parameterized.parameters(False, True)
  def test_idx_files(self, compress):
    self.build(compress=compress)
    self.assert_written()

  def test_labels_withheld(self):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.array([7, 2, 5], np.uint8), [40, 20, 20])
    images = rng.integers(0, 256, (80, 4, 5), np.uint8)
    self.files["train-images-idx3-ubyte"] = idx(images)
    self.files["train-labels-idx1-ubyte"] = idx(labels)
    by_image = {image.tobytes(): label for image, label in zip(images, labels)}
    drawn = []
    for seed in (0, 0, 1):
      self.output += "_"
      self.build(num_labeled=8, seed=seed)
      self.assertCountEqual(
        os.listdir(self.output),
        [
          f"{s}-0000{k}-of-00002"
          for s in ("labeled", "unlabeled", "test")
          for k in (0, 1)
        ],
      )
      labeled, its_labels = read(self.output, "labeled")
      unlabeled, no_labels = read(self.output, "unlabeled")
      # Every class keeps its share.
      self.assertAllEqual(np.bincount(its_labels), [0, 0, 2, 0, 0, 2, 0, 4])
      for image, label in zip(labeled, its_labels):
        self.assertEqual(by_image[image.tobytes()], label)
      self.assertAllEqual(no_labels, [-1] * 72)  # the feature is absent
      together = [image.tobytes() for image in (*labeled, *unlabeled)]
      self.assertCountEqual(together, by_image)
      self.assertAllEqual(read(self.output, "test")[0].shape, (3, 4, 5, 1))
      drawn.append({image.tobytes() for image in labeled})
    self.assertEqual(drawn[0], drawn[1])
    self.assertNotEqual(drawn[0], drawn[2])

  def test_nothing_left_to_withhold(self):
    self.assert_refused("--num_labeled=7 leaves none of 7", num_labeled=7)

  def assert_refused(self, pattern, *, compress=False, **options):
    with self.assertRaisesRegex(UserError, pattern):
      self.build(compress=compress, **options)
    self.assertFalse(os.path.exists(self.output))

  def test_missing_file(self):
    del self.files["t10k-labels-idx1-ubyte"]
    self.assert_refused("neither t10k-labels-idx1-ubyte nor .*gz")

  def test_truncated_file(self):
    name = "t10k-images-idx3-ubyte"
    self.files[name] = self.files[name][:-1]
    self.assert_refused(f"{name} holds 59 values .* 60")

  def test_file_cut_off_in_its_head(self):
    name = "train-images-idx3-ubyte"
    self.files[name] = self.files[name][:10]
    self.assert_refused(f"{name} is no IDX file")

  def test_wrong_file(self):
    self.files["train-images-idx3-ubyte"] = self.files["train-labels-idx1-ubyte"]
    self.assert_refused("train-images-idx3-ubyte is no IDX file .* 3 dimension")

  def test_images_and_labels_of_different_sets(self):
    self.files["train-labels-idx1-ubyte"] = self.files["t10k-labels-idx1-ubyte"]
    self.assert_refused("7 train images and 3 labels")

  @parameterized.parameters(
    (lambda content: content[:-12],), (lambda content: b"no gzip" + content,)
  )
  def test_damaged_gzip(self, damage):
    path = os.path.join(self.source, "train-labels-idx1-ubyte.gz")
    content = gzip.compress(self.files.pop("train-labels-idx1-ubyte"))
    with open(path, "wb") as file:
      file.write(damage(content))
    self.assert_refused("train-labels-idx1-ubyte.gz cannot be read", compress=True)

  def test_without_a_source_the_images_come_from_tfds(self):
    def load_split(name, split, as_supervised):
      self.assertEqual((name, as_supervised), ("fashion_mnist", True))
      images, labels = self.splits[split]
      return tf.data.Dataset.from_tensor_slices(
        (images[..., np.newaxis], labels.astype(np.int64))
      )

    tfds = types.SimpleNamespace(load=load_split)
    with mock.patch.dict(sys.modules, tensorflow_datasets=tfds):
      build_fashion_mnist.build(None, self.output, 2)
    self.assert_written()

  def test_without_a_source_and_without_tfds(self):
    with mock.patch.dict(sys.modules, tensorflow_datasets=None):
      with self.assertRaisesRegex(UserError, "ModuleNotFoundError.*`source`"):
        build_fashion_mnist.build(None, self.output, 2)

  def test_program_ends_a_mistake_with_one_line_and_code_2(self):
    ended = run(
      "build_fashion_mnist", f"--output_dir={self.output}", f"--source={self.source}"
    )
    self.assertEqual(ended.returncode, 2)
    self.assertRegex(ended.stderr, r"^build_fashion_mnist.py: .*--source.*\n$")
    self.assertEqual(ended.stderr.count("\n"), 1)


if __name__ == "__main__":
  tf.test.main()
