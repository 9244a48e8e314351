"""Pseudo-labels: the model's own, in the records' places, whatever is in the way."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.data import records
from dat_tf.program import pseudo_labeling
from record_files import example, read, write

SHAPE = (4, 5, 1)
NUM_RECORDS, BATCH = 10, 4


def images():
  return np.random.default_rng(0).integers(0, 256, (NUM_RECORDS, *SHAPE), "u1")


def softmax(logits):
  powers = np.exp(logits.astype("f8"))
  return powers / powers.sum(axis=1, keepdims=True)


class PseudoLabelingTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.kernel = np.random.default_rng(9).normal(size=(20, 3)).astype("f4")
    self.folder = pathlib.Path(tempfile.mkdtemp(dir=self.get_temp_dir()))
    self.source = str(self.folder / "source")
    self.target = str(self.folder / "target")

  def classifier(self, batch):
    self.assertEqual(batch.shape, (BATCH, *SHAPE))
    return tf.reshape(batch, [-1, 20]) @ self.kernel

  def probabilities(self):
    return softmax(images().reshape(-1, 20) / 255 @ self.kernel)

  def labeler(self, form, **settings):
    return pseudo_labeling.PseudoLabeler(
      self.classifier, form, SHAPE, settings.pop("crop", None), BATCH, **settings
    )

  def write_bare_pixels(self, path, **more):
    rows = ({"image__raw": x.tobytes(), "image__shape": SHAPE} for x in images())
    return write(path, [example(**row, number=i, **more) for i, row in enumerate(rows)])

  def features(self, path):
    return [tf.train.Example.FromString(x).features.feature for x in read(path)]

  def label(self, form, **settings):
    counts = self.labeler(form, **settings).label_files(
      [self.source], [self.target], show_progress=False
    )
    self.assertEqual(counts.records, NUM_RECORDS)
    return counts.labeled, self.features(self.target)

  def test_labels_are_the_models_and_order_and_features_stay(self):
    self.write_bare_pixels(self.source, label=9)  # which it is not
    form = records.detect_form(self.source, needs_label=False)
    labeled, features = self.label(form)
    self.assertEqual(labeled, NUM_RECORDS)
    expected = self.probabilities().argmax(axis=1)
    self.assertLen(set(expected), 3)
    labels = [feature["label"].int64_list.value for feature in features]
    self.assertAllEqual(labels, expected[:, np.newaxis])
    for number, (feature, image) in enumerate(zip(features, images())):
      self.assertEqual(feature["number"].int64_list.value, [number])
      self.assertEqual(feature["image/raw"].bytes_list.value, [image.tobytes()])

  @parameterized.parameters((None, 1), (0, 0))
  def test_imagenet_counts_from_one(self, first_label, first):
    pngs = [tf.io.encode_png(image).numpy() for image in images()]
    write(self.source, [example(image__encoded=png) for png in pngs])
    form = records.detect_form(self.source, needs_label=False)
    _, features = self.label(form, first_label=first_label)
    labels = [feature["image/class/label"].int64_list.value[0] for feature in features]
    self.assertAllEqual(labels, self.probabilities().argmax(axis=1) + first)

  @parameterized.parameters(False, True)
  def test_who_is_not_confident_gives_no_label(self, soft):
    self.write_bare_pixels(self.source)
    confidences = np.sort(self.probabilities().max(axis=1))
    threshold = confidences[3:5].mean()
    labeled, features = self.label(
      records.detect_form(self.source, needs_label=False),
      soft=soft,
      threshold=threshold,
    )
    self.assertEqual(labeled, NUM_RECORDS - 4)
    rows = np.where(
      self.probabilities().max(axis=1, keepdims=True) >= threshold,
      self.probabilities(),
      0,
    )
    if soft:
      written = [feature["label/soft"].float_list.value for feature in features]
      self.assertAllClose(written, rows, rtol=1e-5)
      self.assertFalse(any("label" in feature for feature in features))
    else:
      written = [list(feature["label"].int64_list.value) for feature in features]
      expected = [[row.argmax()] if row.any() else [] for row in rows]
      self.assertEqual(written, expected)
    form = records.detect_form(self.target, needs_label=False)
    self.assertEqual(form.soft_classes, 3 if soft else 0)

  def test_images_of_other_sizes_are_cropped(self):
    large = [np.kron(x, np.ones((3, 3, 1), "u1")) for x in images()]
    pngs = [tf.io.encode_png(image).numpy() for image in large]
    write(self.source, [example(image__encoded=png) for png in pngs])
    form = records.detect_form(self.source, needs_label=False)

    class EveryThird:
      def draw(self, sizes, keys):
        del keys
        return sizes

      def apply(self, stored, choice):
        return stored.decode()[1 : choice[0] : 3, 1 : choice[1] : 3]

    _, features = self.label(form, crop=EveryThird())
    labels = [feature["image/class/label"].int64_list.value[0] for feature in features]
    self.assertAllEqual(labels, self.probabilities().argmax(axis=1) + 1)

  def test_an_interruption_leaves_whole_files_only_and_work_goes_on(self):
    sources = [self.write_bare_pixels(str(self.folder / name)) for name in "abc"]
    targets = [f"{source}-labelled" for source in sources]
    labeler = self.labeler(records.detect_form(sources[0], needs_label=False))
    calls = 0

    def interrupted(batch):
      nonlocal calls
      calls += 1
      if calls == 5:  # in the second file
        raise KeyboardInterrupt
      return self.classifier(batch)

    with self.assertRaises(KeyboardInterrupt):
      dataclasses.replace(labeler, classifier=interrupted).label_files(
        sources, targets, show_progress=False
      )
    self.assertCountEqual(os.listdir(self.folder), ["a", "b", "c", "a-labelled"])
    os.utime(targets[0], (1, 1))
    counts = labeler.label_files(sources, targets, show_progress=False)
    self.assertEqual(counts, (2 * NUM_RECORDS, 2 * NUM_RECORDS))
    self.assertEqual(os.stat(targets[0]).st_mtime, 1)
    self.assertEqual(read(targets[0]), read(targets[2]))

  def test_a_full_disc_is_said_in_one_line(self):
    self.write_bare_pixels(self.source)
    labeler = self.labeler(records.detect_form(self.source, needs_label=False))
    full = tf.errors.ResourceExhaustedError(None, None, "No space left on device")
    with mock.patch.object(tf.io.TFRecordWriter, "write", side_effect=full):
      with self.assertRaisesRegex(UserError, "target cannot be written.*No space"):
        labeler.label_files([self.source], [self.target], show_progress=False)
    self.assertEqual(os.listdir(self.folder), ["source"])


class DirectoryTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = os.path.join(tempfile.mkdtemp(dir=self.get_temp_dir()), "labels")

  def test_files_keep_their_names(self):
    targets = pseudo_labeling.targets(["a/u-0", "a/u-1"], self.folder)
    self.assertEqual(targets, [f"{self.folder}/u-0", f"{self.folder}/u-1"])

  def test_files_of_one_name_and_files_in_their_own_place_are_refused(self):
    with self.assertRaisesRegex(UserError, "same name"):
      pseudo_labeling.targets(["a/u-0", "b/u-0"], self.folder)
    with self.assertRaisesRegex(UserError, "--pseudo_label_dir=a/ is where"):
      pseudo_labeling.targets(["a/u-0"], "a/")
    os.makedirs(self.folder)
    link = f"{self.folder}-link"
    os.symlink(self.folder, link)
    self.addCleanup(os.remove, link)
    for other in (link, os.path.relpath(self.folder), f"{self.folder}/../labels"):
      with self.assertRaisesRegex(UserError, "is where --unlabeled_data is"):
        pseudo_labeling.targets([f"{self.folder}/u-0"], other)

  def test_one_directory_holds_labels_of_one_kind(self):
    pseudo_labeling.begin(
      self.folder, {"weights": "w", "threshold": 0.5}, is_chief=True
    )
    pseudo_labeling.begin(
      self.folder, {"weights": "w", "threshold": 0.5}, is_chief=False
    )
    with self.assertRaisesRegex(UserError, f"{self.folder} holds labels by another"):
      pseudo_labeling.begin(
        self.folder, {"weights": "v", "threshold": 0.5}, is_chief=True
      )
    (name,) = os.listdir(self.folder)
    with open(os.path.join(self.folder, name), encoding="utf-8") as file:
      self.assertEqual(json.load(file), {"weights": "w", "threshold": 0.5})

  def test_a_directory_that_cannot_be_made(self):
    with open(self.folder, "w", encoding="utf-8"):
      pass
    with self.assertRaisesRegex(UserError, "cannot be written"):
      pseudo_labeling.begin(os.path.join(self.folder, "below"), {}, is_chief=True)


if __name__ == "__main__":
  tf.test.main()
