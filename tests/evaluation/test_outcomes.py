"""Files of outcomes: what is done stays done, and is put together once."""

from __future__ import annotations

import os
import pathlib
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.evaluation import outcomes


def rows(*ids):
  """One row an id; what is in it depends on the id."""
  ids = np.array(ids, np.int64)
  return {
    "example_id": ids,
    "label": (ids % 3).astype("i4"),
    "prediction": (ids % 2).astype("i4"),
    "norm": np.where(ids % 2, np.inf, 0.01 * ids).astype("f4"),
    "attack": (ids % 2 - 1).astype("i4"),
    "adversarial_prediction": (ids % 5).astype("i4"),
  }


class OutcomesTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = os.path.join(tempfile.mkdtemp(dir=self.get_temp_dir()), "evaluation")

  def store(self, fingerprint="f", name="pgd-5"):
    return outcomes.Store(self.folder, name, ("a", "b"), "l2", 0.5, fingerprint)

  def assert_rows(self, found, *ids):
    self.assertCountEqual(found, rows())
    for name, column in rows(*ids).items():
      self.assertAllEqual(found[name], column)
      self.assertEqual(found[name].dtype, column.dtype)

  def test_parts_add_up_to_one_file(self):
    self.assert_rows(self.store().rows())
    self.store().add(0, rows(2**40, 3))
    self.store().add(1, rows(1))
    self.store().add(0, rows(2))
    self.store(name="pgd-50").add(0, rows(4))  # another attack's
    self.assert_rows(self.store().rows(), 1, 2, 3, 2**40)
    self.assert_rows(self.store().merge(4), 1, 2, 3, 2**40)
    self.assertCountEqual(os.listdir(self.folder), ["pgd-5.npz", "pgd-50.part-0.npz"])
    self.assert_rows(self.store().rows(), 1, 2, 3, 2**40)

  def test_the_file_says_what_it_is_of(self):
    self.store().add(0, rows(1, 2))
    self.store().merge(2)
    with np.load(os.path.join(self.folder, "pgd-5.npz")) as file:
      self.assertCountEqual(
        file, [*rows(), "sequence", "ball", "epsilon", "fingerprint"]
      )
      self.assertAllEqual(file["sequence"], ["a", "b"])
      self.assertEqual((str(file["ball"]), float(file["epsilon"])), ("l2", 0.5))

  def test_fewer_examples_than_are_there_lose_nothing(self):
    self.store().add(0, rows(1, 2, 3, 4, 5))
    self.store().merge(5)
    for _ in range(2):
      self.assert_rows(self.store().merge(2), 1, 2)
      with np.load(os.path.join(self.folder, "pgd-5.npz")) as file:
        self.assertAllEqual(file["example_id"], [1, 2])
      self.assert_rows(self.store().rows(), 1, 2, 3, 4, 5)
    self.assert_rows(self.store().merge(4), 1, 2, 3, 4)
    self.assert_rows(self.store().merge(5), 1, 2, 3, 4, 5)
    self.assertEqual(os.listdir(self.folder), ["pgd-5.npz"])

  def test_an_example_that_two_files_have_counts_once(self):
    self.store().add(0, rows(1, 2))
    part = os.path.join(self.folder, "pgd-5.part-0.npz")
    content = pathlib.Path(part).read_bytes()
    self.store().merge(2)
    pathlib.Path(part).write_bytes(content)  # killed before it was removed
    self.assert_rows(self.store().rows(), 1, 2)
    self.assert_rows(self.store().merge(2), 1, 2)
    self.assertEqual(os.listdir(self.folder), ["pgd-5.npz"])

  def test_what_another_model_left_is_not_mixed_in(self):
    self.store("other").add(0, rows(1, 2))
    self.store("other").add(1, rows(3))
    self.assert_rows(self.store().rows())
    self.store().add(0, rows(5))
    self.assert_rows(self.store().rows(), 5)
    self.assert_rows(self.store("other").rows(), 3)
    self.store().merge(1)
    self.assertEqual(os.listdir(self.folder), ["pgd-5.npz"])

  def test_missing_examples_are_said(self):
    self.store().add(0, rows(1, 2))
    with self.assertRaisesRegex(UserError, "holds 2 of 3 examples.*all workers share"):
      self.store().merge(3)
    self.assert_rows(self.store().rows(), 1, 2)

  def test_a_write_that_fails_leaves_what_was_there(self):
    self.store().add(0, rows(1))
    write = tf.io.gfile.GFile.write

    def write_half(file, content):
      write(file, content[: len(content) // 2])
      file.flush()
      raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    with mock.patch.object(tf.io.gfile.GFile, "write", write_half):
      with self.assertRaisesRegex(UserError, "part-0.npz cannot be written.*No space"):
        self.store().add(0, rows(2))
    self.assert_rows(self.store().rows(), 1)
    self.assertEqual(os.listdir(self.folder), ["pgd-5.part-0.npz"])

  def test_an_object_store(self):
    self.folder = "ram://test_outcomes"
    self.store().add(0, rows(2))
    self.store().add(1, rows(1))
    self.assert_rows(self.store().merge(2), 1, 2)
    self.assertEqual(tf.io.gfile.listdir(self.folder), ["pgd-5.npz"])

  def test_robust_is_who_was_right_and_stays_so(self):
    table = {
      "label": np.array([1, 1, 1]),
      "adversarial_prediction": np.array([1, 0, 2]),
    }
    self.assertAllEqual(outcomes.robust(table), [True, False, False])
