"""From an image as it is stored to the pixels that the network sees.

What is here are functions of a stored image and a seed, which hold no random state: the
seed that the pipeline hands them is made of the run's seed, the epoch and the image's
`example_id`. So an image is changed in the same way on however many workers the run
goes, and otherwise in the next epoch.

`PadCropFlip` decodes the whole image. `RandomResizedCrop` and `CentreCrop` cut a window
out and bring it to a size, so that a file's images may differ in theirs; of a JPEG they
decode the window only.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Optional

import tensorflow as tf

from dat_tf.data.records import StoredImage

_TRIES = 10


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

  def __call__(self, stored: StoredImage, seed: tf.Tensor) -> tf.Tensor:
    """Augments one image.

    Args:
      stored: The image.
      seed: int64 [2]; the same seed makes the same change.

    Returns:
      uint8 [height, width, channels], of the image's own size.
    """
    image = stored.decode()
    shifts = 2 * self.padding + 1
    uniform = tf.random.stateless_uniform([3], seed)
    top, left, mirror = tf.unstack(tf.cast(uniform * [shifts, shifts, 2], tf.int32))
    margin = [self.padding, self.padding]
    padded = tf.pad(image, [margin, margin, [0, 0]])
    window = tf.slice(padded, [top, left, 0], tf.shape(image))
    return tf.where(mirror == 1, window[:, ::-1], window)


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

  def __call__(self, stored: StoredImage, seed: tf.Tensor) -> tf.Tensor:
    """As `PadCropFlip`; the result is uint8 [size, size, channels]."""
    uniform = tf.random.stateless_uniform([2 * _TRIES + 3], seed)
    window = stored.decode_window(lambda shape: self._window(shape, uniform))
    image = _resized(window, self.size)
    if not self.flip:
      return image
    return tf.cond(uniform[-1] < 0.5, lambda: tf.reverse(image, [1]), lambda: image)

  def _window(self, shape: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    shape = tf.cast(shape, tf.float32)
    areas = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform[:_TRIES]
    narrowest, widest = map(math.log, self.ratio)
    ratios = narrowest + (widest - narrowest) * uniform[_TRIES : 2 * _TRIES]
    sides = tf.sqrt(areas * tf.reduce_prod(shape)) * tf.exp([-ratios / 2, ratios / 2])
    sides = tf.maximum(tf.round(sides), 1.0)
    fits = tf.reduce_all(sides <= shape[:, tf.newaxis], axis=0)
    bounds = shape[::-1] * [1 / self.ratio[0], self.ratio[1]]
    largest = tf.maximum(tf.minimum(shape, tf.round(bounds)), 1.0)
    side = tf.where(
      tf.reduce_any(fits),
      tf.gather(sides, tf.argmax(tf.cast(fits, tf.int32)), axis=1),
      largest,
    )
    place = tf.where(
      tf.reduce_any(fits), uniform[2 * _TRIES : 2 * _TRIES + 2], tf.constant(0.5)
    )
    corner = tf.floor(place * (shape - side + 1.0))
    return tf.cast(tf.concat([corner, side], axis=0), tf.int32)


@dataclasses.dataclass(frozen=True)
class CentreCrop:
  """Cuts the square in the middle out of an image and resizes it, for evaluation.

  Resizing is bilinear, as in `RandomResizedCrop`.

  Attributes:
    size: Height and width of the result, in pixels.
    fraction: The square's side over the image's shorter one, in (0, 1]; 0.875, which is
      224 of 256, is usual for ImageNet.
  """

  size: int
  fraction: float = 0.875

  def __call__(
    self, stored: StoredImage, seed: Optional[tf.Tensor] = None
  ) -> tf.Tensor:
    """The image's middle, uint8 [size, size, channels]; the seed plays no part."""
    del seed
    return _resized(stored.decode_window(self._window), self.size)

  def _window(self, shape: tf.Tensor) -> tf.Tensor:
    shorter = tf.cast(tf.reduce_min(shape), tf.float32)
    side = tf.maximum(tf.cast(tf.round(self.fraction * shorter), tf.int32), 1)
    return tf.concat([(shape - side) // 2, [side, side]], axis=0)


def _resized(image: tf.Tensor, size: int) -> tf.Tensor:
  # Bytes, so that what waits for its batch takes a quarter of the memory.
  return tf.cast(tf.round(tf.image.resize(image, [size, size])), tf.uint8)
