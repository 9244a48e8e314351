"""Batches of labelled and unlabelled examples."""

import numpy as np
import tensorflow as tf

from dat_tf.data.mixture import mixed, replayed


def batches(size, labels, start):
  count = 2 * size
  return tf.data.Dataset.from_tensor_slices(
    {
      "image": np.arange(start, start + count, dtype="f4")[:, None, None, None],
      "label": labels,
      "weight": np.linspace(0, 1, count).astype("f4"),
      "example_id": np.arange(start, start + count),
      "epoch": np.full(count, 3),
    }
  ).batch(size)


class MixtureTest(tf.test.TestCase):
  def test_batches_are_joined_in_order(self):
    labeled = batches(2, [4, 3, 2, 1], start=0)
    unlabeled = batches(3, [-1, 0, 1, -1, 2, 3], start=100)
    first, second = mixed(labeled, unlabeled, 5).as_numpy_iterator()
    self.assertAllEqual(first["image"].ravel(), [0, 1, 100, 101, 102])
    self.assertAllEqual(second["image"].ravel(), [2, 3, 103, 104, 105])
    # An image of each kind may have the same number.
    self.assertAllEqual(first["example_id"], [0, 1, -101, -102, -103])
    self.assertAllEqual(second["example_id"], [2, 3, -104, -105, -106])
    self.assertAllEqual(first["label"], [4, 3, -1, 0, 1])
    self.assertAllEqual(first["is_labeled"], [1, 1, 0, 0, 0])
    self.assertAllClose(second["weight"], [2 / 3, 1, 0.6, 0.8, 1])
    self.assertAllEqual(second["epoch"], [3] * 5)

  def test_soft_labels_make_all_labels_soft(self):
    soft = np.float32([[0.5, 0.5, 0], [0, 0, 0]])
    (batch,) = mixed(
      batches(1, [2, 0], 0).take(1), batches(1, soft, 9).take(1), 3
    ).as_numpy_iterator()
    self.assertAllEqual(batch["label"], [[0, 0, 1], [0.5, 0.5, 0]])

  def test_replayed_batches_come_in_a_row(self):
    batch = tf.data.Dataset.range(3)
    for done, expected in ((0, [0, 0, 1, 1, 2, 2]), (1, [0, 1, 1, 2, 2])):
      found = replayed(batch, 2, done).as_numpy_iterator()
      self.assertEqual(list(found), expected)
    self.assertEqual(list(replayed(batch, 1).as_numpy_iterator()), [0, 1, 2])


if __name__ == "__main__":
  tf.test.main()
