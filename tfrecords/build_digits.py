"""Writes scikit-learn's handwritten digits as TFRecords.

    python tfrecords/build_digits.py --output_dir=DIR [--num_shards=4]

makes DIR/train-* with 1,437 images and DIR/test-* with 360: 8 x 8 x 1, uint8 in
[0, 255] (from the data set's 0 to 16), labels 0 to 9, every class in the same
proportion in both. The split is the same each time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl import flags
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  from dat_tf.data.writing import image_example, write_shards

NUM_TEST = 360

_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", None, "Directory that the TFRecord files go to.", required=True
)
_NUM_SHARDS = flags.DEFINE_integer(
  "num_shards", 4, "Files for each of train and test, at least 1.", lower_bound=1
)


def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images (uint8 [n, 8, 8, 1]) and labels (int [n]) under "train" and "test"."""
  data = load_digits()
  images = np.rint(data.images[..., np.newaxis] * (255 / 16)).astype(np.uint8)
  train_images, test_images, train_labels, test_labels = train_test_split(
    images, data.target, test_size=NUM_TEST, stratify=data.target, random_state=0
  )
  return {"train": (train_images, train_labels), "test": (test_images, test_labels)}


def main(argv: Sequence[str]) -> None:
  del argv
  for split, (images, labels) in digits().items():
    examples = map(image_example, images, labels)
    write_shards(examples, _OUTPUT_DIR.value, split, _NUM_SHARDS.value)
    print(f"{_OUTPUT_DIR.value}/{split}-*: {len(labels)} images")


if __name__ == "__main__":
  run_script(main)
