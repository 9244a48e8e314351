"""How a TFRecord file is framed."""

import os
import struct
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.data import framing
from record_files import flip_byte, write

SIZES = (24, 0, 300, 24, 1, 70, 24)


class ScanTest(tf.test.TestCase, parameterized.TestCase):
  """Damaged files, the records that are left read by their segments."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.records = [rng.bytes(size) for size in SIZES]
    self.path = write(os.path.join(self.get_temp_dir(), "a"), self.records)
    frames = [0, *(16 + size for size in SIZES)]
    self.offsets = [int(offset) for offset in np.cumsum(frames)]

  def replace(self, start: int, end: int, content: bytes = b"") -> None:
    with open(self.path, "rb") as file:
      data = file.read()
    with open(self.path, "wb") as file:
      file.write(data[:start] + content + data[end:])

  def check(self, left, bad):
    """Args: numbers of the records that are left; (number, offset, word) of the bad."""
    segments, found = framing.scan(self.path)
    numbers = [n for s in segments for n in range(s.first, s.first + s.num_records)]
    self.assertEqual([(b.number, b.offset) for b in found], [b[:2] for b in bad])
    for each, (_, _, word) in zip(found, bad):
      self.assertIn(word, each.reason)
    contents = [
      record
      for segment in segments
      for record in framing.read(
        self.path, segment.offset, segment.num_records
      ).as_numpy_iterator()
    ]
    self.assertEqual(contents, [self.records[number] for number in left])
    return numbers

  def test_a_good_file_is_one_segment(self):
    self.assertEqual(self.check(range(7), []), list(range(7)))
    segments, _ = framing.scan(self.path)
    self.assertEqual(segments, ((0, 0, 7),))

  def test_an_empty_file(self):
    self.replace(0, self.offsets[-1])
    self.assertEqual(framing.scan(self.path), ((), ()))

  @parameterized.product(number=[0, 2, 6], part=["length", "its checksum", "checksum"])
  def test_one_flipped_byte_costs_one_record(self, number, part):
    place = {"length": 1, "its checksum": 9, "checksum": 12 + SIZES[number]}[part]
    flip_byte(self.path, self.offsets[number] + place)
    left = [n for n in range(7) if n != number]
    word = "checksum" if part == "checksum" else "corrupt length"
    self.assertEqual(self.check(left, [(number, self.offsets[number], word)]), left)

  def test_bad_records_beside_one_another(self):
    flip_byte(self.path, self.offsets[2] + 100)
    flip_byte(self.path, self.offsets[3] + 2)
    flip_byte(self.path, self.offsets[5] + 20)
    self.check(
      [0, 1, 4, 6],
      [
        (2, self.offsets[2], "checksum"),
        (3, self.offsets[3], "corrupt length"),
        (5, self.offsets[5], "checksum"),
      ],
    )

  def test_missing_bytes_cost_one_record(self):
    self.replace(self.offsets[2] + 50, self.offsets[2] + 90)
    self.check([0, 1, 3, 4, 5, 6], [(2, self.offsets[2], "checksum")])

  def test_lengths_that_are_lost_count_as_one_record(self):
    # Records 2 and 3 are zeroed, so nothing tells that they were two.
    start, end = self.offsets[2], self.offsets[4]
    self.replace(start, end, b"\xa5" * (end - start))
    numbers = self.check([0, 1, 4, 5, 6], [(2, start, "corrupt length")])
    self.assertEqual(numbers, [0, 1, 3, 4, 5])

  @parameterized.parameters(5, 14, 37)  # Within the head, the data, the last checksum.
  def test_a_file_that_is_cut_off(self, kept):
    self.replace(self.offsets[6] + kept, self.offsets[7])
    self.check(range(6), [(6, self.offsets[6], "cut off")])

  @parameterized.parameters(2**31, 2**36, 2**62, 2**63, 2**64 - 1, 2**64 - 16)
  def test_a_length_beyond_the_file_with_a_right_checksum(self, length):
    head = struct.pack("<Q", length)
    head += struct.pack("<I", framing._masked_crc32c(head))
    start = self.offsets[2]
    self.replace(start, start + 12, head)
    self.check([0, 1, 3, 4, 5, 6], [(2, start, "corrupt length")])
    with self.assertRaisesRegex(UserError, "record 2"):
      framing.count_records(self.path)

  @parameterized.parameters(1, 2, 3, 7)
  def test_a_file_is_read_in_portions(self, portion):
    with mock.patch.object(framing, "_AT_A_TIME", portion):
      self.check(range(7), [])
      self.assertEqual(framing.scan(self.path)[0], ((0, 0, 7),))
      flip_byte(self.path, self.offsets[3] + 13)
      self.check([0, 1, 2, 4, 5, 6], [(3, self.offsets[3], "checksum")])
      self.assertLen(framing.scan(self.path)[0], 2)

  def test_a_record_longer_than_what_is_searched_at_a_time(self):
    self.records = [bytes(2**18 + n) for n in (-20, -12, -11, 5)] + [b"end"]
    for number, offset in enumerate(
      np.cumsum([0, *(16 + len(r) for r in self.records)])
    ):
      write(self.path, self.records)
      if number < 4:
        flip_byte(self.path, int(offset))
        left = [n for n in range(5) if n != number]
        self.check(left, [(number, offset, "corrupt length")])


class CountTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = self.get_temp_dir()

  def path(self, name: str) -> str:
    return os.path.join(self.directory, name)

  @parameterized.parameters(0, 1, 17)
  def test_count_records(self, count):
    path = write(self.path("a"), [b"x" * (37 * n) for n in range(count)])
    self.assertEqual(framing.count_records(path), count)

  @parameterized.parameters(5, 14, 37)  # Within the head, the data, the last checksum.
  def test_count_names_the_record_where_a_file_is_cut_off(self, kept):
    path = write(self.path("a"), [b"x" * 24] * 4)  # 40 bytes each with their frames.
    with open(path, "r+b") as file:
      file.truncate(3 * 40 + kept)
    with self.assertRaisesRegex(UserError, rf"{path}: record 3 \(counted from 0\)"):
      framing.count_records(path)

  @parameterized.parameters(2, 9)  # In the length, in its checksum.
  def test_count_names_the_record_with_a_corrupt_length(self, byte):
    path = write(self.path("a"), [b"x" * 24] * 4)
    flip_byte(path, 2 * 40 + byte)
    with self.assertRaisesRegex(UserError, rf"{path}: record 2 \(counted from 0\)"):
      framing.count_records(path)


if __name__ == "__main__":
  tf.test.main()
