"""References to images."""

import collections
import contextlib
import io
import os
import tempfile

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.conversion import items


class StratifiedSampleTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    (0, [0, 0, 0]),
    (1, [1, 0, 0]),  # 0.50, 0.30 and 0.20 of one
    (3, [1, 1, 1]),  # 1.50, 0.90 and 0.60: the largest remainders are rounded up
    (7, [4, 2, 1]),  # 3.50, 2.10 and 1.40
    (10, [5, 3, 2]),
  )
  def test_every_class_keeps_its_share(self, count, taken):
    labels = np.array([7, 2, 5, 7, 2, 7, 5, 7, 2, 7])
    for seed in range(5):
      drawn = items.stratified_sample(labels, count, seed)
      self.assertAllEqual(drawn, np.unique(drawn))  # ascending, each once
      found = [np.sum(labels[drawn] == kind) for kind in (7, 2, 5)]
      self.assertEqual(found, taken)

  def test_every_image_may_be_drawn(self):
    labels = np.arange(30) % 2
    drawn = [tuple(items.stratified_sample(labels, 10, seed)) for seed in range(30)]
    self.assertEqual(set().union(*drawn), set(range(30)))
    self.assertEqual(drawn[3], tuple(items.stratified_sample(labels, 10, 3)))


class ListTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.folder = directory.name

  def add(self, path, content=b"x"):
    whole = os.path.join(os.fsencode(self.folder), os.fsencode(path))
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    with open(whole, "wb") as file:
      file.write(content)

  def link(self, target, path):
    os.symlink(target, os.path.join(self.folder, path))

  def listed(self, *, recursive=True):
    self.left_out = collections.Counter()
    found = items.list_images(
      self.folder, self.folder, recursive=recursive, left_out=self.left_out
    )
    return [item.member for item in found]

  def test_links_in_circles_and_to_what_is_there(self):
    self.add("a.png")
    self.add("b/c.png")
    self.link("..", "b/up")
    self.link(".", "itself")
    self.link("a.png", "d.png")
    self.link("nowhere", "e.png")
    self.link("f.png", "f.png")
    found = self.listed()
    self.assertLen(found, 2)
    self.assertIn("b/c.png", found)
    self.assertEqual(self.left_out["broken links"], 2)
    self.assertEqual(self.left_out["links to what was there already"], 3)

  def test_what_is_no_regular_file(self):
    self.add("a.png")
    os.mkfifo(os.path.join(self.folder, "b.png"))
    self.link("/dev/zero", "c.png")
    for recursive in (True, False):
      self.assertEqual(self.listed(recursive=recursive), ["a.png"])
      self.assertEqual(self.left_out, {"devices, pipes and sockets": 2})

  def test_what_is_left_out_is_counted(self):
    for name in ("a.png", "b.PPM", "c.avif", "d.avif", "e", ".f.png", "g/h.png"):
      self.add(name)
    self.assertEqual(self.listed(recursive=False), ["a.png", "b.PPM"])
    expected = {
      ".avif": 2,
      "without an extension": 1,
      "folders below a class's folder": 1,
    }
    self.assertEqual(self.left_out, expected)
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
      items.say_what_was_left_out("DIR", self.left_out)
      items.say_what_was_left_out("DIR", {})
    self.assertRegex(
      stderr.getvalue(), r"^DIR: left out 2 .avif, .*1 without .*; read are .jpg.*\n$"
    )

  def test_names_that_are_no_text(self):
    for name in (b"\xe4.png", b"a\nb.png"):
      with self.subTest(name):
        self.add(name)
        with self.assertRaisesRegex(UserError, r"holds the name '.*\\.*png', .*rename"):
          self.listed()
        os.remove(os.path.join(os.fsencode(self.folder), name))
    for name in (b"\xe4/a.png", b"a\n/a.png"):
      self.add(name)
      with self.assertRaisesRegex(UserError, "rename it"):
        items.list_folders(self.folder)


if __name__ == "__main__":
  tf.test.main()
