"""Writes Fashion-MNIST, or another data set in MNIST's files, as TFRecords.

    python tfrecords/build_fashion_mnist.py --output_dir=DIR [--source=DIR]

makes DIR/train-* (60,000 images) and DIR/test-* (10,000): 28 x 28 x 1, uint8 in
[0, 255], labels 0 to 9. With --source the images come from the four IDX files there,
compressed by gzip or not: train-images-idx3-ubyte, train-labels-idx1-ubyte,
t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte. (Debian's package
dataset-fashion-mnist puts them under share/datasets/fashion-mnist.) Without --source
they come from TensorFlow Datasets, which downloads them.

With --num_labeled=4000 the training images are split for semi-supervised training: that
many, every class in the same proportion, drawn by --seed, go to DIR/labeled-*, and the
rest to DIR/unlabeled-*, without their labels; there is no DIR/train-* then.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

import numpy as np
from absl import flags

from dat_tf.base.errors import UserError
from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  from dat_tf.conversion import archives
  from dat_tf.conversion.items import stratified_sample
  from dat_tf.conversion.published import images_from_tfds
  from dat_tf.data.framing import count_records
  from dat_tf.data.writing import image_example, write_shards

SPLITS = {"train": "train", "test": "t10k"}
_LONGEST = 2**30  # bytes; the original's longest file has a twentieth of that

_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", None, "Directory that the TFRecord files go to.", required=True
)
_SOURCE = flags.DEFINE_string(
  "source", None, "Directory with the four IDX files; else TensorFlow Datasets."
)
_NUM_SHARDS = flags.DEFINE_integer(
  "num_shards", 8, "Files for each of train and test, at least 1.", lower_bound=1
)
_NUM_LABELED = flags.DEFINE_integer(
  "num_labeled", None, "Training images that keep their labels.", lower_bound=1
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of the draw of --num_labeled.", lower_bound=0
)


def read_idx(directory: str, name: str, rank: int) -> np.ndarray:
  """Reads an IDX file of bytes, `name` or `name`.gz.

  The file is a magic number (two zero bytes, 8 for unsigned bytes, the rank), the
  sizes of the dimensions as big-endian uint32, and the bytes in row-major order.

  Returns:
    uint8, of the given rank.

  Raises:
    UserError: The file is missing, no such file, or of another length than it says.
  """
  plain = os.path.join(directory, name)
  path = plain if os.path.exists(plain) else f"{plain}.gz"
  try:
    with open(path, "rb") if path == plain else gzip.open(path) as file:
      content = archives.read_at_most(file.read, _LONGEST, path)
  except FileNotFoundError:
    raise UserError(
      f"{directory} holds neither {name} nor {name}.gz: point --source at the "
      "directory with the four IDX files."
    ) from None
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"{path} cannot be read ({error}): copy it again.") from error
  start = 4 + 4 * rank
  if content[:4] != bytes([0, 0, 8, rank]) or len(content) < start:
    raise UserError(
      f"{path} is no IDX file of unsigned bytes with {rank} dimension(s): put the "
      "file that is usually called so in its place."
    )
  shape = struct.unpack(f">{rank}I", content[4:start])
  pixels = np.frombuffer(content, np.uint8, offset=start)
  if pixels.size != np.prod(shape, dtype=np.int64):
    raise UserError(
      f"{path} holds {pixels.size} values where its head, {shape}, tells of "
      f"{np.prod(shape, dtype=np.int64)}: copy it again."
    )
  return pixels.reshape(shape)


def images_from_idx(directory: str, split: str) -> Iterator[tuple[np.ndarray, int]]:
  """Images (uint8 [height, width, 1]) with their labels, in the files' order."""
  images = read_idx(directory, f"{SPLITS[split]}-images-idx3-ubyte", 3)
  labels = read_idx(directory, f"{SPLITS[split]}-labels-idx1-ubyte", 1)
  if len(images) != len(labels):
    raise UserError(
      f"{directory} holds {len(images)} {split} images and {len(labels)} labels: put "
      "files of one data set there."
    )
  return zip(images[..., np.newaxis], labels.tolist())


# An image and its label, or None.
Labeled = tuple[np.ndarray, Optional[int]]


def withhold_labels(
  images: Sequence[Labeled], num_labeled: int, seed: int
) -> dict[str, list[Labeled]]:
  """Splits images under "labeled" and "unlabeled"; the latter have None for a label."""
  if num_labeled >= len(images):
    raise UserError(
      f"--num_labeled={num_labeled} leaves none of {len(images)} training images "
      "without a label: lower it."
    )
  labels = np.array([label for _, label in images])
  kept = set(stratified_sample(labels, num_labeled, seed).tolist())
  return {
    "labeled": [images[n] for n in sorted(kept)],
    "unlabeled": [
      (image, None) for n, (image, _) in enumerate(images) if n not in kept
    ],
  }


def build(
  source: Optional[str],
  output_dir: str,
  num_shards: int,
  num_labeled: Optional[int] = None,
  seed: int = 0,
) -> None:
  """Writes all splits, after all that can be wrong with the source was looked at."""
  splits: dict[str, Iterable[Labeled]] = {
    split: images_from_idx(source, split)
    if source
    else images_from_tfds("fashion_mnist", split, "a directory with the four IDX files")
    for split in SPLITS
  }
  if num_labeled is not None:
    splits |= withhold_labels(list(splits.pop("train")), num_labeled, seed)
  for split, images in splits.items():
    examples = (image_example(image, label) for image, label in images)
    paths = write_shards(examples, output_dir, split, num_shards)
    print(f"{output_dir}/{split}-*: {sum(map(count_records, paths))} images")


def main(argv: Sequence[str]) -> None:
  del argv
  build(
    _SOURCE.value,
    _OUTPUT_DIR.value,
    _NUM_SHARDS.value,
    _NUM_LABELED.value,
    _SEED.value,
  )


if __name__ == "__main__":
  run_script(main)
