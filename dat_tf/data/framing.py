"""How a TFRecord file is framed.

It is a row of records, each

    length (uint64)  crc of length (uint32)  data (length bytes)  crc of data (uint32)

with little-endian numbers and masked CRC-32C checksums.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, Union

import numpy as np
import tensorflow as tf

from dat_tf.base.errors import UserError

_HEADER_BYTES = 12
_FRAME_BYTES = 16
_READ_BYTES = 2**18
_AT_A_TIME = 2**12


class Segment(NamedTuple):
  """Records that lie in a row in a file.

  Attributes:
    offset: Where the first of them begins, in bytes from the start of the file.
    first: Its number in the file, from 0.
    num_records: How many they are; -1 for all up to the end of the file.
  """

  offset: int
  first: int
  num_records: int


WHOLE_FILE = Segment(0, 0, -1)


class BadRecord(NamedTuple):
  """A record that cannot be read.

  Attributes:
    number: Its number in the file, from 0.
    offset: Where it begins, in bytes from the start of the file.
    reason: What is wrong, beginning with a verb.
  """

  number: int
  offset: int
  reason: str


def _crc32c_row(value: int) -> int:
  for _ in range(8):
    value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
  return value


_CRC32C = tuple(_crc32c_row(value) for value in range(256))


def _masked_crc32c(data: Iterable[Any], table: Any = _CRC32C) -> Any:
  """TFRecord's checksum: CRC-32C (Castagnoli), rotated by 15 bits, plus a number.

  Args:
    data: Bytes; or uint32 arrays, of which the first holds the first byte of each of
      many strings, and so on.
    table: `_CRC32C`, as an array if `data` are arrays.
  """
  crc = 0xFFFFFFFF
  for byte in data:
    crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _open(path: str) -> Union[BinaryIO, tf.io.gfile.GFile]:
  # GFile reaches object stores; a local file costs less without its buffer.
  return tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb", 0)


def count_records(path: str) -> int:
  """Counts a file's records from their framing, without reading their data.

  Raises:
    UserError: A length's checksum is wrong, or the file ends within a record.
  """
  size = tf.io.gfile.stat(path).length
  with _open(path) as file:
    count, offset = 0, 0
    while offset < size:
      end = _end_of_record(file, offset, size)
      if end is None:
        raise UserError(
          f"{path}: record {count} (counted from 0) is cut off or has a corrupt "
          "length; is this a whole, uncompressed TFRecord file? Write or copy it "
          "again, or set `skip_bad_records`."
        )
      offset = end
      count += 1
  return count


def _count_good_lengths(
  file: Union[BinaryIO, tf.io.gfile.GFile], offset: int, size: int
) -> int:
  """How many records in a row have lengths that can be right, up to `_AT_A_TIME`."""
  count = 0
  while offset < size and count < _AT_A_TIME:
    end = _end_of_record(file, offset, size)
    if end is None:
      break
    count, offset = count + 1, end
  return count


def _end_of_record(
  file: Union[BinaryIO, tf.io.gfile.GFile], offset: int, size: int
) -> Union[int, None]:
  """Where the record that begins at `offset` ends; None if its length is no good."""
  file.seek(offset)
  header = file.read(_HEADER_BYTES).ljust(_HEADER_BYTES, b"\0")
  length, checksum = struct.unpack("<QI", header)
  end = offset + _FRAME_BYTES + length
  return end if _masked_crc32c(header[:8]) == checksum and end <= size else None


def data_at(path: str, offset: int) -> bytes:
  """The record that begins at an offset, of a length known to be right; unchecked.

  Of many files it is far faster than `read`, which makes a graph for each.
  """
  with _open(path) as file:
    file.seek(offset)
    (length,) = struct.unpack("<Q4x", file.read(_HEADER_BYTES))
    return file.read(length)


def read(path: Any, offset: Any, num_records: Any) -> tf.data.Dataset:
  """The serialized records of a segment, in order.

  Args:
    path: The file, a string or a string tensor [].
    offset: As in `Segment`, an integer or an int64 tensor [].
    num_records: As in `Segment`, an integer or an int64 tensor [].

  Raises:
    tf.errors.DataLossError: While it is read, at a record that fails its checksum.
  """

  def from_offset(path: tf.Tensor, offset: tf.Tensor) -> tf.data.Dataset:
    variant = tf.raw_ops.TFRecordDatasetV2(
      filenames=[path],
      compression_type="",
      buffer_size=_READ_BYTES,
      byte_offsets=[offset],
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))

  # TensorFlow 2.15 loses the offset when it copies such a dataset, which it does not do
  # with what is made inside a function.
  source = tf.data.Dataset.from_tensors((path, tf.cast(offset, tf.int64)))
  return source.flat_map(from_offset).take(num_records)


def read_while_good(path: str) -> Iterator[bytes]:
  """The records of a file, up to the first that cannot be read, or is not whole yet."""
  size = tf.io.gfile.stat(path).length
  offset = 0
  with _open(path) as file:
    while count := _count_good_lengths(file, offset, size):
      start = offset
      try:
        for record in read(path, start, count).as_numpy_iterator():
          offset += _FRAME_BYTES + len(record)
          yield record
      except tf.errors.DataLossError:
        return


def scan(path: str) -> tuple[tuple[Segment, ...], tuple[BadRecord, ...]]:
  """Reads a file from end to end, with all checksums, and parts good from bad.

  After a bad record it goes on where the next length with a right checksum stands, so
  that only the bad one is lost. A stretch of bytes without such a length counts as one
  record, for how many they were cannot be told.

  Returns:
    The good segments and the bad records, both in the order of the file.
  """
  size = tf.io.gfile.stat(path).length
  segments: list[Segment] = []
  bad: list[BadRecord] = []
  offset = number = 0
  with _open(path) as file:
    while offset < size:
      start, first = offset, number
      # TensorFlow asks for as many bytes as a length says, though the file be shorter.
      count = _count_good_lengths(file, offset, size)
      with contextlib.suppress(tf.errors.DataLossError):
        for record in read(path, start, count).as_numpy_iterator():
          offset += _FRAME_BYTES + len(record)
          number += 1
      is_bad = not count or number - first < count
      if number > first:
        if segments and sum(segments[-1][1:]) == first:
          start, first, _ = segments.pop()  # goes on
        segments.append(Segment(start, first, number - first))
      if is_bad:
        end = _end_of_record(file, offset, size)
        reason = "is cut off or has a corrupt length"
        # The record's own length may be right and bytes of it be missing, so that the
        # next one begins before this one's end.
        following = _next_record(file, offset + 1, size)
        if end is not None:
          reason, following = "fails its checksum", min(end, following)
        bad.append(BadRecord(number, offset, reason))
        offset, number = following, number + 1
  return tuple(segments), tuple(bad)


def _next_record(
  file: Union[BinaryIO, tf.io.gfile.GFile], start: int, size: int
) -> int:
  """The first offset, `start` or later, where a record begins; `size` without one."""
  table = np.array(_CRC32C, np.uint32)
  while start + _FRAME_BYTES <= size:
    file.seek(start)
    # Blocks overlap, so that every offset has a whole header in one of them.
    block = np.frombuffer(file.read(_READ_BYTES + _HEADER_BYTES - 1), np.uint8)
    columns = np.lib.stride_tricks.sliding_window_view(
      block.astype(np.uint32), _HEADER_BYTES
    ).T
    stored = sum(columns[8 + i] << np.uint32(8 * i) for i in range(4))
    for index in np.flatnonzero(_masked_crc32c(columns[:8], table) == stored):
      if _end_of_record(file, start + int(index), size) is not None:
        return start + int(index)
    start += _READ_BYTES
  return size
