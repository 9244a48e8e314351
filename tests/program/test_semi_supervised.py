"""Pseudo-labels and semi-supervised training from end to end, on 1, 2 and 3 workers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from folder_case import FolderCase
from partly_labeled import FILES, LABELED, TEST, UNLABELED, write_digits
from program_case import run_dat
from sklearn.datasets import load_digits

from dat_tf.data import writing
from record_files import example, read


def run(num_workers, **flags):
  """run_dat.py on local workers; returns what it printed."""
  done = run_dat(flags, num_workers)
  if done.returncode:
    raise RuntimeError(done.stdout + done.stderr)
  return done.stdout + done.stderr


class SemiSupervisedTest(FolderCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    data = cls.folder / "data"
    cls.labels = write_digits(str(data))
    cls.unlabeled = data / "unlabeled-*"
    cls.flags = {
      "train_data": data / "labeled-*",
      "test_data": data / "test-*",
      "global_batch_size": 12,
      "probe_images": 0,
      "epsilon": 0.1,
      "attack_steps": 2,
      "evaluation_attack_steps": 2,
    }
    clean = {"attack": "none", "attack_steps": None}
    cls.teacher = {**cls.flags, **clean, "model_dir": cls.folder / "teacher"}
    run(1, **cls.teacher, clean_weight=0, epochs=4, mode="train")

  @classmethod
  def label(cls, name, num_workers, **flags):
    """Pseudo-labels by the teacher: what was printed, and {file: records}."""
    target = cls.folder / name
    printed = run(
      num_workers,
      **cls.teacher,
      clean_weight=0,
      epochs=4,
      mode="pseudo_label",
      unlabeled_data=cls.unlabeled,
      pseudo_label_dir=target,
      **flags,
    )
    paths = sorted(target.glob("unlabeled-*"))
    return printed, {path.name: read(str(path)) for path in paths}

  def labels_of(self, files):
    """In the order in which the images were dealt out to the files; None for none."""
    labels = [None] * UNLABELED
    for number, records in enumerate(files.values()):
      for place, record in enumerate(records):
        feature = tf.train.Example.FromString(record).features.feature
        value = feature["label"].int64_list.value
        labels[number + FILES * place] = value[0] if value else None
    return labels

  def test_labels_do_not_depend_on_the_number_of_workers(self):
    printed, one = self.label("one", 1)
    self.assertIn(f"{UNLABELED} of the {UNLABELED} images", printed)
    self.assertLen(one, FILES)
    _, two = self.label("two", 2)
    self.assertEqual(one, two)
    model = tf.keras.models.load_model(
      self.folder / "teacher" / "export", compile=False
    )
    images = load_digits().images[LABELED : LABELED + UNLABELED, ..., None]
    logits = model.predict(np.rint(images * (255 / 16)) / 255, verbose=0)
    self.assertEqual(self.labels_of(one), logits.argmax(axis=1).tolist())
    self.assertGreater(np.mean(np.equal(self.labels_of(one), self.labels)), 0.4)

  @pytest.mark.long
  def test_labels_are_the_same_on_three_workers(self):
    _, one = self.label("again", 1, confidence_threshold=0.5)
    _, three = self.label("three", 3, confidence_threshold=0.5)
    self.assertEqual(one, three)
    self.assertIn(None, self.labels_of(one))

  @pytest.mark.long
  def test_soft_labels_and_consistency_train_on_two_workers(self):
    self.label("soft", 1, pseudo_labels="soft", confidence_threshold=0.3)
    student = self.folder / "student"
    run(
      2,
      **{**self.flags, "probe_images": 8},
      model_dir=student,
      unlabeled_data=self.folder / "soft" / "unlabeled-*",
      unlabeled_fraction=0.5,
      unlabeled_loss="both",
      unlabeled_weight=0.7,
      pseudo_label_smoothing=0.1,
      epochs=2,
    )
    results = json.loads((student / "results.json").read_text())
    self.assertEqual(results["test_examples"], TEST)
    self.assertEqual(results["probed_images"], 8)
    self.assertGreater(results["standard_accuracy"], 0.2)

  def test_unlabeled_images_of_another_shape_are_refused(self):
    square = example(image__raw=bytes(49), image__shape=(7, 7, 1))
    folder = str(self.folder / "other")
    writing.write_shards([square] * 8, folder, "unlabeled", 1)
    with self.assertRaisesRegex(
      RuntimeError, r"of different shapes, \[\(7, 7, 1\), \(8"
    ):
      run(
        1,
        **self.flags,
        model_dir=self.folder / "refused",
        unlabeled_data=f"{folder}/unlabeled-*",
        unlabeled_loss="consistency",
      )

  def test_pseudo_labels_that_are_not_there_are_missed(self):
    with self.assertRaisesRegex(RuntimeError, "no pseudo-labels, .*=consistency"):
      run(
        1,
        **self.flags,
        model_dir=self.folder / "refused",
        unlabeled_data=self.unlabeled,
      )


if __name__ == "__main__":
  tf.test.main()
