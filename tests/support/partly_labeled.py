"""Digits of which few have a label."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from dat_tf.data import writing
from record_files import example

LABELED, UNLABELED, TEST = 64, 110, 40
FILES = 4  # of unlabelled images


def write_digits(folder):
  """labeled-*, unlabeled-* and test-*; returns the true labels of the second."""
  data = load_digits()
  images = np.rint(data.images[..., None] * (255 / 16)).astype("u1")
  rows = list(zip(images, data.target))
  parts = {"labeled": rows[:LABELED], "test": rows[-TEST:]}
  for name, part in parts.items():
    examples = [writing.image_example(image, label) for image, label in part]
    writing.write_shards(examples, folder, name, 2)
  others = rows[LABELED : LABELED + UNLABELED]
  examples = [
    example(image__raw=image.tobytes(), image__shape=image.shape) for image, _ in others
  ]
  writing.write_shards(examples, folder, "unlabeled", FILES)
  return [label for _, label in others]
