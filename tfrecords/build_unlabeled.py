"""Writes unlabelled images as TFRecords, for semi-supervised training.

    python tfrecords/build_unlabeled.py --source=SOURCE --output_dir=DIR

makes DIR/unlabeled-*. SOURCE is one of these:

  a folder       all images in it and in the folders below it
  *.tar          WebDataset's tars: a pattern, or several with commas between; their
                 images are read in place
  FILE.npz       `image`, uint8 [n, height, width, channels], and perhaps `label`, int
                 [n]: the form of published generated images; one without compression
                 is read in place, else it must fit into memory
  FILE.pickle    `data`, uint8 [n, height, width, channels], and perhaps
                 `extrapolated_targets`, int [n]: the form of the 500,000 TinyImages; it
                 must fit into memory. Nothing but arrays is admitted in it.

Encoded images are written in the canonical ImageNet form without a label, arrays in our
own form. A label that the source has is written as the record's, which makes it a
pseudo-label; --drop_labels leaves it out. Images are shuffled by --seed; encoded ones
are decoded once, to be sure that they can be (those that cannot are all named at the
end, or left out by --skip_bad_images), and what is neither JPEG nor PNG becomes PNG.
All cores work, each with one file's images in memory. After an interruption the same
command goes on with the first file that is not complete.

--runner=NAME writes the files as an Apache Beam pipeline instead; flags for Beam follow
after `--`.
"""

from __future__ import annotations

import collections
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from dat_tf.base.errors import UserError
from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf.conversion import archives, beam
  from dat_tf.conversion.convert import (
    MakeRecord,
    array_record,
    convert,
    encoded_record,
    pixels_record,
  )
  from dat_tf.conversion.encoded import is_image
  from dat_tf.conversion.items import (
    ArrayItems,
    Item,
    explain_failed_reading,
    list_images,
    open_binary,
    say_what_was_left_out,
  )
  from dat_tf.data.records import match_files

_SOURCE = flags.DEFINE_string(
  "source", None, "A folder, tars, an .npz or a .pickle; see --help.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", None, "Directory that the TFRecord files go to.", required=True
)
_NUM_SHARDS = flags.DEFINE_integer(
  "num_shards",
  16,
  "Files, at least 1; one an image where there are fewer images.",
  lower_bound=1,
)
_DROP_LABELS = flags.DEFINE_bool(
  "drop_labels", False, "Leave out the labels that the source has."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the shuffling.", lower_bound=0)
_SKIP_BAD_IMAGES = flags.DEFINE_bool(
  "skip_bad_images", False, "Leave out images that cannot be read."
)
_RUNNER = flags.DEFINE_string(
  "runner", None, "Apache Beam's runner that is to write the files, if any."
)

# The images, how they become records, and what else those depend on.
Listed = tuple[Sequence[Item], MakeRecord, dict[str, Any]]


def images_in_tars(pattern: str) -> list[Item]:
  """Lists the images in tars, by their members' extensions."""
  items = []
  for path in match_files(pattern):
    with explain_failed_reading(path), open_binary(path) as file:
      items += [
        Item(path, member.offset, member.size, None, member.name)
        for member in archives.tar_members(file, path)
        if is_image(member.name)
      ]
  return items


def images_in_npz(path: str, *, drop_labels: bool) -> Listed:
  """Lists the images of an .npz, in place if they lie there as they are."""
  arrays = archives.open_npz(path, "image", "label")
  return images_in_arrays(path, arrays, "image", "label", drop_labels=drop_labels)


def images_in_pickle(path: str, *, drop_labels: bool) -> Listed:
  """Lists the images of the TinyImages pickle."""
  with explain_failed_reading(path), open_binary(path) as file:
    arrays = archives.load_pickled_arrays(file, path)
  return images_in_arrays(
    path, arrays, "data", "extrapolated_targets", drop_labels=drop_labels
  )


def images_in_arrays(
  path: str,
  arrays: dict[str, Any],
  image_name: str,
  label_name: str,
  *,
  drop_labels: bool,
) -> Listed:
  """Lists the images of an array, in memory or in a file.

  Raises:
    UserError: The images are not uint8 of four dimensions, or the labels not as many
      integers.
  """
  images: Any = arrays.get(image_name)
  in_file = isinstance(images, archives.ArrayInFile)
  shape: tuple[int, ...] = getattr(images, "shape", ())
  of_bytes = in_file or getattr(images, "dtype", None) == np.uint8
  if len(shape) != 4 or shape[-1] not in (1, 3) or not of_bytes:
    raise UserError(
      f"{path} holds no '{image_name}' of uint8 [n, height, width, 1 or 3]: write it "
      "in that form."
    )
  labels = None if drop_labels else arrays.get(label_name)
  if not shape[0]:
    raise UserError(f"{path} holds no image: '{image_name}' has the shape {shape}.")
  if labels is not None:
    labels = np.asarray(labels)
    if labels.shape != (shape[0],) or labels.dtype.kind not in "iu":
      raise UserError(
        f"{path}: '{label_name}' is not as many integers as there are images "
        f"({shape[0]:,}): mend it, or set --drop_labels."
      )
    if not (labels >= 0).any():
      raise UserError(
        f"{path}: no '{label_name}' is 0 or above, so that none is a class: mend it, "
        "or set --drop_labels."
      )
  if in_file:
    size = int(np.prod(shape[1:]))
    items = ArrayItems(shape[0], labels, path, images.offset, size)
    return items, functools.partial(pixels_record, shape[1:]), {"shape": list(shape)}
  settings = {"sha256_of_pixels": hashlib.sha256(images.tobytes()).hexdigest()}
  items = ArrayItems(shape[0], labels)
  return items, functools.partial(array_record, images), settings


def list_source(source: str, *, drop_labels: bool) -> Listed:
  """Lists the images of a source of any kind.

  Raises:
    UserError: It is of no known kind, or holds no image.
  """
  items: Sequence[Item]
  if tf.io.gfile.isdir(source):
    left_out: collections.Counter[str] = collections.Counter()
    items = list_images(source, source, recursive=True, left_out=left_out)
    say_what_was_left_out(source, left_out)
  elif source.endswith(".npz"):
    return images_in_npz(source, drop_labels=drop_labels)
  elif source.endswith((".pickle", ".pkl")):
    return images_in_pickle(source, drop_labels=drop_labels)
  elif source.endswith((".tar", ".tar.gz", ".tgz")):
    items = images_in_tars(source)
  else:
    raise UserError(f"{source} is no folder, .tar, .npz or .pickle: mend --source.")
  if not items:
    raise UserError(f"{source} holds no image: mend --source.")
  return items, encoded_record, {}


def main(argv: Sequence[str]) -> None:
  write = beam.writer(_RUNNER.value, argv[1:])
  print(f"Listing the images of {_SOURCE.value} ...", flush=True)
  items, make_record, settings = list_source(
    _SOURCE.value, drop_labels=_DROP_LABELS.value
  )
  shards = min(_NUM_SHARDS.value, len(items))
  output, seed = _OUTPUT_DIR.value, _SEED.value
  line = convert(
    items,
    make_record,
    output,
    "unlabeled",
    num_shards=shards,
    seed=seed,
    settings=settings,
    write=write,
    skip_bad_images=_SKIP_BAD_IMAGES.value,
  )
  print(line)


if __name__ == "__main__":
  run_script(main)
