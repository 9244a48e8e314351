"""Pad, crop and flip, against windows cut with NumPy."""

import numpy as np
import tensorflow as tf

from dat_tf.data.augment import PadCropFlip


def all_windows(image: np.ndarray, padding: int) -> dict:
  """Every result that is possible, by (top, left, mirrored)."""
  height, width, _ = image.shape
  padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
  shifts = range(2 * padding + 1)
  return {
    (top, left, mirrored): window[:, ::-1] if mirrored else window
    for top in shifts
    for left in shifts
    for window in [padded[top : top + height, left : left + width]]
    for mirrored in (False, True)
  }


class PadCropFlipTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.image = np.random.default_rng(0).integers(1, 256, (5, 6, 3), np.uint8)
    self.padding = 2
    self.augment = tf.function(PadCropFlip(self.padding))

  def change(self, seed) -> tuple:
    """Which (top, left, mirrored) the augmentation chose."""
    augmented = self.augment(tf.constant(self.image), tf.constant(seed, tf.int64))
    self.assertEqual(augmented.dtype, tf.uint8)
    self.assertEqual(augmented.shape, self.image.shape)
    (found,) = (
      change
      for change, window in all_windows(self.image, self.padding).items()
      if np.array_equal(window, augmented)
    )
    return found

  def test_every_window_comes_up_about_equally_often(self):
    changes = [self.change([3, number]) for number in range(1000)]
    unique, counts = np.unique(changes, axis=0, return_counts=True)
    self.assertLen(unique, 5 * 5 * 2)  # 20 draws each on average.
    self.assertLess(counts.max(), 45)

  def test_the_seed_alone_decides(self):
    tf.random.set_seed(1)
    first = [self.change([7, number]) for number in range(10)]
    tf.random.set_seed(2)
    self.assertEqual(first, [self.change([7, number]) for number in range(10)])
    self.assertNotEqual(first, [self.change([8, number]) for number in range(10)])

  def test_without_padding_the_image_is_mirrored_at_most(self):
    self.padding = 0
    self.augment = PadCropFlip(padding=0)
    changes = {self.change([1, number]) for number in range(30)}
    self.assertEqual(changes, {(0, 0, False), (0, 0, True)})


if __name__ == "__main__":
  tf.test.main()
