"""Stored images, decoded whole or in part."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.data import stored_image
from dat_tf.data.stored_image import StoredImage


def smooth_image() -> np.ndarray:
  """uint8 [40, 60, 3], large enough for several blocks of a JPEG."""
  rows, columns = np.mgrid[:40, :60]
  return np.stack([2 * rows, rows + columns, 150 - columns], -1).astype(np.uint8)


class DecodingTest(tf.test.TestCase, parameterized.TestCase):
  """Against Pillow's decoder."""

  def stored(self, image: PIL.Image.Image, kind: str, channels: int):
    if kind == "bare":
      pixels = np.asarray(image)
      return StoredImage(tf.constant(pixels.tobytes()), pixels.shape, channels)
    encoded = io.BytesIO()
    image.save(encoded, kind, **{"quality": 95} if kind == "jpeg" else {})
    return StoredImage(tf.constant(encoded.getvalue()), None, channels)

  @parameterized.product(
    kind=["jpeg", "png", "bare"],
    window=[(0, 0, 40, 60), (7, 13, 20, 11), (39, 59, 1, 1)],
  )
  def test_window(self, kind, window):
    image = smooth_image()
    stored = self.stored(PIL.Image.fromarray(image), kind, 3)
    found = stored.decode_window(tf.constant(window))
    self.assertEqual(found.dtype, tf.uint8)
    top, left, height, width = window
    expected = image[top : top + height, left : left + width]
    self.assertAllClose(
      found.numpy().astype(int),
      expected.astype(int),
      atol=8 if kind == "jpeg" else 0,
    )

  @parameterized.parameters("jpeg", "png", "bmp", "gif", "bare")
  def test_size(self, kind):
    stored = self.stored(PIL.Image.fromarray(smooth_image()), kind, 3)
    self.assertEqual(stored.size().dtype, tf.int32)
    self.assertAllEqual(stored.size(), [40, 60])

  @parameterized.parameters(("L", 1), ("L", 3), ("RGB", 1), ("RGB", 3), ("CMYK", 3))
  def test_jpegs_become_rgb_or_stay_what_they_are(self, mode, channels):
    image = PIL.Image.fromarray(smooth_image()).convert(mode)
    stored = self.stored(image, "jpeg", channels)
    expected = image if channels == 1 else image.convert("RGB")
    expected = np.asarray(expected).reshape(40, 60, -1).astype(int)
    for found in (
      stored.decode(),
      stored.decode_window(tf.constant([0, 0, 40, 60])),
    ):
      self.assertAllClose(found.numpy().astype(int), expected, atol=8)


class HostileTest(tf.test.TestCase, parameterized.TestCase):
  def test_the_largest_picture_of_a_gif(self):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    first, *others = map(PIL.Image.fromarray, noise)
    first.save(buffer, "gif", save_all=True, append_images=others, comment=b"x" * 999)
    content = bytearray(buffer.getvalue())
    stored = StoredImage(tf.constant(bytes(content)), None, 3)
    self.assertAllEqual(stored.size(), [20, 30])
    last = content.rindex(b",\0\0\0\0" + bytes([30, 0, 20, 0]))
    content[last + 5 : last + 9] = b"\xff" * 4
    stored = StoredImage(tf.constant(bytes(content)), None, 3)
    with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "it has more than"):
      stored.decode()
    largest = tf.function(
      stored_image._largest_of_gif, input_signature=[tf.TensorSpec([], tf.string)]
    )
    for end in range(0, len(content), 37):  # it ends, wherever the file does
      largest(tf.constant(bytes(content[:end])))

  @parameterized.parameters(
    b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM"
  )
  def test_heads_alone(self, data):
    stored = StoredImage(tf.constant(data), None, 3)
    for call in (stored.decode, stored.size):
      with self.assertRaises(tf.errors.InvalidArgumentError):
        call()


if __name__ == "__main__":
  tf.test.main()
