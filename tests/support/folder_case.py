"""A test with a directory of its own."""

from __future__ import annotations

import pathlib
import tempfile

import tensorflow as tf


class FolderCase(tf.test.TestCase):
  """`folder` is there for all tests of the class."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.folder = pathlib.Path(folder.name)
