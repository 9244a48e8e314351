"""Cutting tensors into packs and putting them together again."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.communication.packs import Packs

LISTS = {
  "scalar": [()],
  "several": [(3, 5), (), (7,), (2, 1, 4), (1, 1)],
  "empty among others": [(2, 3), (0, 4), (0,), (5,)],
  "larger than a pack": [(4,), (10, 10), (3,)],
  "exactly a pack": [(2, 4), (8,), (2, 2, 2)],
  "nothing": [],
  "only empty": [(0, 3)],
}


def numbered(shapes):
  """Tensors whose values count on from the first tensor to the last."""
  sizes = [int(np.prod(shape)) for shape in shapes]
  ends = np.cumsum(sizes)
  return [
    np.arange(end - size, end, dtype="f4").reshape(shape)
    for shape, size, end in zip(shapes, sizes, ends)
  ]


def planned(shapes, length, multiple):
  return Packs([tf.TensorShape(shape) for shape in shapes], length, multiple)


class PacksTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(name=tuple(LISTS), length=(0, 8, 13, 64), multiple=(1, 24))
  def test_joins_from_the_last_to_the_first_and_splits(self, name, length, multiple):
    shapes = LISTS[name]
    tensors = numbered(shapes)
    packs = planned(shapes, length, multiple)
    joined = packs.join([tf.constant(tensor) for tensor in tensors])
    self.assertLen(joined, packs.count)
    self.assertEqual([pack.shape for pack in joined], [[packs.length]] * packs.count)
    self.assertEqual(packs.length % multiple, 0)

    values = np.concatenate([np.ravel(t) for t in reversed(tensors)] or [np.zeros(0)])
    padding = packs.count * packs.length - values.size
    self.assertAllEqual(
      np.concatenate([pack.numpy() for pack in joined] or [np.zeros(0)]),
      np.concatenate([values, np.zeros(padding)]),
    )
    if values.size:
      self.assertLess(padding, packs.length)  # none is all padding
      if length:
        # Rounded up to a multiple, but never by one more than is needed.
        self.assertLess(packs.length, length + multiple)
      else:
        self.assertEqual(packs.count, 1)
    else:
      self.assertEqual(packs.count, 0)

    split = packs.split(joined)
    self.assertLen(split, len(tensors))
    for result, tensor in zip(split, tensors):
      self.assertEqual(result.shape, tensor.shape)
      self.assertAllEqual(result, tensor)

  @parameterized.parameters(
    # 118 values: in one; in 2 of 59; in 3 of 40; in 3 of 48, of which 2 are enough
    # once they are rounded up to 72.
    (0, 1, 1, 118), (118, 1, 1, 118), (60, 1, 2, 59), (40, 8, 3, 40),
    (40, 16, 3, 48), (40, 72, 2, 72), (1000, 64, 1, 128),
  )  # fmt: skip
  def test_number_and_length(self, length, multiple, count, expected):
    packs = planned([(10, 10), (), (17,)], length, multiple)
    self.assertEqual((packs.count, packs.length), (count, expected))

  def test_in_a_graph(self):
    tensors = numbered(LISTS["several"])
    packs = planned(LISTS["several"], 10, 4)
    split = tf.function(lambda tensors: packs.split(packs.join(tensors)))
    for result, tensor in zip(split([tf.constant(t) for t in tensors]), tensors):
      self.assertAllEqual(result, tensor)
