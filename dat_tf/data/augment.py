"""Random changes to training images, as functions of an image and a seed.

An augmentation holds no random state: the seed that the pipeline hands it is made of
the run's seed, the epoch and the image's `example_id`. So an image is changed in the
same way on however many workers the run goes, and otherwise in the next epoch.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf


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

  def __call__(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Augments one image.

    Args:
      image: [height, width, channels] of any dtype, with a static shape.
      seed: int64 [2]; the same seed makes the same change.

    Returns:
      An image of the same shape and dtype.
    """
    shifts = 2 * self.padding + 1
    uniform = tf.random.stateless_uniform([3], seed)
    top, left, mirror = tf.unstack(tf.cast(uniform * [shifts, shifts, 2], tf.int32))
    margin = [self.padding, self.padding]
    padded = tf.pad(image, [margin, margin, [0, 0]])
    window = tf.slice(padded, [top, left, 0], image.shape)
    return tf.where(mirror == 1, window[:, ::-1], window)
