"""An image as a record holds it: its size by its head, and decoding, in graphs."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Optional

import tensorflow as tf

# An image decoded takes three bytes a pixel, whatever few bytes stand for it.
MOST_PIXELS = 100_000_000


class EncodedImage(NamedTuple):
  """An image in a form that TensorFlow decodes.

  Attributes:
    content: The encoded image.
    format: "JPEG" or "PNG".
    height: In pixels.
    width: In pixels.
    channels: 1 or 3; 2 or 4 in a PNG with transparency.
    reencoded: Whether `content` is other than it was found.
  """

  content: bytes
  format: str
  height: int
  width: int
  channels: int
  reencoded: bool


# What the error says of an image that is refused by its size; a regular expression.
TOO_LARGE = r"it has more than [\d,]+ pixels, the most that are read"


@dataclasses.dataclass(frozen=True)
class StoredImage:
  """An image as its record holds it, not decoded yet.

  Attributes:
    data: The encoded image (JPEG, PNG, GIF, BMP) or bare pixels, string [].
    shape: [height, width, channels] of bare pixels, int64 [3]; None if encoded.
    channels: 3 makes grey images, and encoded ones of any other kind, RGB; any other
      number keeps the channels that they have, so that no color is lost unseen.
  """

  data: tf.Tensor
  shape: Optional[tf.Tensor]
  channels: int

  def decode(self) -> tf.Tensor:
    """The whole image, uint8 [height, width, channels].

    Raises:
      tf.errors.InvalidArgumentError: When run on what is no image, or one of more than
        `MOST_PIXELS`.
    """
    if self.shape is not None:
      image = tf.reshape(tf.io.decode_raw(self.data, tf.uint8), self.shape)
      if self.channels != 3:
        return image
      return tf.repeat(image, tf.where(self.shape[2] == 1, 3, 1), axis=2)
    with tf.control_dependencies([_check_size(self._size_in_head())]):
      data = tf.identity(self.data)
    image = tf.io.decode_image(data, self._converted, expand_animations=False)
    if self.channels == 1:  # of grey and transparency, grey
      stored = tf.shape(image)[2]
      image = image[..., : stored - tf.cast(stored == 2, tf.int32)]
    return image

  @property
  def _converted(self) -> int:
    """What TensorFlow's decoders are asked for."""
    return 3 if self.channels == 3 else 0

  def size(self) -> tf.Tensor:
    """[height, width], int32 [2]; of a JPEG or PNG without decoding it.

    Raises:
      tf.errors.InvalidArgumentError: As by `decode`.
    """
    if self.shape is not None:
      return tf.cast(self.shape[:2], tf.int32)
    in_head = self._size_in_head()
    is_png = tf.strings.substr(self.data, 0, 4) == b"\x89PNG"
    says_so = tf.reduce_all(in_head > 0) & (is_png | tf.io.is_jpeg(self.data))
    with tf.control_dependencies([_check_size(in_head)]):
      size = tf.cond(
        says_so,
        lambda: in_head,
        lambda: tf.shape(self.decode())[:2],
      )
    return tf.ensure_shape(size, [2])

  def _size_in_head(self) -> tf.Tensor:
    """[height, width], int32 [2], of the largest picture in it; zeros of no image."""
    head = tf.strings.substr(self.data, 0, 26) + bytes(26)

    def starts(*marks: bytes) -> tf.Tensor:
      return tf.reduce_any(
        [tf.strings.substr(head, 0, len(mark)) == mark for mark in marks]
      )

    def numbers(
      place: int, dtype: tf.DType, *, little_endian: bool = True
    ) -> tf.Tensor:
      raw = tf.strings.substr(head, place, 2 * dtype.size)
      width_height = tf.io.decode_raw(raw, dtype, little_endian)
      return tf.abs(tf.cast(width_height[::-1], tf.int32))

    def of_other() -> tf.Tensor:
      png = numbers(16, tf.int32, little_endian=False)
      size = tf.where(starts(b"BM"), numbers(18, tf.int32), tf.zeros([2], tf.int32))
      size = tf.where(starts(b"\x89PNG\r\n\x1a\n"), png, size)
      return tf.cond(starts(b"GIF8"), lambda: _largest_of_gif(self.data), lambda: size)

    return tf.cond(
      tf.io.is_jpeg(self.data),
      lambda: tf.io.extract_jpeg_shape(self.data)[:2],
      of_other,
    )

  def decode_window(self, window: tf.Tensor) -> tf.Tensor:
    """A window of the image; of a JPEG, what lies outside is hardly worked on.

    Args:
      window: Its [top, left, height, width], int32 [4], inside the image.

    Returns:
      uint8 [height, width, channels] of the window.
    """

    def from_whole() -> tf.Tensor:
      top, left, height, width = tf.unstack(window)
      return self.decode()[top : top + height, left : left + width]

    if self.shape is not None:
      return from_whole()
    return tf.cond(
      tf.io.is_jpeg(self.data),
      lambda: tf.io.decode_and_crop_jpeg(self.data, window, self._converted),
      from_whole,
    )


def _largest_of_gif(data: tf.Tensor) -> tf.Tensor:
  """[height, width] of the largest picture of a GIF, int32 [2]; zeros without any.

  After a head of 13 bytes and a table of colours stand pictures (44, place, size, and
  perhaps a table) and extensions (33, kind), each followed by parts of at most 255
  bytes with their lengths before them, a length of 0 after the last.
  """
  contents = tf.cast(tf.io.decode_raw(data + bytes(13), tf.uint8), tf.int32)
  end = tf.size(contents) - 13

  def table(flags: tf.Tensor) -> tf.Tensor:
    return tf.where(flags >= 128, tf.bitwise.left_shift(6, flags % 8), 0)

  def step(
    place: tf.Tensor, in_parts: tf.Tensor, largest: tf.Tensor
  ) -> tuple[tf.Tensor, ...]:
    kind = contents[place]
    head = contents[place : place + 10]
    is_picture = ~in_parts & (kind == 44)
    size = tf.stack([head[7] + 256 * head[8], head[5] + 256 * head[6]])
    is_larger = is_picture & (
      tf.reduce_prod(tf.cast(size, tf.float32))
      > tf.reduce_prod(tf.cast(largest, tf.float32))
    )
    length = tf.where(is_picture, 11 + table(head[9]), tf.where(kind == 33, 2, end))
    return (
      place + tf.where(in_parts, kind + 1, length),
      tf.where(in_parts, kind > 0, True),
      tf.where(is_larger, size, largest),
    )

  start = 13 + table(contents[10])
  *_, largest = tf.while_loop(
    lambda place, *_: place < end,
    step,
    (start, tf.constant(False), tf.zeros([2], tf.int32)),
    parallel_iterations=1,
  )
  return largest


def _check_size(size: tf.Tensor) -> tf.Operation:
  pixels = tf.reduce_prod(tf.cast(size, tf.float32))
  message = f"it has more than {MOST_PIXELS:,} pixels, the most that are read"
  return tf.debugging.Assert(pixels <= MOST_PIXELS, [message])
