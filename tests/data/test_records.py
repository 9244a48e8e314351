"""The record forms, the files, and what is said about bad ones."""

import dataclasses
import io
import os
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.data import records, stored_image
from record_files import bare_pixels, example, flip_byte, gradient_image, write


def record_of(form: records.RecordForm, label=None, **features) -> bytes:
  """A record of any form, with or without a label."""
  image = gradient_image()
  if form.shape:
    features |= {form.image: image.tobytes(), form.shape: image.shape}
  else:
    features |= {form.image: tf.io.encode_png(image).numpy()}
  return example(**features, **{} if label is None else {form.label: label})


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
    stored, label = form.parse(tf.constant(serialized), 3)
    parsed = stored.decode()
    self.assertEqual(parsed.dtype, tf.uint8)
    self.assertEqual(label.dtype, tf.int64)
    self.assertEqual(label, 6)
    tolerance = 0 if codec == "png" else 6
    self.assertAllClose(parsed.numpy().astype(int), image.astype(int), atol=tolerance)

  def test_encoded_image_takes_the_wanted_channels(self):
    gray = gradient_image(channels=1)
    serialized = example(image=tf.io.encode_png(gray).numpy(), label=0)
    stored, _ = records.TFDS.parse(tf.constant(serialized), 3)
    self.assertAllEqual(stored.decode(), np.repeat(gray, 3, axis=-1))

  def test_bare_pixels(self):
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 2), np.uint8)
    serialized = bare_pixels(5, image)
    form = records.detect_form(write(self.path, [serialized]))
    stored, label = form.parse(tf.constant(serialized), 2)
    self.assertAllEqual(stored.decode(), image)
    self.assertEqual(label, 5)

  @parameterized.parameters((None, 4), (0, 5), (1, 4))
  def test_first_label(self, first_label, expected):
    png = tf.io.encode_png(gradient_image()).numpy()
    serialized = example(image__encoded=png, image__class__label=5)
    _, label = records.IMAGENET.parse(tf.constant(serialized), 3, first_label)
    self.assertEqual(label, expected)

  @parameterized.parameters(*records.FORMS)
  def test_a_missing_label_is_allowed_only_in_unlabeled_data(self, form):
    labeled, unlabeled = record_of(form, label=form.first_label), record_of(form)
    write(self.path, [unlabeled, labeled])
    with self.assertRaisesRegex(UserError, "have no labels.*`unlabeled_data`"):
      records.detect_form(self.path)
    found = records.detect_form(self.path, needs_label=False)
    self.assertEqual(found, dataclasses.replace(form, needs_label=False))
    for serialized, label in ((labeled, 0), (unlabeled, -1)):
      self.assertEqual(found.parse(tf.constant(serialized), 3)[1], label)
    # The first label is not taken off where there is none.
    for first_label in (0, 1):
      _, label = found.parse(tf.constant(unlabeled), 3, first_label)
      self.assertEqual(label, -1)
    with self.assertRaises(tf.errors.InvalidArgumentError):
      form.parse(tf.constant(unlabeled), 3)

  @parameterized.parameters(*records.FORMS)
  def test_soft_labels(self, form):
    soft = record_of(form, label=2, label__soft=np.float32([0.25, 0.75, 0]))
    write(self.path, [soft])
    found = records.detect_form(self.path, needs_label=False)
    self.assertEqual(found.soft_classes, 3)
    for serialized, label in ((soft, [0.25, 0.75, 0]), (record_of(form), [0, 0, 0])):
      parsed = found.parse(tf.constant(serialized), 3)[1]
      self.assertEqual(parsed.dtype, tf.float32)
      self.assertAllEqual(parsed, label)
    # Where labels are needed the soft one does not count.
    self.assertEqual(records.detect_form(self.path), form)
    _, label = form.parse(tf.constant(soft), 3)
    self.assertEqual(label, 2 - form.first_label)

  def test_right_labels(self):
    form = dataclasses.replace(records.DAT, needs_label=False)
    soft = dataclasses.replace(form, soft_classes=2)
    labels = tf.constant([-2, -1, 0, 2, 3], tf.int64)
    self.assertAllEqual(records.DAT.is_right(labels, 3), [0, 0, 1, 1, 0])
    self.assertAllEqual(form.is_right(labels, 3), [0, 1, 1, 1, 0])
    labels = [[0.3, 0.7], [0, 0], [1.5, -0.5], [0.5, 0.4], [np.nan, 1]]
    self.assertAllEqual(soft.is_right(tf.constant(labels), 2), [1, 1, 0, 0, 0])

  def test_form_by_the_first_good_record(self):
    write(self.path, [bare_pixels(0), bare_pixels(1)])
    flip_byte(self.path, 30)
    with self.assertRaisesRegex(UserError, "record 0"):
      records.detect_form(self.path)
    form = records.detect_form(self.path, skip_bad_records=True)
    self.assertEqual(form, records.DAT)
    shape = records.first_image_shape(self.path, form, skip_bad_records=True)
    self.assertEqual(shape, (6, 5, 3))

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

  @parameterized.parameters(
    ([-1, 8, 3], "says that its image has the shape .-1, 8, 3"),
    ([0, 8, 3], "shape .0, 8, 3|cannot be read"),
    ([8, 8, 5], "image of 5 channels"),
    ([8, 8, 2], "image of 2 channels"),
    ([2**40, 2**40, 3], "cannot be read"),
  )
  def test_shapes_that_no_image_has(self, shape, says):
    size = 5 * 64 if shape == [8, 8, 5] else max(1, -(-64 * shape[2] // 1))
    size = 0 if 0 in shape else size
    raw = example(image__raw=bytes(size), image__shape=np.array(shape), label=0)
    write(self.path, [raw])
    with self.assertRaisesRegex(UserError, f"record 0 .*({says})"):
      records.first_image_shape(self.path, records.DAT)

  def test_labels_that_are_all_none(self):
    for label, found in ((-1, False), (0, True)):
      write(self.path, [bare_pixels(label)] * 3)
      form = records.detect_form(self.path, needs_label=False)
      self.assertEqual(records.has_labels(self.path, form), found)

  @parameterized.parameters(("LA", 1), ("RGBA", 3))
  def test_transparency_is_left_out(self, mode, channels):
    buffer = io.BytesIO()
    PIL.Image.new(mode, (5, 4)).save(buffer, "png")
    write(self.path, [example(image=buffer.getvalue(), label=0)])
    shape = records.first_image_shape(self.path, records.TFDS)
    self.assertEqual(shape, (4, 5, channels))

  @parameterized.parameters("png", "jpeg", "gif", "bmp")
  def test_an_image_of_too_many_pixels_is_not_decoded(self, kind):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 30)).save(buffer, kind)
    write(self.path, [example(image=buffer.getvalue(), label=0)])
    with mock.patch.object(stored_image, "MOST_PIXELS", 1199):
      with self.assertRaisesRegex(UserError, "more than 1,199 pixels"):
        records.first_image_shape(self.path, records.TFDS)
      stored = records.StoredImage(tf.constant(buffer.getvalue()), None, 3)
      for call in (stored.decode, stored.size):
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "1,199 pixels"):
          tf.function(call)()
    with mock.patch.object(stored_image, "MOST_PIXELS", 1200):
      self.assertAllEqual(stored.size(), [30, 40])
      self.assertEqual(stored.decode().shape, (30, 40, 3))

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

  def test_match_files_leaves_directories_out(self):
    write(self.path("a"), [])
    os.mkdir(self.path("b"))
    self.assertEqual(records.match_files(self.path("*")), [self.path("a")])
    with self.assertRaisesRegex(UserError, r"is a directory: .*b/train-\*"):
      records.match_files(self.path("b"))

  @parameterized.parameters(
    (0, [None, None, 3], True),
    (0, [None, None], False),
    (0, [], False),
    (2, [[0.0, 0.0], [0.5, 0.5]], True),
    (2, [[0.0, 0.0]], False),
  )
  def test_whether_any_record_has_a_label(self, soft_classes, labels, expected):
    form = dataclasses.replace(
      records.DAT, needs_label=False, soft_classes=soft_classes
    )
    name = records.SOFT_LABEL if soft_classes else form.label
    name = name.replace("/", "__")
    dtype = np.float32 if soft_classes else np.int64
    features = [
      {} if label is None else {name: np.array(label, dtype)} for label in labels
    ]
    write(self.path("a"), [example(**feature) for feature in features])
    self.assertEqual(records.has_labels(self.path("a"), form), expected)
    few = records.has_labels(self.path("a"), form, number=1)
    self.assertFalse(few)

  def test_labels_that_say_none(self):
    for form, none in ((records.DAT, -1), (records.IMAGENET, 0)):
      bare = dataclasses.replace(form, needs_label=False)
      path = write(self.path("a"), [record_of(form, none)] * 3)
      self.assertFalse(records.has_labels(path, bare))
      write(path, [record_of(form, none), record_of(form, none + 1)])
      self.assertTrue(records.has_labels(path, bare))

  def test_a_damaged_record_is_for_training_to_tell_of(self):
    form = dataclasses.replace(records.DAT, needs_label=False)
    path = write(self.path("a"), [example(image__raw=b"1")] * 2)
    flip_byte(path, os.path.getsize(path) - 8)
    self.assertTrue(records.has_labels(path, form))
    write(path, [b"no example"])
    self.assertTrue(records.has_labels(path, form))

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
      self.explain(bare_pixels(label)), f"label {label} ", "[0, 10)", "`first_label`"
    )

  def test_label_after_first_label_was_taken_off(self):
    message = self.explain(first_label=1)
    self.assertStartsWith(message, f"{self.good}: record 0 (counted from 0)")
    self.assertIn("label -1 ", message)

  def test_wrong_shape(self):
    self.assert_names_it(
      self.explain(bare_pixels(1, gradient_image(5, 6))), "(5, 6, 3)", "(6, 5, 3)"
    )

  def test_wrong_channels_where_any_size_will_do(self):
    self.explain(bare_pixels(1, gradient_image(7, 9)))
    common = [self.good, self.bad], records.DAT
    self.assertIsNone(records.explain_data_error(*common, (None, None, 3), 10))
    os.remove(self.bad)
    # Grey ones become RGB.
    self.explain(bare_pixels(1, gradient_image(7, 9, 1)))
    self.assertIsNone(records.explain_data_error(*common, (None, None, 3), 10))
    os.remove(self.bad)
    self.explain(bare_pixels(1, gradient_image(7, 9, 2)))
    message = records.explain_data_error(*common, (None, None, 3), 10)
    self.assert_names_it(message, "(7, 9, 2)", "(None, None, 3)")

  def test_soft_label_that_is_no_distribution(self):
    form = dataclasses.replace(records.DAT, needs_label=False, soft_classes=3)
    bad = record_of(records.DAT, label__soft=np.float32([0.5, 0.75, 0]))
    self.assert_names_it(self.explain(bad, form, num_classes=3), "soft label", "0.75")

  def test_damage_that_is_skipped_is_of_no_concern(self):
    size = 16 + len(bare_pixels(1))
    self.explain(bare_pixels(10))
    flip_byte(self.bad, size + 30)
    message = self.explain()
    self.assertStartsWith(message, f"{self.bad}: record 1 (counted from 0) fails")
    self.assert_names_it(self.explain(skip_bad_records=True), "label 10")

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
