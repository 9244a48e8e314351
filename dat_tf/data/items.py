"""References to images, in files, in archives and in arrays, before any is read."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from dat_tf.data.encoded import is_image
from dat_tf.errors import UserError


class Item(NamedTuple):
  """A reference to one image: where its bytes are, not the bytes themselves.

  Attributes:
    path: The file that holds the image, or an archive of which it is a part; "" if
      `offset` is an index into an array in memory.
    offset: Where the image begins in that file, in bytes.
    size: Its length in bytes; -1 is the whole file.
    label: The class, counted from 0; None if it has none.
    member: Its name in the archive or below the folder that is converted.
  """

  path: str
  offset: int
  size: int
  label: Optional[int]
  member: str

  @property
  def name(self) -> str:
    """What messages call the image."""
    return self.path if self.size < 0 else f"{self.path}: {self.member}"


@dataclasses.dataclass(frozen=True)
class ArrayItems(Sequence[Item]):
  """The images of an array, as items that are made when they are asked for.

  Attributes:
    length: How many images there are.
    labels: int [length], or None.
    path: The file that holds the array; "" for one in memory.
    start: Where the array begins in that file, in bytes.
    size: The length of one image in bytes; 1 for an array in memory.
  """

  length: int
  labels: Optional[np.ndarray]
  path: str = ""
  start: int = 0
  size: int = 1

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: Any) -> Any:
    if not 0 <= index < self.length:
      raise IndexError(index)
    label = None if self.labels is None else int(self.labels[index])
    offset = self.start + int(index) * self.size
    return Item(self.path, offset, self.size, label, f"image {index}")


def open_binary(path: str) -> IO[bytes]:
  """Opens a file to read from it; a local one without GFile's half a megabyte ahead."""
  return tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb")


@contextlib.contextmanager
def explain_failed_reading(path: str) -> Iterator[None]:
  """Turns what reading a file can raise into one line.

  Raises:
    UserError: The body raised an `OSError` or a `tf.errors.OpError`.
  """
  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    reason = getattr(error, "strerror", None) or getattr(error, "message", error)
    raise UserError(f"{path} cannot be read ({reason}): mend the path.") from error


def read_items(items: Iterable[Item]) -> Iterator[bytes]:
  """Each item's bytes; a file is opened once for all its items that are neighbours."""
  for path, neighbours in itertools.groupby(items, lambda item: item.path):
    if not path:
      yield from (b"" for _ in neighbours)
      continue
    with explain_failed_reading(path), open_binary(path) as file:
      for item in neighbours:
        if item.size >= 0:
          file.seek(item.offset)
        content = file.read(item.size) if item.size >= 0 else file.read()
        if len(content) != item.size >= 0:
          raise UserError(f"{item.name} is cut off: copy {path} again.")
        yield content


def list_folders(directory: str) -> list[str]:
  """The names of the folders in a directory, sorted, without the hidden ones.

  Raises:
    UserError: It cannot be listed.
  """
  with explain_failed_reading(directory):
    names = (name.rstrip("/") for name in tf.io.gfile.listdir(directory))
    return sorted(
      name
      for name in names
      if not name.startswith(".") and tf.io.gfile.isdir(os.path.join(directory, name))
    )


def list_images(
  directory: str, root: str, label: Optional[int] = None, recursive: bool = False
) -> list[Item]:
  """The images of a directory, known by their extensions, sorted by name.

  Args:
    directory: Where they are.
    root: Names in messages and files begin below it.
    label: The class of all of them.
    recursive: Whether those in folders below belong to them.

  Raises:
    UserError: The directory cannot be listed.
  """
  with explain_failed_reading(directory):
    if recursive:
      paths = [
        os.path.join(folder, name)
        for folder, _, names in tf.io.gfile.walk(directory)
        for name in names
      ]
    else:
      names = tf.io.gfile.listdir(directory)
      paths = [os.path.join(directory, name) for name in names]
  return [
    Item(path, 0, -1, label, path[len(root) :].lstrip("/"))
    for path in sorted(paths)
    if is_image(path)
  ]


def stratified_sample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Draws `count` indices so that every class keeps its share, as near as may be.

  Args:
    labels: int [n], the classes.
    count: From 0 to n.
    seed: Of the draw, at least 0.

  Returns:
    int [count], in ascending order.
  """
  rng = np.random.default_rng(seed)
  classes, sizes = np.unique(labels, return_counts=True)
  shares = count * sizes / len(labels)
  taken = np.floor(shares).astype(int)
  # The largest remainders get what rounding down left over.
  taken[np.argsort(taken - shares, kind="stable")[: count - taken.sum()]] += 1
  chosen = [
    rng.choice(np.flatnonzero(labels == kind), number, replace=False)
    for kind, number in zip(classes, taken)
  ]
  return np.sort(np.concatenate(chosen))
