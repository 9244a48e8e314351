"""References to images."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.data import items


class StratifiedSampleTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    (0, [0, 0, 0]),
    (1, [1, 0, 0]),  # 0.50, 0.30 and 0.20 of one
    (3, [1, 1, 1]),  # 1.50, 0.90 and 0.60: the largest remainders are rounded up
    (7, [4, 2, 1]),  # 3.50, 2.10 and 1.40
    (10, [5, 3, 2]),
  )
  def test_every_class_keeps_its_share(self, count, taken):
    labels = np.array([7, 2, 5, 7, 2, 7, 5, 7, 2, 7])
    for seed in range(5):
      drawn = items.stratified_sample(labels, count, seed)
      self.assertAllEqual(drawn, np.unique(drawn))  # ascending, each once
      found = [np.sum(labels[drawn] == kind) for kind in (7, 2, 5)]
      self.assertEqual(found, taken)

  def test_every_image_may_be_drawn(self):
    labels = np.arange(30) % 2
    drawn = [tuple(items.stratified_sample(labels, 10, seed)) for seed in range(30)]
    self.assertEqual(set().union(*drawn), set(range(30)))
    self.assertEqual(drawn[3], tuple(items.stratified_sample(labels, 10, 3)))


if __name__ == "__main__":
  tf.test.main()
