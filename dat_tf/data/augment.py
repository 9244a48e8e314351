"""From an image as it is stored to the pixels that the network sees.

Each augmentation has two functions. `draw` says what is to be done to each of many
images: drawing for one at a time would cost more than its flip, in small operations.
`apply` does it to one image. They hold no random state: the key that the pipeline hands
to `draw` is a hash of the run's seed, the epoch and the image's `example_id`. So an
image is changed in the same way on however many workers the run goes, and otherwise in
the next epoch.

`PadCropFlip` decodes the whole image. `RandomResizedCrop` and `CenterCrop` cut a window
out and bring it to a size, so that a file's images may differ in theirs; of a JPEG they
decode the window only.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Optional, Protocol

import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.data.records import StoredImage

_TRIES = 10


class Augmentation(Protocol):
  """How images are read."""

  def draw(self, sizes: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Chooses what is done to each of n images.

    Args:
      sizes: int32 [n, 2], their heights and widths as they are stored.
      keys: uint32 [n, 2], of `hashing.stream_keys`; the same key and size make the same
        choice.

    Returns:
      int32 [n, k], for `apply` to understand.
    """

  def apply(self, stored: StoredImage, choice: tf.Tensor) -> tf.Tensor:
    """Reads one image.

    Args:
      stored: The image.
      choice: int32 [k], its row of what `draw` returned.

    Returns:
      The image [height, width, channels]: uint8, or float32 in [0, 1].
    """


@dataclasses.dataclass(frozen=True)
class PadCropFlip:
  """Shifts an image by up to `padding` pixels and mirrors it every other time.

  The image is surrounded by `padding` pixels of zeros (black), and a window of its own
  size is cut out of that at random; then it is mirrored left to right with probability
  1/2. It is the augmentation with which CIFAR-10 is usually trained (padding 4), from
  He et al., "Deep residual learning for image recognition", 2016, section 4.2.

  Mirrored digits and letters are other signs or none: it is not for them.

  Attributes:
    padding: Pixels on each side, at least 0.
  """

  padding: int = 4

  def draw(self, sizes: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """See `Augmentation`; the result is [top, left, mirror], int32 [n, 3]."""
    del sizes
    shifts = 2 * self.padding + 1
    return tf.cast(hashing.uniform(keys, [3]) * [shifts, shifts, 2], tf.int32)

  def apply(self, stored: StoredImage, choice: tf.Tensor) -> tf.Tensor:
    """See `Augmentation`; the result is uint8, of the image's own size."""
    image = stored.decode()
    margin = [self.padding, self.padding]
    padded = tf.pad(image, [margin, margin, [0, 0]])
    corner = tf.concat([choice[:2], [0]], axis=0)
    return _mirrored(tf.slice(padded, corner, tf.shape(image)), choice[2])


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
  """Cuts a random window out of an image, resizes it, and mirrors it every other time.

  The window's area is uniform in `scale` times the image's, the logarithm of its width
  over its height uniform between those of `ratio`, and its place uniform. Ten windows
  are drawn, and the first that fits is taken; if none does, it is the largest one in
  the middle whose ratio is allowed. It is the augmentation with which ImageNet is
  usually trained, from Szegedy et al., "Going deeper with convolutions", 2015,
  section 6. Resizing is bilinear, without a low-pass filter.

  Attributes:
    size: Height and width of the result, in pixels.
    scale: Bounds of the window's area over the image's, in (0, 1].
    ratio: Bounds of the window's width over its height, above 0.
    flip: Whether to mirror left to right with probability 1/2.
  """

  size: int
  scale: tuple[float, float] = (0.08, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  flip: bool = True

  def draw(self, sizes: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """See `Augmentation`: [top, left, height, width, mirror], int32 [n, 5]."""
    uniform = hashing.uniform(keys, [2 * _TRIES + 3])
    shapes = tf.cast(sizes, tf.float32)
    areas = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform[:, :_TRIES]
    areas *= tf.reduce_prod(shapes, axis=1, keepdims=True)
    narrowest, widest = map(math.log, self.ratio)
    ratios = narrowest + (widest - narrowest) * uniform[:, _TRIES : 2 * _TRIES]
    stretch = tf.exp(tf.stack([-ratios / 2, ratios / 2], axis=2))
    # [n, tries, 2], as all that follows up to the choice of a try.
    sides = tf.maximum(tf.round(tf.sqrt(areas)[..., tf.newaxis] * stretch), 1.0)
    fits = tf.reduce_all(sides <= shapes[:, tf.newaxis], axis=2)
    bounds = shapes[:, ::-1] * [1 / self.ratio[0], self.ratio[1]]
    largest = tf.maximum(tf.minimum(shapes, tf.round(bounds)), 1.0)
    some_fit = tf.reduce_any(fits, axis=1, keepdims=True)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
    side = tf.where(some_fit, tf.gather(sides, first, batch_dims=1), largest)
    place = tf.where(some_fit, uniform[:, 2 * _TRIES : 2 * _TRIES + 2], 0.5)
    corner = tf.floor(place * (shapes - side + 1.0))
    mirror = uniform[:, -1:] * 2.0 if self.flip else tf.zeros_like(side[:, :1])
    return tf.cast(tf.concat([corner, side, mirror], axis=1), tf.int32)

  def apply(self, stored: StoredImage, choice: tf.Tensor) -> tf.Tensor:
    """See `Augmentation`; the result is float32 [size, size, channels]."""
    image = _resized(stored.decode_window(choice[:4]), self.size)
    return _mirrored(image, choice[4]) if self.flip else image


@dataclasses.dataclass(frozen=True)
class CenterCrop:
  """Cuts the square in the middle out of an image and resizes it, for evaluation.

  Resizing is bilinear, as in `RandomResizedCrop`.

  Attributes:
    size: Height and width of the result, in pixels.
    fraction: The square's side over the image's shorter one, in (0, 1]; 0.875, which is
      224 of 256, is usual for ImageNet.
  """

  size: int
  fraction: float = 0.875

  def draw(self, sizes: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """See `Augmentation`: [top, left, height, width], int32 [n, 4]."""
    del keys
    shorter = tf.cast(tf.reduce_min(sizes, axis=1, keepdims=True), tf.float32)
    side = tf.maximum(tf.cast(tf.round(self.fraction * shorter), tf.int32), 1)
    return tf.concat([(sizes - side) // 2, side, side], axis=1)

  def apply(self, stored: StoredImage, choice: tf.Tensor) -> tf.Tensor:
    """See `Augmentation`; the result is float32 [size, size, channels]."""
    return _resized(stored.decode_window(choice), self.size)


def read_image(
  stored: StoredImage, augmentation: Optional[Augmentation], key: tf.Tensor
) -> tf.Tensor:
  """One image, float32 [height, width, channels] in [0, 1].

  Args:
    stored: The image.
    augmentation: How it is read; None decodes it, no more.
    key: uint32 [2], as `Augmentation.draw` takes many.
  """
  if augmentation is None:
    return in_unit_range(stored.decode())
  (choice,) = tf.unstack(
    augmentation.draw(stored.size()[tf.newaxis], key[tf.newaxis]), num=1
  )
  return in_unit_range(augmentation.apply(stored, choice))


def in_unit_range(image: tf.Tensor) -> tf.Tensor:
  """float32 in [0, 1] of uint8; float32 stays as it is."""
  if image.dtype != tf.uint8:
    return image
  # A cast and a division would go through the memory twice.
  levels = tf.bitcast(image, tf.quint8)
  return tf.quantization.dequantize(levels, 0.0, 1.0, "MIN_COMBINED")


def _mirrored(image: tf.Tensor, mirror: tf.Tensor) -> tf.Tensor:
  return tf.cond(mirror == 1, lambda: tf.reverse(image, [1]), lambda: image)


def _resized(image: tf.Tensor, size: int) -> tf.Tensor:
  # Not in bytes, though what waits for its batch would take a quarter of the memory: it
  # takes time to round, and to undo it in the batch.
  return tf.image.resize(image, [size, size]) * (1 / 255)
