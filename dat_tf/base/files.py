"""Files on local discs and in object stores, that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from typing import Optional

from dat_tf.base.errors import UserError, one_line

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


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


def check_name(path: str, flag: str, forbidden: str = "[]*?\\\n") -> None:
  """Makes sure that a path means itself wherever it is taken for a pattern.

  Args:
    path: of a directory that is to be written. TensorFlow takes the paths of its
      checkpoints and of SavedModels for patterns.
    flag: the setting by which the user named it, for the message.
    forbidden: what it must not hold.

  Raises:
    UserError: it holds that.
  """
  found = [character for character in forbidden if character in path]
  if found:
    raise UserError(
      f"`{flag}`={path!r} has {found[0]!r} in it, and would be taken for a pattern of "
      f"file names: choose a name without {' '.join(map(repr, forbidden))}."
    )


@contextlib.contextmanager
def explained_writing(
  path: str, remedy: str = "make room, or choose another"
) -> Iterator[None]:
  """Turns what a system says of a file that it cannot write into one line.

  Raises:
    UserError: the body raised an `OSError` or a `tf.errors.OpError`.
  """
  import tensorflow as tf

  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    raise UserError(
      f"{path} cannot be written ({one_line(error)}): {remedy}."
    ) from error


def is_refused_writing(error: Exception, directory: str) -> bool:
  """Whether an error says that a disc is full, or that nothing may be written there.

  Args:
    error: an `OSError` or a `tf.errors.OpError`.
    directory: where files were to be written.
  """
  text = str(error)
  full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
  if any(os.strerror(code) in text for code in full):
    return True
  return os.strerror(errno.EACCES) in text and directory in text


def remove_temporaries(directory: str) -> None:
  """Removes what `complete_file` leaves where a process was killed in its body."""
  import tensorflow as tf

  for name in filter(_TEMPORARY.fullmatch, names(directory)):
    tf.io.gfile.remove(os.path.join(directory, name))


def names(directory: str) -> list[str]:
  """What a directory holds, sorted; nothing if there is none."""
  import tensorflow as tf

  if not tf.io.gfile.isdir(directory):
    return []
  # Object stores end the names of folders in a slash.
  return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))


def read_text(path: str) -> Optional[str]:
  """What the file holds, as UTF-8; None if there is none.

  Raises:
    UserError: it is not UTF-8.
  """
  import tensorflow as tf

  if not tf.io.gfile.exists(path):
    return None
  with tf.io.gfile.GFile(path, "rb") as file:
    content = file.read()
  try:
    return content.decode()
  except UnicodeDecodeError as error:
    raise UserError(
      f"{path} is not UTF-8 (byte {error.start}): remove it, or copy it again."
    ) from None


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
