"""Small text files, on local discs and in object stores."""

from __future__ import annotations

import os
from typing import Optional


def read_text(path: str) -> Optional[str]:
  """What the file holds, as UTF-8; None if there is none."""
  import tensorflow as tf

  if not tf.io.gfile.exists(path):
    return None
  with tf.io.gfile.GFile(path) as file:
    return file.read()


def write_text(path: str, text: str) -> None:
  """Writes a file in one move: a reader sees the old text or the new one, whole.

  Raises:
    tf.errors.OpError: its directory cannot be made or written.
  """
  import tensorflow as tf

  tf.io.gfile.makedirs(os.path.dirname(path))
  with tf.io.gfile.GFile(f"{path}.new", "w") as file:
    file.write(text)
  tf.io.gfile.rename(f"{path}.new", path, overwrite=True)
