"""What became of each example, in files that a run that was stopped goes on from.

    NAME.npz            all examples under the attack NAME, in the order of their ids
    NAME.part-I.npz     those that worker I has attacked so far

A part is written anew with each portion, and appears when it is complete. Which worker
attacked an example plays no part: it is done, whoever goes on.
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from dat_tf.base import files
from dat_tf.base.errors import UserError, one_line

Rows = Mapping[str, np.ndarray]

# What `read` raises for a file that is not as it was written.
_DAMAGES = (
  ValueError,
  EOFError,
  KeyError,
  MemoryError,
  NotImplementedError,
  RuntimeError,
  TypeError,
  struct.error,
  zipfile.BadZipFile,
  zlib.error,
)
_MOST_BYTES = 2**28

_COLUMNS = {
  "example_id": np.int64,
  "label": np.int32,
  "prediction": np.int32,
  "norm": np.float32,
  "attack": np.int32,
  "adversarial_prediction": np.int32,
}


@dataclasses.dataclass(frozen=True)
class Store:
  """The outcomes of one attack in a directory.

  Attributes:
    directory: where the files are; made when the first is written.
    name: the attack's.
    sequence: the names of the attacks that it consists of.
    ball: the norm that bounds perturbations, linf, l2 or l1.
    epsilon: their largest norm.
    fingerprint: of all that outcomes depend on. What has another is not looked at, and
      replaced by `merge`.
  """

  directory: str
  name: str
  sequence: Sequence[str]
  ball: str
  epsilon: float
  fingerprint: str

  def rows(self) -> Rows:
    """All examples that are done, whichever worker did them, by ascending id."""
    found = [self._read(path) for path in (self._path, *self._parts())]
    return _joined([rows for rows in found if rows is not None])

  def add(self, worker: int, rows: Rows) -> None:
    """Adds examples to the part of a worker, which is the only one to write to it.

    Raises:
      UserError: it cannot be written.
    """
    path = self._part(worker)
    self._write(path, _joined([self._read(path) or _joined([]), rows]))

  def merge(self, count: int) -> Rows:
    """Joins all parts, once all workers are done.

    Args:
      count: the examples that were asked for, the first by their ids. If an earlier
        run had more, the rest stays in a part.

    Returns:
      Their rows, by ascending id.

    Raises:
      UserError: some are missing, or the file cannot be written.
    """
    rows, parts = self.rows(), self._parts()
    if len(rows["example_id"]) < count:
      raise UserError(
        f"{self.directory} holds {len(rows['example_id'])} of {count} examples under "
        f"{self.name}: it must be one directory that all workers share."
      )
    rest = {name: column[count:] for name, column in rows.items()}
    rows = {name: column[:count] for name, column in rows.items()}
    if len(rest["example_id"]):
      self._write(self._part("rest"), rest)
    self._write(self._path, rows)
    for path in parts:
      if not (len(rest["example_id"]) and path == self._part("rest")):
        tf.io.gfile.remove(path)
    return rows

  @property
  def _path(self) -> str:
    return os.path.join(self.directory, f"{self.name}.npz")

  def _part(self, worker: Any) -> str:
    return os.path.join(self.directory, f"{self.name}.part-{worker}.npz")

  def _parts(self) -> list[str]:
    return sorted(tf.io.gfile.glob(self._part("*")))

  def _read(self, path: str) -> Optional[Rows]:
    table = read(path)
    if table is None or str(table["fingerprint"]) != self.fingerprint:
      return None
    return {name: table[name] for name in _COLUMNS}

  def _write(self, path: str, rows: Rows) -> None:
    common = {
      "sequence": np.array(self.sequence),
      "ball": np.array(self.ball),
      "epsilon": np.float32(self.epsilon),
      "fingerprint": np.array(self.fingerprint),
    }
    write(path, {**rows, **common})


def _joined(tables: Sequence[Rows]) -> Rows:
  """The rows of all, each example once, by ascending id."""
  columns = {
    name: np.concatenate([np.zeros(0, dtype), *(rows[name] for rows in tables)]).astype(
      dtype
    )
    for name, dtype in _COLUMNS.items()
  }
  _, first = np.unique(columns["example_id"], return_index=True)
  return {name: column[first] for name, column in columns.items()}


def robust(rows: Rows) -> np.ndarray:
  """Whether each example withstood: right as it is, and under attack; bool [N]."""
  return rows["adversarial_prediction"] == rows["label"]


def read(path: str) -> Optional[dict[str, np.ndarray]]:
  """The arrays of a file, by name; None if there is none.

  Raises:
    UserError: it is no whole .npz file of plain arrays, or too large a one.
  """
  if not tf.io.gfile.exists(path):
    return None
  try:
    with tf.io.gfile.GFile(path, "rb") as file:
      content = io.BytesIO(file.read())
    with zipfile.ZipFile(content) as archive:
      size = sum(info.file_size for info in archive.infolist())
    if size > _MOST_BYTES:
      raise ValueError(f"it unpacks to {size:,} bytes")
    with np.load(content, allow_pickle=False) as data:
      arrays = dict(data)
    arrays["fingerprint"]  # all that are written have one
    return arrays
  except _DAMAGES as error:
    raise UserError(
      f"{path} cannot be read ({one_line(error)}): remove it; what it held is measured "
      "again."
    ) from None


def write(path: str, arrays: Mapping[str, Any]) -> None:
  """Writes arrays in one move, the directory if need be.

  Raises:
    UserError: they cannot be written.
  """
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  remedy = "make room, and start again; it goes on with the examples that are missing"
  with files.explained_writing(path, remedy):
    tf.io.gfile.makedirs(os.path.dirname(path))
    with files.complete_file(path) as temporary:
      with tf.io.gfile.GFile(temporary, "wb") as file:
        file.write(buffer.getvalue())
