"""Writing TFRecord files."""

import os

import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.data import records, writing
from record_files import bare_pixels, gradient_image, read, write


class WritingTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = self.get_temp_dir()

  def path(self, name: str) -> str:
    return os.path.join(self.directory, name)

  def test_image_example_writes_bare_pixels(self):
    image = gradient_image(4, 7, 1)
    written = tf.train.Example.FromString(writing.image_example(image, 3))
    self.assertEqual(written, tf.train.Example.FromString(bare_pixels(3, image)))

  def test_write_shards_deals_all_out(self):
    examples = [b"%d" % n for n in range(10)]
    paths = writing.write_shards(iter(examples), self.path("new/dir"), "train", 4)
    self.assertEqual(
      paths, [self.path(f"new/dir/train-0000{k}-of-00004") for k in range(4)]
    )
    self.assertEqual(records.match_files(self.path("new/dir/*")), paths)
    shards = [read(path) for path in paths]
    self.assertEqual([len(shard) for shard in shards], [3, 3, 2, 2])
    self.assertCountEqual(sum(shards, []), examples)

  def test_a_directory_that_no_pattern_could_name(self):
    for name in ("lr[0.1]", "what?", "all*", "a\\b", "a,b", "a\nb"):
      with self.assertRaisesRegex(UserError, "`output_dir`=.*pattern"):
        writing.write_shards([b"x"], self.path(name), "train", 1)
    self.assertEqual(os.listdir(self.directory), [])

  def test_write_shards_replaces_its_own_files_only(self):
    writing.write_shards([b"old"], self.directory, "train", 1)
    writing.write_shards([b"other"], self.directory, "test", 1)
    (path,) = writing.write_shards([b"new"], self.directory, "train", 1)
    self.assertEqual(read(path), [b"new"])
    self.assertEqual(read(self.path("test-00000-of-00001")), [b"other"])

  def test_failure_midway_leaves_the_old_files(self):
    paths = writing.write_shards([b"a", b"b", b"c"], self.directory, "train", 2)

    def failing():
      yield b"new"
      yield b"new"
      raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      writing.write_shards(failing(), self.directory, "train", 2)
    self.assertEqual([read(path) for path in paths], [[b"a", b"c"], [b"b"]])
    self.assertCountEqual(os.listdir(self.directory), map(os.path.basename, paths))

  def test_write_shards_does_not_mix_two_sets(self):
    writing.write_shards([b"a", b"b"], self.directory, "train", 2)
    with self.assertRaisesRegex(UserError, "train-00000-of-00002 is there already"):
      writing.write_shards([b"a", b"b"], self.directory, "train", 1)
    self.assertLen(os.listdir(self.directory), 2)

  def test_write_shards_says_where_it_cannot_write(self):
    write(self.path("file"), [])
    with self.assertRaisesRegex(UserError, self.path("file")):
      writing.write_shards([b"a"], self.path("file/below"), "train", 1)


if __name__ == "__main__":
  tf.test.main()
