"""Writes CIFAR-10 as TFRecords.

    python tfrecords/build_cifar10.py --output_dir=DIR [--source=cifar-10-python.tar.gz]

makes DIR/train-* (50,000 images) and DIR/test-* (10,000): 32 x 32 x 3, uint8 in
[0, 255], labels 0 to 9, shuffled by --seed. --source is cifar-10-python.tar.gz,
cifar-10-binary.tar.gz, or the folder that one of them unpacks to. Without --source the
images come from TensorFlow Datasets, which downloads them. They are held in memory.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
from absl import flags

from dat_tf.base.errors import UserError
from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf.conversion import archives, published
  from dat_tf.conversion.convert import array_record, convert, has_begun
  from dat_tf.conversion.items import ArrayItems, explain_failed_reading, open_binary

ORIGINALS = {
  "cifar-10-python.tar.gz": published.Original(
    170_498_071, "c58f30108f718f92721af3b95e74349a"
  ),
  "cifar-10-binary.tar.gz": published.Original(
    170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"
  ),
}
BATCHES = {
  "train": [f"data_batch_{number}" for number in range(1, 6)],
  "test": ["test_batch"],
}
PIXELS = 3 * 32 * 32
_LONGEST_BATCH = 2**26  # bytes; the original's have half of that

_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", None, "Directory that the TFRecord files go to.", required=True
)
_SOURCE = flags.DEFINE_string(
  "source", None, "The archive or its folder; else TensorFlow Datasets."
)
_NUM_SHARDS = flags.DEFINE_integer(
  "num_shards", 8, "Files for each of train and test, at least 1.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the shuffling.", lower_bound=0)

# uint8 [n, 32, 32, 3] and int [n].
Images = tuple[np.ndarray, np.ndarray]


def read_files(source: str) -> dict[str, bytes]:
  """Reads the batches of the archive or the folder, by name without folders."""
  names = [name for batches in BATCHES.values() for name in batches]
  wanted = {*names, *(f"{name}.bin" for name in names)}
  files = {}
  if tf.io.gfile.isdir(source):
    for name in wanted:
      path = os.path.join(source, name)
      if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
        with explain_failed_reading(path), open_binary(path) as file:
          files[name] = archives.read_at_most(file.read, _LONGEST_BATCH, path)
    return files
  try:
    with open_binary(source) as file:
      return archives.read_members(file, source, wanted, _LONGEST_BATCH)
  except (
    OSError,
    tf.errors.OpError,
    EOFError,
    tarfile.TarError,
    zlib.error,
    ValueError,
  ) as error:
    reason = getattr(error, "strerror", None) or str(error).partition(":\n")[0]
    raise UserError(
      f"{source} cannot be read ({reason}): set --source to a whole copy of "
      "cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or to its folder."
    ) from error


def read_batch(name: str, content: bytes) -> Images:
  """Reads one batch, whose pixels lie colour by colour, row by row.

  A binary one is a row of records of a label (one byte) and its pixels; the other kind
  is a pickled dictionary with `data` and `labels`.
  """
  if name.endswith(".bin"):
    if not content or len(content) % (1 + PIXELS):
      raise UserError(
        f"{name} holds {len(content):,} bytes, no multiple of {1 + PIXELS:,}: copy "
        "CIFAR-10 again."
      )
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    labels: np.ndarray = rows[:, 0]
    pixels: Any = rows[:, 1:]
  else:
    batch = archives.load_pickled_arrays(io.BytesIO(content), name)
    labels, pixels = np.array(batch.get("labels", [])), batch.get("data")
    if (
      not isinstance(pixels, np.ndarray)
      or pixels.dtype != np.uint8
      or pixels.shape != (len(labels), PIXELS)
      or labels.dtype.kind not in "iu"
    ):
      raise UserError(
        f"{name} holds no 'data' of uint8 [n, {PIXELS}] with as many 'labels': copy "
        "CIFAR-10 again."
      )
  if not len(labels):
    raise UserError(f"{name} holds no image: copy CIFAR-10 again.")
  if not (0 <= labels.min() and labels.max() <= 9):
    raise UserError(f"{name} holds labels outside 0 to 9: is it CIFAR-10?")
  return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)


def images_from_files(source: str) -> dict[str, Images]:
  """Images and labels of both splits."""
  files = read_files(source)
  suffix = ".bin" if "test_batch.bin" in files else ""
  splits = {}
  for split, names in BATCHES.items():
    batches = []
    for name in names:
      if f"{name}{suffix}" not in files:
        raise UserError(
          f"{source} holds no {name}{suffix}: set --source to cifar-10-python.tar.gz "
          "or cifar-10-binary.tar.gz, or to its folder with the data_batch files."
        )
      batches.append(read_batch(f"{name}{suffix}", files[f"{name}{suffix}"]))
    images, labels = zip(*batches)
    splits[split] = np.concatenate(images), np.concatenate(labels)
  return splits


def images_from_tfds() -> dict[str, Images]:
  """Images and labels of both splits."""
  splits = {}
  for split in BATCHES:
    pairs = published.images_from_tfds("cifar10", split, "cifar-10-python.tar.gz")
    images, labels = zip(*pairs)
    splits[split] = np.stack(images), np.array(labels)
  return splits


def build(
  source: Optional[str], output_dir: str, num_shards: int, seed: int = 0
) -> None:
  """Writes both splits, after all that can be wrong with the source was looked at."""
  original = ORIGINALS.get(os.path.basename(source or ""))
  if source and original and not has_begun(output_dir, "train"):
    published.warn_of_other(source, original)
  splits = images_from_files(source) if source else images_from_tfds()
  for split, (images, labels) in splits.items():
    settings = {"sha256_of_pixels": hashlib.sha256(images.tobytes()).hexdigest()}
    items = ArrayItems(len(images), labels)
    make_record = functools.partial(array_record, images)
    line = convert(
      items,
      make_record,
      output_dir,
      split,
      num_shards=num_shards,
      seed=seed,
      settings=settings,
    )
    print(line)


def main(argv: Sequence[str]) -> None:
  del argv
  build(_SOURCE.value, _OUTPUT_DIR.value, _NUM_SHARDS.value, _SEED.value)


if __name__ == "__main__":
  run_script(main)
