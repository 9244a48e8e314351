"""References to images, in files, in archives and in arrays, before any is read."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from dat_tf.base.errors import UserError, is_text
from dat_tf.conversion.encoded import EXTENSIONS, is_image


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
    UserError: It cannot be listed, or a name in it is not UTF-8.
  """
  with explain_failed_reading(directory):
    if "://" in directory:
      listed = (name.rstrip("/") for name in tf.io.gfile.listdir(directory))
      names = [x for x in listed if tf.io.gfile.isdir(os.path.join(directory, x))]
    else:
      names = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
  for name in names:
    _check_name(directory, name)
  return sorted(name for name in names if not name.startswith("."))


def list_images(
  directory: str,
  root: str,
  label: Optional[int] = None,
  *,
  recursive: bool = False,
  left_out: Optional[collections.Counter[str]] = None,
) -> list[Item]:
  """The images of a directory, known by their extensions, sorted by name.

  Of a local one, links are followed; each file and each folder counts once, and what is
  no regular file is left out.

  Args:
    directory: Where they are.
    root: Names in messages and files begin below it.
    label: The class of all of them.
    recursive: Whether those in folders below belong to them.
    left_out: Counts what was left out, by what it is.

  Raises:
    UserError: The directory cannot be listed, or a name in it is not UTF-8.
  """
  left_out = collections.Counter() if left_out is None else left_out
  with explain_failed_reading(directory):
    if "://" not in directory:
      paths = list(_local_files(directory, left_out, recursive=recursive))
    elif recursive:
      paths = [
        os.path.join(folder, name)
        for folder, _, names in tf.io.gfile.walk(directory)
        for name in names
      ]
    else:
      names = tf.io.gfile.listdir(directory)
      paths = [os.path.join(directory, name) for name in names]
  items = []
  for path in sorted(paths):
    if is_image(path):
      items.append(Item(path, 0, -1, label, path[len(root) :].lstrip("/")))
    elif not os.path.basename(path).startswith("."):
      left_out[os.path.splitext(path)[1].lower() or "without an extension"] += 1
  return items


def say_what_was_left_out(source: str, left_out: Mapping[str, int]) -> None:
  """Prints one line, if anything was left out by `list_images`."""
  if left_out:
    what = ", ".join(f"{count:,} {kind}" for kind, count in sorted(left_out.items()))
    print(
      f"{source}: left out {what}; read are {' '.join(EXTENSIONS)}.",
      file=sys.stderr,
      flush=True,
    )


def _local_files(
  directory: str, left_out: collections.Counter[str], *, recursive: bool
) -> Iterator[str]:
  """The regular files of a folder, each once; links may go round in circles."""
  root = os.stat(directory)
  seen = {(root.st_dev, root.st_ino)}
  folders = [directory]
  while folders:
    folder = folders.pop()
    for entry in os.scandir(folder):
      _check_name(folder, entry.name)
      try:
        status = entry.stat()
      except OSError:  # a link to nothing, or to itself
        left_out["broken links"] += 1
        continue
      identity = status.st_dev, status.st_ino
      if identity in seen:
        left_out["links to what was there already"] += 1
      elif stat.S_ISREG(status.st_mode):
        seen.add(identity)
        yield entry.path
      elif not stat.S_ISDIR(status.st_mode):
        left_out["devices, pipes and sockets"] += 1
      elif recursive:
        seen.add(identity)
        folders.append(entry.path)
      elif not entry.name.startswith("."):
        left_out["folders below a class's folder"] += 1


def _check_name(folder: str, name: str) -> None:
  if not is_text(name):
    raise UserError(
      f"{folder} holds the name {name!a}, which is not UTF-8 or has a line end or "
      "control character: rename it."
    )


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
