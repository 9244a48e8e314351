"""Images inside archives, found without unpacking: tar, .npz, and pickled arrays."""

from __future__ import annotations

import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from typing import IO, Any, NamedTuple, Optional

import numpy as np

from dat_tf.base.errors import UserError
from dat_tf.conversion.items import explain_failed_reading, open_binary

_PORTION = 2**24  # bytes that are read at a time
# Times as many bytes that a compressed array of images may have at most. Photographs
# have twice as many, drawings on black ten times; 1,032 is the most of which the
# format is capable.
_MOST_GROWTH = 100
_BLOCK = 512  # bytes; a tar consists of such blocks and ends with blocks of zeros


class Member(NamedTuple):
  """A regular file in a tar: its name, and where its content lies, in bytes."""

  name: str
  offset: int
  size: int


def tar_members(
  file: IO[bytes], name: str, start: int = 0, size: Optional[int] = None
) -> Iterator[Member]:
  """Lists a tar by its headers; the members' content is not read.

  Args:
    file: Holds the tar, open for reading; its position may change between members.
    name: What messages call the tar.
    start: Where the tar begins in the file, in bytes, if it is part of another one.
    size: Its length in bytes; None is as far as the file goes.

  Yields:
    The regular files, with offsets that count from the beginning of `file`.

  Raises:
    UserError: It is compressed or no tar; a member is a link, or has an absolute path
      or one with `..` in it; or, after the last member, it is cut off, even if between
      two members.
  """
  file.seek(0, os.SEEK_END)
  end = file.tell() if size is None else start + size
  file.seek(start)
  if file.read(2) == b"\x1f\x8b":
    raise UserError(
      f"{name} is compressed, and its images cannot be read in place: unpack it with "
      "gunzip first."
    )
  cut_off = UserError(f"{name} is cut off or damaged: copy it again.")
  file.seek(start)
  try:
    tar = tarfile.open(fileobj=file, mode="r:")
  except tarfile.TarError as error:
    raise UserError(f"{name} is no tar archive ({error}).") from error
  try:
    while (member := tar.next()) is not None:
      tar.members = []  # type: ignore[attr-defined]  # They would fill the memory.
      _check_member(member, name)
      if member.isreg():
        yield Member(member.name, member.offset_data, member.size)
  except tarfile.TarError:
    raise cut_off from None
  # `tarfile` stops at the end of the file, or at what is no header, without a word; and
  # a tar within another that has lost its end runs on into what follows it.
  file.seek(tar.offset)
  if tar.offset + _BLOCK > end or file.read(_BLOCK).strip(b"\0"):
    raise cut_off


def _check_member(member: tarfile.TarInfo, tar: str) -> None:
  if member.name.startswith("/") or ".." in member.name.split("/"):
    raise UserError(
      f"{tar} holds '{member.name}', a path that leads out of it: use a copy from a "
      "source that you trust."
    )
  if not (member.isreg() or member.isdir()) or member.issparse():
    raise UserError(
      f"{tar}: {member.name} is a link, a device or sparse: make the archive anew of "
      "plain files."
    )


def read_at_most(read: Callable[[int], bytes], most: int, name: str) -> bytes:
  """All that a file's `read` gives, of a compressed file what it is unpacked to.

  Raises:
    UserError: That is more than `most` bytes.
  """
  parts, size = [], 0
  while part := read(_PORTION):
    parts.append(part)
    size += len(part)
    if size > most:
      raise UserError(
        f"{name} holds over {most:,} bytes: is it the file that is meant?"
      )
  return b"".join(parts)


def read_members(
  file: IO[bytes], name: str, wanted: Container[str], most: int
) -> dict[str, bytes]:
  """Reads files out of a tar, compressed or not.

  Args:
    file: Holds the tar.
    name: What messages call it.
    wanted: The files' names, without folders.
    most: Bytes that a file in it may have; all together 16 times as many.

  Returns:
    What those hold that are there, by name. Of links, devices and the like no notice
    is taken.

  Raises:
    UserError: A file is too large.
    tarfile.TarError: It is no whole tar; or what reading and decompression raise.
  """
  found, total = {}, 0
  with tarfile.open(fileobj=file, mode="r:*") as tar:
    for member in tar:
      # Before it is passed over, for which a compressed one is unpacked.
      total += max(member.size, 0)
      if member.size > most or total > 16 * most:
        raise UserError(
          f"{name} unpacks to more than {most:,} bytes a file, or {16 * most:,} "
          "together: is it the file that is meant?"
        )
      base = os.path.basename(member.name)
      if member.isreg() and not member.issparse() and base in wanted:
        content = tar.extractfile(member)
        assert content is not None  # only links and folders have none
        found[base] = content.read()
  return found


class ArrayInFile(NamedTuple):
  """An array of bytes that lies in a file as it is.

  Attributes:
    path: The file.
    offset: Where the array's first value lies in it, in bytes.
    shape: The array's.
  """

  path: str
  offset: int
  shape: tuple[int, ...]


def open_npz(path: str, *names: str) -> dict[str, Any]:
  """Reads arrays of an .npz file; large ones of bytes are found, not read, if they can.

  Args:
    path: The file.
    *names: Those arrays that are wanted.

  Returns:
    The wanted arrays that are there, by name: `ArrayInFile` for what is of type uint8,
    of four dimensions and not compressed, NumPy arrays for the rest.

  Raises:
    UserError: It is no .npz file, or damaged, or an array in it is of objects.
  """
  arrays: dict[str, Any] = {}
  try:
    with explain_failed_reading(path), open_binary(path) as file:
      with zipfile.ZipFile(file) as archive:
        for name in names:
          if f"{name}.npy" not in archive.namelist():
            continue
          info = archive.getinfo(f"{name}.npy")
          _check_unpacked(info)
          with archive.open(info) as member:
            arrays[name] = _in_place(file, path, info, member)
          # From its begin to its end: so its checksum is looked at.
          with archive.open(info) as member:
            if arrays[name] is None:
              arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
            while member.read(_PORTION):
              pass
  except MemoryError:
    raise UserError(
      f"{path} does not fit into memory, and it is compressed: write it again by "
      "numpy.savez, which leaves it as it is."
    ) from None
  except (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,  # it is encrypted
    struct.error,
  ) as error:
    raise UserError(
      f"{path} is no whole .npz file of plain arrays ({error}): copy it again."
    ) from error
  return arrays


def _check_unpacked(info: zipfile.ZipInfo) -> None:
  """Raises ValueError for what grows as no images do when it is unpacked."""
  if info.file_size > max(_MOST_GROWTH * info.compress_size, _PORTION):
    raise ValueError(
      f"{info.filename} unpacks from {info.compress_size:,} to {info.file_size:,} bytes"
    )


def _in_place(
  file: IO[bytes], path: str, info: zipfile.ZipInfo, member: IO[bytes]
) -> Optional[ArrayInFile]:
  """Where a member's array lies in the file, if it lies there as bytes of images."""
  version = np.lib.format.read_magic(member)
  read_header = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }.get(version)
  if read_header is None or info.compress_type != zipfile.ZIP_STORED:
    return None
  shape, fortran_order, dtype = read_header(member)
  if dtype != np.uint8 or fortran_order or len(shape) != 4:
    return None
  header_size = member.tell()
  if header_size + int(np.prod(shape, dtype=np.int64)) != info.file_size:
    raise ValueError(f"{info.filename} is of another length than it says")
  # The name and the extra field before the content may differ from the directory's.
  file.seek(info.header_offset + 26)
  name_size, extra_size = struct.unpack("<2H", file.read(4))
  content = info.header_offset + 30 + name_size + extra_size
  return ArrayInFile(path, content + header_size, shape)


class _PickledDtype:
  """Stands for `numpy.dtype` while a pickle is read: a type of plain numbers."""

  def __init__(self, code: str, *_: Any) -> None:
    if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"):
      raise pickle.UnpicklingError(f"an array of type {code!r:.20}")
    self.dtype = np.dtype(code)

  def __setstate__(self, state: tuple) -> None:
    if state[1] in ("<", ">"):
      self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray:
  """Stands for `numpy.ndarray` while a pickle is read; makes one of its plain bytes.

  So none of NumPy's own code sees what the pickle says of types and sizes.
  """

  def __init__(self, *_: Any) -> None:
    self.array = np.empty(0)

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, fortran_order, data = state
    content = data.encode("latin1") if isinstance(data, str) else data
    self.array = _array(content, dtype, shape, "F" if fortran_order else "C")


def _array(
  content: Any, dtype: _PickledDtype, shape: tuple[int, ...], order: Any
) -> np.ndarray:
  return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


def _from_buffer(*arguments: Any) -> _PickledArray:
  made = _PickledArray()
  made.array = _array(*arguments)
  return made


def _latin1(text: str, encoding: str) -> bytes:
  """How Python 3 writes bytes into pickles that Python 2 can read."""
  if encoding != "latin1":
    raise pickle.UnpicklingError(f"bytes encoded as {encoding!r:.20}")
  return text.encode("latin1")


# NumPy 2 calls the module numpy._core.
_ADMITTED: dict[tuple[str, str], Any] = {
  ("numpy", "ndarray"): _PickledArray,
  ("numpy", "dtype"): _PickledDtype,
  ("_codecs", "encode"): _latin1,
} | {
  (f"numpy.{core}.{module}", name): stand_in
  for core in ("core", "_core")
  for module, name, stand_in in (
    ("multiarray", "_reconstruct", _PickledArray),
    ("numeric", "_frombuffer", _from_buffer),
  )
}


# The one in Python: that in C makes room for 2^31 objects if a damaged pickle numbers
# one so.
class _ArrayUnpickler(pickle._Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ADMITTED:
      raise pickle.UnpicklingError(
        f"it asks for {module}.{name}, which is no part of an array"
      )
    return _ADMITTED[module, name]


def load_pickled_arrays(file: IO[bytes], name: str) -> dict[str, Any]:
  """Reads a pickled dictionary of arrays without running anything that it brings.

  Args:
    file: Holds the pickle; Python 2's and 3's are read.
    name: What messages call it.

  Returns:
    The dictionary: NumPy arrays of plain numbers, and what pickle knows by itself
    (numbers, text, lists). Keys that are bytes become text.

  Raises:
    UserError: It asks for any class or function but those of which NumPy arrays are
      made, or it is no whole pickle of a dictionary.
  """
  try:
    # Python 2's byte strings become text, character by byte.
    loaded = _ArrayUnpickler(file, encoding="latin1").load()
  except UserError:
    raise
  except Exception as error:  # A damaged pickle can raise anything.
    raise UserError(
      f"{name} is refused as a pickle of arrays ({error or type(error).__name__}): use "
      "the published file."
    ) from error
  if not isinstance(loaded, dict):
    raise UserError(
      f"{name} holds a {type(loaded).__name__} where a dictionary of arrays is "
      "expected: use the published file."
    )
  return {
    key.decode("latin1") if isinstance(key, bytes) else str(key): (
      value.array if isinstance(value, _PickledArray) else value
    )
    for key, value in loaded.items()
  }
