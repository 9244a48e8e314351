"""How a TFRecord file is framed.

It is a row of records, each

    length (uint64)  crc of length (uint32)  data (length bytes)  crc of data (uint32)

with little-endian numbers and masked CRC-32C checksums.
"""

from __future__ import annotations

import struct

import tensorflow as tf

from dat_tf.errors import UserError


def _crc32c_row(value: int) -> int:
  for _ in range(8):
    value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
  return value


_CRC32C = tuple(_crc32c_row(value) for value in range(256))


def _masked_crc32c(data: bytes) -> int:
  """TFRecord's checksum: CRC-32C (Castagnoli), rotated by 15 bits, plus a number."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _CRC32C[(crc ^ byte) & 0xFF] ^ crc >> 8
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def count_records(path: str) -> int:
  """Counts a file's records from their framing, without reading their data.

  Raises:
    UserError: A length's checksum is wrong, or the file ends within a record.
  """
  size = tf.io.gfile.stat(path).length
  # GFile reaches object stores; a local file costs less without its buffer.
  remote = "://" in path
  with tf.io.gfile.GFile(path, "rb") if remote else open(path, "rb", 0) as file:
    count, offset = 0, 0
    while offset < size:
      file.seek(offset)
      header = file.read(12).ljust(12, b"\0")
      length, checksum = struct.unpack("<QI", header)
      offset += 12 + length + 4
      if _masked_crc32c(header[:8]) != checksum or offset > size:
        raise UserError(
          f"{path}: record {count} (counted from 0) is cut off or has a corrupt "
          "length; is this a whole, uncompressed TFRecord file? Write or copy it "
          "again."
        )
      count += 1
  return count
