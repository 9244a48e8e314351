"""Encoded images: are they readable, and encoding anew those that readers mistake."""

from __future__ import annotations

import io
import struct

import numpy as np
import tensorflow as tf
from PIL import Image

from dat_tf.base.errors import UserError, one_line
from dat_tf.data.stored_image import MOST_PIXELS, EncodedImage

# Extensions, in lower case, of the files that converters take for images.
EXTENSIONS = (
  ".jpg",
  ".jpeg",
  ".jpe",
  ".jfif",
  ".png",
  ".gif",
  ".bmp",
  ".webp",
  ".tif",
  ".tiff",
  ".ppm",
  ".pgm",
  ".pbm",
  ".pnm",
  ".jp2",
)


class BadImage(UserError):
  """An image that cannot be read, named in the message."""


def is_image(name: str) -> bool:
  """Whether a file name has an image's extension and is not a hidden file's."""
  basename = name.rsplit("/", 1)[-1]
  return basename.lower().endswith(EXTENSIONS) and not basename.startswith(".")


def check_image(content: bytes, name: str, *, rgb_jpeg: bool = False) -> EncodedImage:
  """Decodes an image to be sure that it can be read, and encodes it anew if need be.

  JPEG and PNG stay as they are; but a JPEG in four colours (CMYK or YCCK), which
  readers take for different images, becomes one in RGB, of quality 100. Any other
  format that Pillow reads becomes a PNG. The content tells the format, not the name.

  Args:
    content: The encoded image.
    name: What messages call it.
    rgb_jpeg: Whether a PNG, and any other format, becomes a JPEG too, and all are
      taken to be in RGB, as canonical ImageNet readers decode them.

  Raises:
    BadImage: The image cannot be read.
  """
  try:
    if content.startswith(b"\xff\xd8\xff"):
      height, width, channels = tf.io.extract_jpeg_shape(content).numpy().tolist()
      _check_size(width, height)
      in_cmyk = channels == 4
      pixels = tf.io.decode_jpeg(content, channels=3 if rgb_jpeg or in_cmyk else 0)
      return _jpeg(pixels) if in_cmyk else _described(content, "JPEG", pixels)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
      _check_size(*struct.unpack(">2I", content[16:24].ljust(8, b"\0")))
      pixels = tf.io.decode_png(content, channels=3 if rgb_jpeg else 0)
      return _jpeg(pixels) if rgb_jpeg else _described(content, "PNG", pixels)
    pixels = _decode_with_pillow(content, to_rgb=rgb_jpeg)
    if rgb_jpeg:
      return _jpeg(pixels)
    return _described(tf.io.encode_png(pixels).numpy(), "PNG", pixels, reencoded=True)
  except tf.errors.OpError as error:
    reason = one_line(error)
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    # What Pillow raises, whose messages name the stream that it read from.
    reason = str(error).split("<_io.")[0].strip()
  raise BadImage(f"{name} is no readable image ({reason})")


def _check_size(width: int, height: int) -> None:
  if width * height > MOST_PIXELS:
    raise ValueError(
      f"{width:,} x {height:,} pixels, and at most {MOST_PIXELS:,} are read"
    )


def _described(
  content: bytes, encoding: str, pixels: tf.Tensor, *, reencoded: bool = False
) -> EncodedImage:
  height, width, channels = pixels.shape
  return EncodedImage(content, encoding, height, width, channels, reencoded)


def _jpeg(pixels: tf.Tensor) -> EncodedImage:
  encoded = tf.io.encode_jpeg(pixels, format="rgb", quality=100)
  return _described(encoded.numpy(), "JPEG", pixels, reencoded=True)


def _decode_with_pillow(content: bytes, *, to_rgb: bool) -> np.ndarray:
  """The first frame, uint8 [height, width, 1 or 3], without its transparency."""
  with Image.open(io.BytesIO(content)) as image:
    _check_size(*image.size)
    if image.mode[0] in "IF":
      raise ValueError("more than 8 bits a value")
    grey = image.mode in ("1", "L", "LA") and not to_rgb
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
  return pixels[..., np.newaxis] if grey else pixels
