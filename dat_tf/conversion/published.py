"""Published data sets: whether an archive is the original, and TensorFlow Datasets."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.conversion.items import explain_failed_reading, open_binary


class Original(NamedTuple):
  """A published archive: its length in bytes and its MD5 sum."""

  size: int
  md5: str


def warn_of_other(path: str, original: Original) -> None:
  """Warns, on standard error, if a file is another one than that which is published.

  The sum is computed only if the length is right.
  """
  with explain_failed_reading(path):
    size = tf.io.gfile.stat(path).length
    if size != original.size:
      found = f"{size:,} bytes, not {original.size:,}"
    else:
      print(f"Computing the MD5 sum of {path} ({size:,} bytes) ...", flush=True)
      digest = hashlib.md5(usedforsecurity=False)
      with open_binary(path) as file:
        while block := file.read(1 << 24):
          digest.update(block)
      if digest.hexdigest() == original.md5:
        return
      found = f"the MD5 sum {digest.hexdigest()}, not {original.md5}"
  print(
    f"Warning: {path} is not the published archive: it has {found}.", file=sys.stderr
  )


def images_from_tfds(
  name: str, split: str, instead: str
) -> Iterator[tuple[np.ndarray, int]]:
  """Images (uint8 [height, width, channels]) with their labels.

  Args:
    name: The data set's name in TensorFlow Datasets, which may download it.
    split: Its split.
    instead: Where else the images may be, a path.

  Raises:
    UserError: There is no TensorFlow Datasets, or it gives no such images.
  """
  try:
    import tensorflow_datasets as tfds

    dataset = tfds.load(name, split=split, as_supervised=True)
  except Exception as error:  # TFDS passes on whatever a download can raise.
    raise UserError(
      f"TensorFlow Datasets gave no {name} ({type(error).__name__}): install it (pip "
      "install tensorflow-datasets) and go online, or bring the images here "
      f"(`source`): {instead}."
    ) from error
  return dataset.as_numpy_iterator()
