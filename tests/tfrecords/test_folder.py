"""The converter of class/image folders."""

import io
import os

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import parameterized
from PIL import Image

from builders import (
  call,
  encode,
  mean_difference,
  photograph,
  read_canonical,
  records,
)
from dat_tf.base.errors import UserError


class FolderTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.source = os.path.join(self.get_temp_dir(), "source")
    self.output = os.path.join(self.get_temp_dir(), "out")
    self.images = {}

  def add(self, path, content):
    """Puts a file into the source."""
    whole = os.path.join(self.source, path)
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    with open(whole, "wb") as file:
      file.write(content)
    self.images[path] = content

  def add_classes(self, folder="", start=0, count=4):
    for label, name in enumerate(("zebra", "Ant", "bee one")):
      for number in range(count * (1 + (name == "zebra"))):
        name_of_image = f"{folder}{name}/{folder.rstrip('/')}{label}_{number}.jpg"
        self.add(name_of_image, encode(photograph(start + 20 * label + number)))

  def build(self, *arguments):
    return call(
      "build_folder",
      f"--source={self.source}",
      f"--output_dir={self.output}",
      "--num_shards=2",
      *arguments,
    )

  def assert_written(self, split, paths):
    classes = ["Ant", "bee one", "zebra"]  # in the order of their bytes
    found = read_canonical(self.output, split)
    self.assertCountEqual(found, map(os.path.basename, paths))
    for path in paths:
      one = found[os.path.basename(path)]
      name = path.split("/")[-2]
      self.assertEqual(one["class/text"], name)
      self.assertEqual(one["class/label"], 1 + classes.index(name))
      self.assertEqual(one["encoded"], self.images[path])
    with open(os.path.join(self.output, "classes.txt")) as file:
      self.assertEqual(file.read().splitlines(), classes)

  def test_fewer_images_than_files(self):
    self.add_classes("train/")
    for number, name in enumerate(("zebra", "Ant", "bee one")):
      self.add(f"test/{name}/{number}.jpg", encode(photograph(90 + number)))
    self.build("--num_shards=16")
    files = sorted(os.listdir(self.output))
    self.assertIn("train-00015-of-00016", files)
    self.assertIn("test-00002-of-00003", files)

  @parameterized.parameters(
    ("val", "validation"),
    ("validation", "validation"),
    ("Valid", "validation"),
    ("test", "test"),
    ("TESTING", "test"),
  )
  def test_split_folders(self, folder, split):
    self.add_classes("train/")
    self.add_classes(f"{folder}/", 100, 1)
    self.build()
    for start, its_split in (("train", "train"), (folder, split)):
      paths = [path for path in self.images if path.startswith(f"{start}/")]
      self.assert_written(its_split, paths)
    self.assertLen(os.listdir(self.output), 2 + 2 + 2 + 1)

  def test_training_and_testing_in_capitals(self):
    self.add_classes("Training/")
    self.add_classes("Testing/", 100, 1)
    self.build()
    for folder, split in (("Training", "train"), ("Testing", "test")):
      paths = [path for path in self.images if path.startswith(f"{folder}/")]
      self.assert_written(split, paths)

  def test_what_is_left_out_is_said(self):
    self.add_classes()
    self.add("Ant/a.avif", b"")
    self.add("Ant/below/a.png", b"")
    _, stderr = self.build()
    self.assertRegex(
      stderr, "source: left out 1 .avif, 1 folders below a class's folder"
    )
    self.add("cat/more/a.png", b"")
    with self.assertRaisesRegex(UserError, "cat holds no image, but 1 folders below"):
      self.build()

  def test_bad_images_are_all_named_or_left_out(self):
    self.add_classes()
    good = list(self.images)
    for name in ("Ant/bad.jpg", "zebra/worse.png"):
      self.add(name, b"no image")
    named = "2 images cannot be read: .*/Ant/bad.jpg is .*; .*/zebra/worse.png .*: put"
    with self.assertRaisesRegex(UserError, f"{named} .*`skip_bad_images`"):
      self.build("--test_fraction=0")
    stdout, stderr = self.build("--test_fraction=0", "--skip_bad_images")
    for name in ("Ant/bad.jpg", "zebra/worse.png"):
      self.assertRegex(stderr, f"Left out: .*{name} is no readable image")
    self.assertRegex(stdout, r"train-\*: 16 images, 2 bad ones were left out")
    self.assert_written("train", good)

  def test_ppm(self):
    self.add_classes()
    self.add("Ant/a.ppm", encode(photograph(3), "PPM"))
    self.build("--test_fraction=0")
    one = read_canonical(self.output, "train")["a.ppm"]
    self.assertAllEqual(tf.io.decode_png(one["encoded"]), photograph(3))

  def test_an_image_of_too_many_pixels(self):
    self.add_classes()
    huge = Image.new("1", (13_000, 13_000))
    for form, extension in (("PNG", "png"), ("TIFF", "tif"), ("JPEG", "jpg")):
      options = {"compression": "group4"} if form == "TIFF" else {}
      image = huge.convert("L") if form == "JPEG" else huge
      name = f"Ant/huge.{extension}"
      self.add(name, encode(image, form, **options))
      self.output += "_"
      with self.assertRaisesRegex(UserError, "13,000 x 13,000 pixels, and at most"):
        self.build("--test_fraction=0")
      os.remove(os.path.join(self.source, name))

  def test_test_images_are_drawn_from_every_class(self):
    self.add_classes(count=10)
    drawn = []
    for seed in (0, 0, 1):
      self.output += "_"
      self.build("--test_fraction=0.2", f"--seed={seed}")
      in_test = read_canonical(self.output, "test")
      labels = [one["class/label"] for one in in_test.values()]
      self.assertAllEqual(np.bincount(labels), [0, 2, 2, 4])
      in_train = read_canonical(self.output, "train")
      self.assertLen(in_train, 40 - 8)
      self.assertEmpty(in_train.keys() & in_test.keys())
      drawn.append(set(in_test))
      tests = [path for path in self.images if os.path.basename(path) in in_test]
      self.assert_written("test", tests)
    self.assertEqual(drawn[0], drawn[1])
    self.assertNotEqual(drawn[0], drawn[2])

  def test_no_test_images(self):
    self.add_classes()
    self.build("--test_fraction=0")
    self.assert_written("train", list(self.images))
    self.assertEmpty([n for n in os.listdir(self.output) if n.startswith("test")])

  def test_formats(self):
    photo, grey = photograph(1), photograph(2).convert("L")
    frames = [photograph(3), photograph(4)]
    palette = photograph(5).convert("P", palette=Image.Palette.ADAPTIVE)
    # Name, image, its form, the form written, channels, the greatest mean difference.
    cases = [
      ("rgb.jpg", photo, "JPEG", "JPEG", 3, 3),
      ("grey.JPG", grey, "JPEG", "JPEG", 1, 3),
      ("rgb.png", photo, "PNG", "PNG", 3, 0),
      ("alpha.png", photo.convert("RGBA"), "PNG", "PNG", 4, 0),
      ("lossless.webp", photo, "WEBP", "PNG", 3, 0),
      ("rgb.tif", photo, "TIFF", "PNG", 3, 0),
      ("grey.tiff", grey, "TIFF", "PNG", 1, 0),
      ("rgb.bmp", photo, "BMP", "PNG", 3, 0),
      ("palette.gif", palette, "GIF", "PNG", 3, 0),
      ("webp_named.jpeg", photo, "WEBP", "PNG", 3, 0),
      ("cmyk.jpeg", photo.convert("CMYK"), "JPEG", "JPEG", 3, 6),
    ]
    for name, image, form, *_ in cases:
      options = {"lossless": True} if form == "WEBP" else {}
      self.add(f"only/{name}", encode(image, form, **options))
    moving = io.BytesIO()
    frames[0].save(
      moving, "WEBP", save_all=True, append_images=frames[1:], lossless=True
    )
    self.add("only/moving.webp", moving.getvalue())
    cases.append(("moving.webp", frames[0], "WEBP", "PNG", 3, 0))
    stdout, _ = self.build("--test_fraction=0")
    self.assertIn("12 images, of which 8 were encoded anew", stdout)
    found = read_canonical(self.output, "train")
    self.assertLen(found, len(cases))
    for name, image, _, form, channels, tolerance in cases:
      with self.subTest(name):
        one = found[name]
        self.assertEqual((one["format"], one["channels"]), (form, channels))
        self.assertEqual(one["colorspace"], "Grayscale" if channels == 1 else "RGB")
        self.assertEqual((one["height"], one["width"]), (24, 32))
        written = Image.open(io.BytesIO(one["encoded"]))
        self.assertEqual(written.format, form)
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        self.assertEqual(written.mode, mode)
        wanted = image.convert("RGB").convert(mode) if mode != "L" else image
        self.assertLessEqual(mean_difference(written, wanted), tolerance)

  def test_tfds_reads_the_records(self):
    self.add_classes()
    self.build("--test_fraction=0")
    features = tfds.features.FeaturesDict(
      {
        "image": {
          "encoded": tfds.features.Image(encoding_format="jpeg"),
          "height": tf.int64,
          "class": {"label": tf.int64, "text": tfds.features.Text()},
        }
      }
    )
    read = [
      features.deserialize_example(one)["image"]
      for one in records(self.output, "train")
    ]
    self.assertLen(read, 16)
    for one in read:
      self.assertEqual(one["encoded"].shape, (one["height"], 32, 3))
      classes = [b"Ant", b"bee one", b"zebra"]
      self.assertEqual(classes[one["class"]["label"] - 1], one["class"]["text"])

  def test_other_files_and_hidden_ones_are_passed_over(self):
    self.add_classes()
    images = list(self.images)
    for path in ("Ant/.hidden.jpg", "Ant/readme.txt", ".git/a.jpg", "readme.jpg"):
      self.add(path, b"")
    self.build("--test_fraction=0")
    self.assert_written("train", images)

  def assert_refused(self, pattern, *arguments):
    with self.assertRaisesRegex(UserError, pattern):
      self.build(*arguments)
    self.assertFalse(os.path.exists(self.output))

  def test_nothing_there(self):
    self.assert_refused("source cannot be read")
    os.mkdir(self.source)
    self.assert_refused("source holds no folders CLASS with images")
    self.add("a.jpg", b"")
    self.assert_refused("source holds no folders CLASS with images")

  def test_class_without_an_image(self):
    self.add_classes()
    self.add("cat/readme.txt", b"")
    self.assert_refused("source/cat holds no image")

  def test_splits_of_different_classes(self):
    self.add_classes("train/")
    self.add_classes("test/", 100)
    self.add("test/cat/a.jpg", encode(photograph(0)))
    self.assert_refused("the class cat is in one of train and test only")

  def test_two_folders_for_validation(self):
    for folder in ("train", "val", "validation"):
      self.add_classes(f"{folder}/")
    self.assert_refused("both val and validation")

  @parameterized.parameters(
    (b"", "jpg"), (b"text", "jpg"), (b"\xff\xd8\xff\xe0 no more", "jpg")
  )
  def test_unreadable_image(self, content, extension):
    self.add_classes()
    self.add(f"Ant/bad.{extension}", content)
    with self.assertRaisesRegex(UserError, "source/Ant/bad.jpg is no readable image"):
      self.build("--test_fraction=0")

  def test_image_cut_off(self):
    self.add_classes()
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"):
      with self.subTest(form):
        content = encode(photograph(0), form)
        self.add("Ant/bad.jpg", content[: len(content) * 2 // 3])
        with self.assertRaisesRegex(
          UserError, r"bad.jpg is no readable image \(.+\): put"
        ):
          self.build("--test_fraction=0")

  def test_more_than_8_bits(self):
    self.add_classes()
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    self.add("Ant/deep.tif", encode(deep, "TIFF"))
    with self.assertRaisesRegex(UserError, r"deep.tif .*more than 8 bits"):
      self.build("--test_fraction=0")

  def test_resumed_after_the_image_was_mended(self):
    self.add_classes()
    good = self.images["Ant/1_0.jpg"]
    self.add("Ant/1_0.jpg", good[:100])
    with self.assertRaisesRegex(UserError, "Ant/1_0.jpg is no readable image"):
      self.build("--test_fraction=0")
    self.add("Ant/1_0.jpg", good)
    self.build("--test_fraction=0")
    self.assert_written("train", list(self.images))


if __name__ == "__main__":
  tf.test.main()
