"""Tests of the counter-based random numbers."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dat_tf.base import hashing


def splitmix64(state: int) -> int:
  """The generator's next output, after Steele et al., in Python's integers."""
  mask = 2**64 - 1
  z = (state + 0x9E3779B97F4A7C15) & mask
  z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
  z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
  return z ^ (z >> 31)


class HashingTest(tf.test.TestCase):
  def test_keys_are_splitmix64_of_the_coordinates(self):
    seed, epoch, example = 7, 3, np.array([0, 5, 2**40 + 1])
    keys = hashing.stream_keys(seed, epoch, example).numpy()
    for key, number in zip(keys, example):
      expected = splitmix64(splitmix64(splitmix64(0 ^ seed) ^ epoch) ^ int(number))
      self.assertEqual(int(key[0]) + (int(key[1]) << 32), expected)

  def test_a_stream_does_not_depend_on_its_neighbours(self):
    together = hashing.uniform(hashing.stream_keys(1, 2, tf.range(5)), [3, 4])
    alone = hashing.uniform(hashing.stream_keys(1, 2, tf.range(3, 4)), [3, 4])
    self.assertAllEqual(together[3:4], alone)

  def test_numbers_are_uniform(self):
    sample = hashing.uniform(hashing.stream_keys(0, tf.range(100)), [10_000]).numpy()
    self.assertAllInRange(sample, 0.0, 1.0 - 2.0**-24)
    counts = np.histogram(sample, bins=1000, range=(0, 1))[0]
    expected = sample.size / 1000
    chi_squared = np.sum((counts - expected) ** 2 / expected)
    # 999 degrees of freedom: mean 999, deviation 45; five deviations.
    self.assertBetween(chi_squared, 999 - 5 * 45, 999 + 5 * 45)

  def test_numbers_are_uncorrelated_within_and_between_streams(self):
    sample = hashing.uniform(hashing.stream_keys(0, tf.range(300)), [3000]).numpy()
    sample = (sample - sample.mean()) * np.sqrt(12)
    within = np.mean(sample[:, 1:] * sample[:, :-1])
    between = np.mean(sample[1:] * sample[:-1])
    # Each is a mean of 900,000 products of variance 1.
    self.assertLess(abs(within), 5 / np.sqrt(9e5))
    self.assertLess(abs(between), 5 / np.sqrt(9e5))

  def test_normal_numbers(self):
    sample = hashing.normal(hashing.stream_keys(0, tf.range(100)), [5000]).numpy()
    size = np.sqrt(sample.size)
    self.assertLess(abs(sample.mean()), 5 / size)
    self.assertLess(abs((sample**2).mean() - 1), 5 * np.sqrt(2) / size)
    self.assertLess(abs((sample**4).mean() - 3), 5 * np.sqrt(96) / size)

  def test_coordinates_matter_in_their_order(self):
    keys = {
      tuple(hashing.stream_keys(*coordinates).numpy())
      for coordinates in [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0), (0, 1, 3)]
    }
    self.assertLen(keys, 5)
