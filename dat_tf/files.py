"""Files on local discs and in object stores, that are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from typing import Optional


@contextlib.contextmanager
def complete_file(path: str) -> Iterator[str]:
  """Yields a temporary path, and at the end gives the file there its name.

  If the body fails, interruption included, the temporary file goes, and a file
  already at `path` stays.
  """
  import tensorflow as tf

  directory, name = os.path.split(path)
  # The leading dot keeps it out of every pattern that begins with the name.
  temporary = os.path.join(directory, f".{name}.{uuid.uuid4().hex}")
  try:
    yield temporary
    tf.io.gfile.rename(temporary, path, overwrite=True)
  finally:
    if tf.io.gfile.exists(temporary):
      tf.io.gfile.remove(temporary)


def read_text(path: str) -> Optional[str]:
  """What the file holds, as UTF-8; None if there is none."""
  import tensorflow as tf

  if not tf.io.gfile.exists(path):
    return None
  with tf.io.gfile.GFile(path) as file:
    return file.read()


def write_text(path: str, text: str) -> None:
  """Writes a file in one move, its directory if need be.

  Raises:
    tf.errors.OpError: it cannot be written.
  """
  import tensorflow as tf

  tf.io.gfile.makedirs(os.path.dirname(path))
  with complete_file(path) as temporary, tf.io.gfile.GFile(temporary, "w") as file:
    file.write(text)


def fingerprint(path: str) -> str:
  """A hash of all that is in a file, or in the files of a directory, names included."""
  import tensorflow as tf

  digest = hashlib.sha256()
  paths = [path]
  if tf.io.gfile.isdir(path):
    walked = sorted(tf.io.gfile.walk(path))
    paths = [os.path.join(here, name) for here, _, names in walked for name in names]
  for each in sorted(paths):
    digest.update(os.path.relpath(each, path).encode())
    with tf.io.gfile.GFile(each, "rb") as file:
      while block := file.read(2**20):
        digest.update(block)
  return digest.hexdigest()[:16]
