"""Converting images to TFRecord files: the engine that all converters share."""

import contextlib
import functools
import importlib.util
import io
import os
import resource
import threading
import time
import unittest
import unittest.mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.conversion import beam
from dat_tf.conversion import convert as conversion
from dat_tf.conversion.items import ArrayItems, Item
from record_files import read

COUNT = 23
NO_BEAM = dict.fromkeys(["apache_beam", "apache_beam.options.pipeline_options"])


def record_of_content(item, content):
  return conversion.Record(b"%d %s" % (item.label, content), item.label % 2 == 1)


class Case(tf.test.TestCase, parameterized.TestCase):
  """Two archives, and what converting them must give."""

  def setUp(self):
    super().setUp()
    self.write = conversion.write_in_threads
    self.directory = os.path.join(self.get_temp_dir(), "out")
    # Two archives whose members are of different lengths, not listed as they lie.
    self.items, self.contents = [], {}
    for number, name in enumerate(("b", "a")):
      path = os.path.join(self.get_temp_dir(), name)
      with open(path, "wb") as file:
        for member in range(COUNT // 2 + number):
          content = b"%s%d" % (name.encode(), member) * (1 + member)
          label = len(self.items)
          self.items.append(
            Item(path, file.tell(), len(content), label, f"{name}/{member}")
          )
          self.contents[label] = content
          file.write(content)
    self.items.reverse()
    self.items.sort(key=lambda item: item.label % 5)

  def convert(self, items=None, make_record=record_of_content, num_shards=5, **options):
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
      line = conversion.convert(
        self.items if items is None else items,
        make_record,
        self.directory,
        "train",
        num_shards=num_shards,
        write=self.write,
        **options,
      )
    self.progress = stderr.getvalue()
    return line

  def path(self, shard, num_shards=5):
    return os.path.join(self.directory, f"train-{shard:05d}-of-{num_shards:05d}")

  def files(self):
    """What the directory holds, by name."""
    found = {}
    for name in os.listdir(self.directory):
      with open(os.path.join(self.directory, name), "rb") as file:
        found[name] = file.read()
    return found

  def wanted(self, seed, num_shards=5):
    """What each file must hold, by the definition of the shuffle."""
    order = np.random.default_rng(seed).permutation(COUNT)
    labels = [self.items[n].label for n in order]
    return [
      [b"%d %s" % (label, self.contents[label]) for label in labels[k::num_shards]]
      for k in range(num_shards)
    ]


class ConversionTest(Case):
  @parameterized.parameters(0, 3)
  def test_every_image_once_shuffled_by_the_seed(self, seed):
    line = self.convert(seed=seed)
    self.assertEqual([read(self.path(k)) for k in range(5)], self.wanted(seed))
    self.assertEqual(
      line, f"{self.directory}/train-*: 23 images, of which 11 were encoded anew"
    )
    self.assertIn("23/23", self.progress)
    self.assertLen(os.listdir(self.directory), 5 + 1)

  def test_images_are_read_in_the_order_in_which_they_lie(self):
    seen = []

    def make_record(item, content):
      seen.append((item.path, item.offset))
      return record_of_content(item, content)

    self.convert(make_record=make_record, num_shards=1)
    self.assertEqual(seen, sorted(seen))
    self.assertEqual(read(self.path(0, 1)), self.wanted(0, 1)[0])

  def test_failure_and_resumption(self):
    self.convert()
    unbroken = self.files()
    for path in tf.io.gfile.glob(f"{self.directory}/*"):
      os.remove(path)
    calls = []

    def failing(item, content):
      calls.append(item.label)
      if len(calls) == 16:
        raise KeyboardInterrupt
      return record_of_content(item, content)

    with self.assertRaises(KeyboardInterrupt):
      self.convert(make_record=failing)
    broken = self.files()
    self.assertIn("train.json", broken)
    self.assertBetween(len(broken), 1 + 1, 1 + 4)
    self.assertLess(broken.items(), unbroken.items())  # finished ones, and no others
    written = [label for label in range(COUNT) if self.is_written(label)]

    calls.clear()
    line = self.convert(
      make_record=lambda *of: calls.append(of[0].label) or record_of_content(*of)
    )
    self.assertEqual(self.files(), unbroken)
    self.assertCountEqual(calls, set(range(COUNT)) - set(written))
    self.assertRegex(line, rf"\({len(broken) - 1:,} files were there already\)$")
    # The bar starts at what was there.
    self.assertIn("23/23", self.progress)

  def is_written(self, label):
    return any(
      record.startswith(b"%d " % label)
      for path in tf.io.gfile.glob(f"{self.directory}/train-*")
      for record in read(path)
    )

  def test_only_what_is_missing_is_written_again(self):
    self.convert()
    before = self.files()
    os.remove(self.path(3))

    def make_record(item, content):
      self.assertIn(b"%d %s" % (item.label, content), self.wanted(0)[3])
      return record_of_content(item, content)

    self.convert(make_record=make_record)
    self.assertEqual(self.files(), before)

  def test_all_there_already(self):
    self.convert()

    def make_record(*_):
      raise AssertionError("Nothing is to be made.")

    line = self.convert(make_record=make_record)
    self.assertEndsWith(line, "train-*: all 23 images were there already")

  def test_other_threads_stop_after_a_failure(self):
    waiting, failed = threading.Barrier(2, timeout=20), threading.Event()
    made = []

    def make_record(item, content):
      if len(made) < 2:
        made.append(item)
        if waiting.wait() == 0:
          failed.set()
          raise UserError("one line")
        failed.wait()
      else:
        made.append(item)
        time.sleep(0.05)  # The failure is known long before the other file is done.
      return record_of_content(item, content)

    with unittest.mock.patch.object(conversion, "num_cores", lambda: 2):
      with self.assertRaisesRegex(UserError, "^one line$"):
        self.convert(make_record=make_record, num_shards=2)
    self.assertLess(len(made), COUNT)
    self.assertEqual(os.listdir(self.directory), ["train.json"])

  @parameterized.named_parameters(
    ("seed", {"seed": 1}, "seed"),
    ("settings", {"settings": {"classes": 7}}, "classes"),
    ("files", {"num_shards": 4}, "files"),
  )
  def test_other_settings_are_refused(self, change, named):
    self.convert()
    for path in tf.io.gfile.glob(f"{self.directory}/train-*"):
      os.remove(path)  # Begun, and nothing finished.
    with self.assertRaisesRegex(UserError, rf"train.json is of other .*\({named}\)"):
      self.convert(**change)
    self.assertLen(os.listdir(self.directory), 1)

  def test_other_images_are_refused(self):
    self.convert()
    before = self.files()
    renamed = [item._replace(member=f"other/{item.member}") for item in self.items]
    for items in (self.items[1:], self.items[::-1], renamed):
      with self.assertRaisesRegex(
        UserError, r"train.json is of other .*sha256_of_list"
      ):
        self.convert(items)
    # Archives may move between the runs.
    for item in self.items[:1]:
      os.rename(item.path, f"{item.path}.moved")
    self.convert([item._replace(path=f"{item.path}.moved") for item in self.items])
    self.assertEqual(self.files(), before)

  def test_sets_of_other_origin_are_refused(self):
    self.convert()
    with self.assertRaisesRegex(UserError, "of a set of other than 4 files"):
      self.convert(num_shards=4)
    os.remove(os.path.join(self.directory, "train.json"))
    with self.assertRaisesRegex(
      UserError, "train-00000-of-00005 .* and no .*train.json"
    ):
      self.convert()

  def test_damaged_manifest(self):
    self.convert()
    for content in ("", "[]", "{"):
      with open(os.path.join(self.directory, "train.json"), "w") as file:
        file.write(content)
      with self.assertRaisesRegex(UserError, "train.json is of other"):
        self.convert()

  def test_leftovers_of_a_killed_run_go(self):
    os.mkdir(self.directory)
    for name in (".train-00001-of-00005.abc", ".trains-00001-of-00005.abc"):
      open(os.path.join(self.directory, name), "w").close()
    self.convert()
    hidden = [name for name in os.listdir(self.directory) if name.startswith(".")]
    self.assertEqual(hidden, [".trains-00001-of-00005.abc"])

  def test_fewer_images_than_files(self):
    for items in (self.items[:4], []):
      with self.assertRaisesRegex(
        UserError, f"^{len(items)} images cannot fill 5 files"
      ):
        self.convert(items)
    self.assertFalse(os.path.exists(self.directory))

  def test_full_disc(self):
    # Items 0 to 22 in one file each; the files of long records exceed the limit.
    def make_record(item, content):
      return conversion.Record(content * (1 + 40_000 * (item.label % 2)))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
      with self.assertRaisesRegex(UserError, "cannot be written .*large.*make room"):
        self.convert(make_record=make_record, num_shards=COUNT)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    partial = self.files()
    self.assertLess(len(partial), 1 + COUNT)
    self.convert(make_record=make_record, num_shards=COUNT)
    whole = self.files()
    self.assertLen(whole, 1 + COUNT)
    self.assertLess(partial.items(), whole.items())

  def test_archive_cut_off_after_it_was_listed(self):
    os.truncate(self.items[0].path, 100)
    with self.assertRaisesRegex(
      UserError, "^.*/a: a/[0-9]+ is cut off: copy .*/a again"
    ):
      self.convert()

  def test_missing_archive(self):
    os.remove(self.items[0].path)
    with self.assertRaisesRegex(UserError, "/a cannot be read .*No such file"):
      self.convert()

  def test_directory_that_cannot_be_made(self):
    open(self.directory, "w").close()
    with self.assertRaisesRegex(UserError, f"{self.directory} cannot be written"):
      self.convert()

  def test_object_stores(self):
    self.convert()
    here = self.files()
    store = "ram://conversion"
    for path in {item.path for item in self.items}:
      tf.io.gfile.copy(path, f"{store}/{os.path.basename(path)}", overwrite=True)
    items = [
      item._replace(path=f"{store}/{os.path.basename(item.path)}")
      for item in self.items
    ]
    self.directory = f"{store}/out"
    self.convert(items)
    there = {}
    for name in tf.io.gfile.listdir(self.directory):
      with tf.io.gfile.GFile(f"{self.directory}/{name}", "rb") as file:
        there[name] = file.read()
    self.assertEqual(there, here)

  def test_arrays_in_memory_and_in_a_file(self):
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 3, 1), np.uint8)
    path = os.path.join(self.get_temp_dir(), "array")
    with open(path, "wb") as file:
      file.write(b"head" + images.tobytes())
    labels = np.arange(COUNT)[::-1]
    ways = (
      (ArrayItems(COUNT, labels), functools.partial(conversion.array_record, images)),
      (
        ArrayItems(COUNT, labels, path, 4, 12),
        functools.partial(conversion.pixels_record, (4, 3, 1)),
      ),
    )
    for items, make_record in ways:
      self.directory += "_"
      self.convert(items, make_record)
      order = np.random.default_rng(0).permutation(COUNT)
      for shard in range(5):
        for record, index in zip(read(self.path(shard)), order[shard::5]):
          feature = tf.train.Example.FromString(record).features.feature
          pixels = feature["image/raw"].bytes_list.value[0]
          self.assertEqual(pixels, images[index].tobytes())
          self.assertEqual(feature["image/shape"].int64_list.value, [4, 3, 1])
          self.assertEqual(feature["label"].int64_list.value, [labels[index]])


@unittest.skipUnless(
  importlib.util.find_spec("apache_beam"), "needs Apache Beam: pip install -e '.[beam]'"
)
class BeamTest(Case):
  def setUp(self):
    super().setUp()
    self.threads = self.write
    self.write = beam.writer("DirectRunner", [])

  def test_the_same_files_as_in_threads(self):
    line = self.convert(seed=3)
    self.assertEqual([read(self.path(k)) for k in range(5)], self.wanted(3))
    self.assertEndsWith(line, "23 images, of which 11 were encoded anew")
    on_beam = self.files()
    self.directory += "_threads"
    self.write = self.threads
    self.convert(seed=3)
    self.assertEqual(self.files(), on_beam)

  def test_only_what_is_missing_is_written_again(self):
    self.convert()
    before = self.files()
    os.remove(self.path(3))
    os.utime(self.path(2), (0, 0))
    self.assertEndsWith(self.convert(), "(4 files were there already)")
    self.assertEqual(self.files(), before)
    self.assertEqual(os.path.getmtime(self.path(2)), 0)

  def test_an_error_is_one_line_and_leaves_no_half_files(self):
    os.truncate(self.items[0].path, 100)
    with self.assertRaisesRegex(
      UserError, "^.*/a: a/[0-9]+ is cut off: copy .*/a again"
    ):
      self.convert()
    self.assertEqual([n for n in os.listdir(self.directory) if n[0] == "."], [])

  def test_unknown_runner(self):
    with self.assertRaisesRegex(UserError, "^`runner=NoneSuch`: .*DirectRunner"):
      beam.writer("NoneSuch", [])

  def test_images_in_memory_are_refused(self):
    images = np.zeros((COUNT, 2, 2, 1), np.uint8)
    with self.assertRaisesRegex(UserError, "`runner` needs images that lie in files"):
      self.convert(
        ArrayItems(COUNT, None), functools.partial(conversion.array_record, images)
      )


class WithoutBeamTest(tf.test.TestCase):
  def test_threads_take_no_arguments(self):
    self.assertIs(beam.writer(None, []), conversion.write_in_threads)
    with self.assertRaisesRegex(UserError, "'--regoin=x' is no flag"):
      beam.writer(None, ["--regoin=x"])

  def test_beam_is_not_installed(self):
    with unittest.mock.patch.dict("sys.modules", NO_BEAM):
      with self.assertRaisesRegex(UserError, r"pip install 'dat-tf\[beam\]'"):
        beam.writer("DirectRunner", [])


if __name__ == "__main__":
  tf.test.main()
