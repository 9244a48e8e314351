"""The record forms, the files, and what is said about bad ones."""

import os

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.data import records
from dat_tf.errors import UserError
from record_files import bare_pixels, example, flip_byte, gradient_image, write


class FormsTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.get_temp_dir(), "records")

  @parameterized.product(codec=["png", "jpeg"], kind=["imagenet", "tfds"])
  def test_encoded_forms(self, codec, kind):
    image = gradient_image()
    if codec == "png":
      encoded = tf.io.encode_png(image).numpy()
    else:
      encoded = tf.io.encode_jpeg(image, quality=100).numpy()
    if kind == "imagenet":
      serialized = example(
        image__encoded=encoded, image__class__label=7, image__filename=b"a.JPEG"
      )
    else:
      serialized = example(image=encoded, label=6, file_name=b"a.JPEG")
    form = records.detect_form(write(self.path, [serialized]))
    parsed, label = form.parse(tf.constant(serialized), 3)
    self.assertEqual(parsed.dtype, tf.uint8)
    self.assertEqual(label.dtype, tf.int64)
    self.assertEqual(label, 6)
    tolerance = 0 if codec == "png" else 6
    self.assertAllClose(parsed.numpy().astype(int), image.astype(int), atol=tolerance)

  def test_encoded_image_takes_the_wanted_channels(self):
    gray = gradient_image(channels=1)
    serialized = example(image=tf.io.encode_png(gray).numpy(), label=0)
    parsed, _ = records.TFDS.parse(tf.constant(serialized), 3)
    self.assertAllEqual(parsed, np.repeat(gray, 3, axis=-1))

  def test_bare_pixels(self):
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 2), np.uint8)
    serialized = bare_pixels(5, image)
    form = records.detect_form(write(self.path, [serialized]))
    parsed, label = form.parse(tf.constant(serialized), 2)
    self.assertAllEqual(parsed, image)
    self.assertEqual(label, 5)

  @parameterized.parameters((None, 4), (0, 5), (1, 4))
  def test_first_label(self, first_label, expected):
    png = tf.io.encode_png(gradient_image()).numpy()
    serialized = example(image__encoded=png, image__class__label=5)
    _, label = records.IMAGENET.parse(tf.constant(serialized), 3, first_label)
    self.assertEqual(label, expected)

  def test_unknown_form_names_what_was_found_and_what_is_known(self):
    write(self.path, [example(picture=b"", cls=1)])
    with self.assertRaisesRegex(UserError, r"records: .*cls, picture") as caught:
      records.detect_form(self.path)
    for name in ("image/encoded", "image/class/label", "image/raw", "image, label"):
      self.assertIn(name, str(caught.exception))

  def test_shape_of_the_first_image(self):
    image = gradient_image(3, 4, 1)
    png = tf.io.encode_png(image).numpy()
    write(self.path, [example(image=png, label=0)])
    self.assertEqual(records.first_image_shape(self.path, records.TFDS), (3, 4, 1))
    write(self.path, [bare_pixels(0, image)])
    self.assertEqual(records.first_image_shape(self.path, records.DAT), (3, 4, 1))
    write(self.path, [example(image=b"no image", label=0)])
    with self.assertRaisesRegex(UserError, "record 0 .* cannot be read"):
      records.first_image_shape(self.path, records.TFDS)

  @parameterized.parameters(b"", b"this is not a TFRecord file at all")
  def test_form_of_an_empty_or_foreign_file(self, content):
    with open(self.path, "wb") as file:
      file.write(content)
    with self.assertRaisesRegex(UserError, self.path):
      records.detect_form(self.path)


class FilesTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = self.get_temp_dir()

  def path(self, name: str) -> str:
    return os.path.join(self.directory, name)

  def test_match_files_sorts_and_takes_several_patterns(self):
    for name in ("b-1", "a-2", "a-1", "c"):
      write(self.path(name), [])
    patterns = f"{self.path('b-*')}, {self.path('a-?')},{self.path('a-1')}"
    expected = [self.path(name) for name in ("a-1", "a-2", "b-1")]
    self.assertEqual(records.match_files(patterns), expected)

  def test_match_files_names_the_pattern_without_a_match(self):
    write(self.path("a"), [])
    with self.assertRaisesRegex(UserError, self.path("missing-")):
      records.match_files(f"{self.path('a')},{self.path('missing-*')}")


class ExplainTest(tf.test.TestCase, parameterized.TestCase):
  """Record 2 of the second file is made bad in all ways that there are."""

  def setUp(self):
    super().setUp()
    directory = self.get_temp_dir()
    self.good = write(os.path.join(directory, "good"), map(bare_pixels, range(10)))
    self.bad = os.path.join(directory, "bad")

  def explain(self, serialized: bytes = bare_pixels(0), form=records.DAT, **kwargs):
    if not os.path.exists(self.bad):
      write(self.bad, [bare_pixels(1)] * 2 + [serialized] + [bare_pixels(1)] * 3)
    return records.explain_data_error(
      [self.good, self.bad], form, (6, 5, 3), kwargs.pop("num_classes", 10), **kwargs
    )

  def assert_names_it(self, message, *words):
    self.assertStartsWith(message, f"{self.bad}: record 2 (counted from 0) ")
    self.assertNotIn("\n", message)
    for word in words:
      self.assertIn(word, message)

  def test_good_files_are_not_blamed(self):
    self.assertIsNone(self.explain())

  def test_missing_feature(self):
    self.assert_names_it(
      self.explain(example(image__raw=b"", label=1)), "'image/shape'", "image/raw"
    )

  def test_feature_of_another_type(self):
    self.assert_names_it(
      self.explain(example(image__raw=bytes(90), image__shape=(6, 5, 3), label=b"cat")),
      "label",
    )

  def test_not_an_example(self):
    self.assert_names_it(self.explain(b"\xff\xff\xff"), "tf.train.Example")

  @parameterized.parameters(10, -1)
  def test_label_out_of_range(self, label):
    self.assert_names_it(
      self.explain(bare_pixels(label)), f"label {label} ", "[0, 10)", "--first_label"
    )

  def test_label_after_first_label_was_taken_off(self):
    message = self.explain(first_label=1)
    self.assertStartsWith(message, f"{self.good}: record 0 (counted from 0)")
    self.assertIn("label -1 ", message)

  def test_wrong_shape(self):
    self.assert_names_it(
      self.explain(bare_pixels(1, gradient_image(5, 6))), "(5, 6, 3)", "(6, 5, 3)"
    )

  def test_fewer_pixels_than_the_shape_says(self):
    self.assert_names_it(
      self.explain(example(image__raw=b"12", image__shape=(6, 5, 3), label=1)),
      "cannot be read",
    )

  def test_image_that_does_not_decode(self):
    png = tf.io.encode_png(gradient_image()).numpy()
    write(self.good, [example(image=png, label=1)] * 3)
    write(self.bad, [example(image=image, label=1) for image in (png, png, png[:40])])
    self.assert_names_it(self.explain(form=records.TFDS), "cannot be read")

  def test_corrupt_data(self):
    size = 16 + len(bare_pixels(1))
    self.explain()
    flip_byte(self.bad, 2 * size + 30)
    self.assert_names_it(self.explain(), "checksum")

  def test_truncated_file(self):
    size = 16 + len(bare_pixels(1))
    self.explain()
    with open(self.bad, "r+b") as file:
      file.truncate(3 * size - 10)
    self.assert_names_it(self.explain(), "cut off")


if __name__ == "__main__":
  tf.test.main()
