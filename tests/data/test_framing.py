"""How a TFRecord file is framed."""

import os

import tensorflow as tf
from absl.testing import parameterized

from dat_tf.data import framing
from dat_tf.errors import UserError
from record_files import flip_byte, write


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
