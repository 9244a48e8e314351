"""What is cut out of images, against windows cut and resized with NumPy and Pillow."""

import io

import numpy as np
import PIL.Image
import scipy.stats
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base import hashing
from dat_tf.data.augment import CenterCrop, PadCropFlip, RandomResizedCrop
from dat_tf.data.records import StoredImage


def bare(image: np.ndarray) -> StoredImage:
  return StoredImage(tf.constant(image.tobytes()), tf.constant(image.shape), 0)


def encoded(image: np.ndarray, kind: str) -> StoredImage:
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, kind, quality=95)
  return StoredImage(tf.constant(file.getvalue()), None, 3)


def read(augmentation, stored: StoredImage, seed) -> tf.Tensor:
  """One image, as the pipeline reads it in a chunk."""
  keys = hashing.stream_keys(*tf.unstack(tf.convert_to_tensor(seed, tf.int64)))
  choices = augmentation.draw(stored.size()[tf.newaxis], keys[tf.newaxis])
  return augmentation.apply(stored, choices[0])


def smooth_image(height: int, width: int) -> np.ndarray:
  rows, columns = np.mgrid[:height, :width]
  waves = [np.sin(rows / 9), np.cos(columns / 11), np.sin((rows + columns) / 13)]
  return (128 + 100 * np.stack(waves, -1)).astype(np.uint8)


def resized(image: np.ndarray, size: int) -> np.ndarray:
  """Bilinear, pixels' values lying in the middle of the pixels."""
  for axis in (0, 1):
    length = image.shape[axis]
    places = (np.arange(size) + 0.5) * length / size - 0.5
    places = np.clip(places, 0, length - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, length - 1)
    part = (places - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
    image = (1 - part) * image.take(low, axis) + part * image.take(high, axis)
  return image


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
    self.use(padding=2)

  def use(self, padding):
    self.padding = padding
    self.augment = tf.function(
      lambda seed: read(PadCropFlip(padding), bare(self.image), seed)
    )

  def change(self, seed) -> tuple:
    """Which (top, left, mirrored) the augmentation chose."""
    augmented = self.augment(tf.constant(seed, tf.int64))
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
    self.use(padding=0)
    changes = {self.change([1, number]) for number in range(30)}
    self.assertEqual(changes, {(0, 0, False), (0, 0, True)})


def windows(crop, shape, number=1000) -> np.ndarray:
  """[number, 4]: top, left, height, width."""
  keys = hashing.stream_keys(5, np.arange(number))
  return crop.draw(tf.constant([shape] * number), keys).numpy()[:, :4]


class RandomResizedCropTest(tf.test.TestCase, parameterized.TestCase):
  def test_windows_are_distributed_as_they_should(self):
    # Of these none is too large, so that none is drawn again.
    crop = RandomResizedCrop(8, scale=(0.08, 0.5))
    shape = 1000, 1000
    top, left, height, width = windows(crop, shape).T

    def assert_uniform(values, low, high):
      scaled = (values - low) / (high - low)
      self.assertGreater(scipy.stats.kstest(scaled, "uniform").pvalue, 0.01)

    assert_uniform(height * width / 1e6, 0.08, 0.5)
    assert_uniform(np.log(width / height), np.log(3 / 4), np.log(4 / 3))
    assert_uniform(top, 0, 1000 - height)
    assert_uniform(left, 0, 1000 - width)
    correlations = np.corrcoef(
      [height * width, width / height, top / (1000 - height), left / (1000 - width)]
    )
    self.assertAllClose(correlations, np.eye(4), atol=0.1)

  @parameterized.parameters((375, 500), (500, 375), (28, 28), (3, 2), (1, 1))
  def test_windows_lie_in_the_image(self, *shape):
    top, left, height, width = windows(RandomResizedCrop(8), shape, 300).T
    self.assertTrue(np.all((height >= 1) & (width >= 1) & (top >= 0) & (left >= 0)))
    self.assertTrue(np.all((top + height <= shape[0]) & (left + width <= shape[1])))
    if min(shape) > 100:
      # Rounding moves a side by half a pixel at most.
      self.assertAllInRange(width / height, 0.72, 1.39)
      self.assertGreaterEqual(np.min(height * width / np.prod(shape)), 0.07)
      # The borders are within reach.
      self.assertEqual((top.min(), left.min()), (0, 0))
      self.assertEqual(np.max(top + height), shape[0])
      self.assertEqual(np.max(left + width), shape[1])

  @parameterized.parameters(
    ((30, 300), (0, 130, 30, 40)), ((300, 30), (130, 0, 40, 30))
  )
  def test_where_none_fits_it_is_the_largest_in_the_middle(self, shape, expected):
    crop = RandomResizedCrop(8, scale=(0.9, 1.0))
    for window in windows(crop, shape, 5):
      self.assertAllEqual(window, expected)

  @parameterized.parameters("bare", "png", "jpeg")
  def test_pixels(self, kind):
    image = smooth_image(90, 120)
    stored = bare(image) if kind == "bare" else encoded(image, kind)
    crop = RandomResizedCrop(32, scale=(0.3, 1.0))
    chosen = windows(crop, (90, 120), 40)
    mirrored = 0
    for number, (top, left, height, width) in enumerate(chosen):
      found = read(crop, stored, [5, number])
      self.assertEqual((found.dtype, found.shape), (tf.float32, (32, 32, 3)))
      window = resized(image[top : top + height, left : left + width], 32)
      errors = [
        np.abs(255 * found.numpy() - each).max() for each in (window, window[:, ::-1])
      ]
      # A JPEG's colours are stored at half the resolution.
      self.assertLess(min(errors), 14 if kind == "jpeg" else 1e-3)
      self.assertGreater(max(errors), 30)
      mirrored += errors[1] < errors[0]
    self.assertBetween(mirrored, 8, 32)

  def test_without_flip_none_is_mirrored(self):
    image = smooth_image(90, 120)
    crop = RandomResizedCrop(32, flip=False)
    for number, (top, left, height, width) in enumerate(windows(crop, (90, 120), 10)):
      window = resized(image[top : top + height, left : left + width], 32)
      found = read(crop, bare(image), [5, number])
      self.assertAllClose(255 * found, window, atol=1e-3)

  def test_the_seed_alone_decides(self):
    tf.random.set_seed(1)
    first = windows(RandomResizedCrop(8), (90, 120), 10)
    tf.random.set_seed(2)
    self.assertAllEqual(first, windows(RandomResizedCrop(8), (90, 120), 10))

  def test_an_image_has_its_own_window_whatever_stands_beside_it(self):
    crop = RandomResizedCrop(8)
    sizes, ids = [(90, 120), (30, 300), (375, 500)], [7, 8, 9]
    together = crop.draw(tf.constant(sizes), hashing.stream_keys(5, ids))
    for size, number, found in zip(sizes, ids, together):
      alone = crop.draw(tf.constant([size]), hashing.stream_keys(5, [number]))
      self.assertAllEqual(found, alone[0])


class CenterCropTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    kind=["bare", "png", "jpeg"], shape=[(96, 128), (128, 97), (33, 33)]
  )
  def test_pixels(self, kind, shape):
    image = smooth_image(*shape)
    side = round(0.875 * min(shape))
    top, left = ((length - side) // 2 for length in shape)
    expected = resized(image[top : top + side, left : left + side], 28)
    stored = bare(image) if kind == "bare" else encoded(image, kind)
    found = read(CenterCrop(28), stored, [0, 0])
    self.assertEqual(found.dtype, tf.float32)
    tolerance = 14 if kind == "jpeg" else 1e-3
    self.assertAllClose(255 * found, expected, atol=tolerance)

  def test_of_the_whole_in_its_own_size_nothing_changes(self):
    image = smooth_image(28, 28)
    found = read(CenterCrop(28, fraction=1.0), bare(image), [0, 0])
    self.assertAllClose(255 * found, image, atol=1e-4)

  def test_each_image_has_the_middle_of_its_own_size(self):
    sizes = [[96, 128], [128, 97], [33, 33], [1, 1]]
    found = CenterCrop(28).draw(tf.constant(sizes), None)
    expected = [(6, 22, 84, 84), (21, 6, 85, 85), (2, 2, 29, 29), (0, 0, 1, 1)]
    self.assertAllEqual(found, expected)


if __name__ == "__main__":
  tf.test.main()
