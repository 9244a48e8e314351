"""Writes a folder of images, one folder a class, as TFRecords.

    python tfrecords/build_folder.py --source=DIR --output_dir=DIR

If the source holds folders train and val or test, each with CLASS/IMAGE below it, they
become train-* and validation-* or test-*. (Training, valid, validation and testing are
known too, in capitals or not.) Otherwise the source itself holds CLASS/IMAGE, and
--test_fraction of every class, drawn by --seed, becomes test-*. Classes are the
folders' names in sorted order, written to classes.txt.

Records are in the canonical ImageNet form, with labels from 1 and the class's name in
image/class/text. Files with an image's extension (.jpg .jpeg .jpe .jfif .png .gif .bmp
.webp .tif .tiff .ppm .pgm .pbm .pnm .jp2) are read; what is left out is counted in a
line on stderr. Each image is decoded once, to be sure that it can be: those that cannot
are all named at the end, or left out by --skip_bad_images. JPEG and PNG stay as they
are, but JPEGs in CMYK become RGB; other formats become PNG. (EXIF's orientation plays
no part: pixels stay as they lie in the file. Of 16 bits a channel PNG's upper 8 count.)
All cores work, each with one file's images in memory. After an interruption the same
command goes on with the first file that is not complete.

--runner=NAME writes the files as an Apache Beam pipeline instead; flags for Beam follow
after `--`.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Sequence

import numpy as np
from absl import flags

from dat_tf.base.errors import UserError
from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf.conversion import beam
  from dat_tf.conversion.convert import convert, encoded_record
  from dat_tf.conversion.items import (
    Item,
    list_folders,
    list_images,
    say_what_was_left_out,
    stratified_sample,
  )
  from dat_tf.data import writing

# What a source's folder is called, and what its files will be.
SPLITS = {
  "train": "train",
  "training": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "test": "test",
  "testing": "test",
}

_SOURCE = flags.DEFINE_string(
  "source", None, "Directory of CLASS/IMAGE, or of SPLIT/CLASS/IMAGE.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", None, "Directory that the TFRecord files go to.", required=True
)
_TEST_FRACTION = flags.DEFINE_float(
  "test_fraction",
  0.1,
  "The part of every class that becomes test-*, if the source is not split; 0 to 1.",
  lower_bound=0.0,
  upper_bound=1.0,
)
_NUM_SHARDS = flags.DEFINE_integer(
  "num_shards",
  16,
  "Files for each split, at least 1; one an image where there are fewer images.",
  lower_bound=1,
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of the shuffling and of the test images' draw.", lower_bound=0
)
_SKIP_BAD_IMAGES = flags.DEFINE_bool(
  "skip_bad_images", False, "Leave out images that cannot be read."
)
_RUNNER = flags.DEFINE_string(
  "runner", None, "Apache Beam's runner that is to write the files, if any."
)


def list_classes(
  source: str, classes: Sequence[str], left_out: collections.Counter[str]
) -> list[Item]:
  """Lists CLASS/IMAGE, with the classes' numbers as labels.

  Raises:
    UserError: A class has no image.
  """
  items = []
  for label, name in enumerate(classes):
    folder = os.path.join(source, name)
    here: collections.Counter[str] = collections.Counter()
    if not (found := list_images(folder, source, label, left_out=here)):
      there = ", ".join(f"{count:,} {kind}" for kind, count in sorted(here.items()))
      raise UserError(
        f"{folder} holds no image{f', but {there}' if there else ''}: put the class's "
        "images straight into it, or remove the folder. (Splits are called "
        f"{', '.join(SPLITS)}.)"
      )
    left_out += here
    items += found
  return items


def list_splits(
  source: str, test_fraction: float, seed: int
) -> tuple[list[str], dict[str, list[Item]]]:
  """The classes, and the images of each split.

  Raises:
    UserError: There are no classes, a class has no image, or splits differ in classes.
  """
  folders = list_folders(source)
  left_out: collections.Counter[str] = collections.Counter()
  splits: dict[str, str] = {}
  for name in folders:
    if split := SPLITS.get(name.lower()):
      if split in splits:
        raise UserError(
          f"{source} holds both {splits[split]} and {name}: remove one of them."
        )
      splits[split] = name
  if "train" in splits and len(splits) > 1:
    classes = list_folders(os.path.join(source, splits["train"]))
    for name in splits.values():
      found = list_folders(os.path.join(source, name))
      if differing := sorted(set(found) ^ set(classes)):
        raise UserError(
          f"{source}: the class {differing[0]} is in one of {splits['train']} and "
          f"{name} only: give all splits the same folders."
        )
    if classes:
      images = {
        split: list_classes(os.path.join(source, name), classes, left_out)
        for split, name in splits.items()
      }
      say_what_was_left_out(source, left_out)
      return classes, images
  elif folders:
    items = list_classes(source, folders, left_out)
    say_what_was_left_out(source, left_out)
    labels = np.array([item.label for item in items])
    count = round(test_fraction * len(items))
    in_test = np.isin(
      np.arange(len(items)), stratified_sample(labels, count, seed)
    ).tolist()
    drawn = {
      "train": [item for item, test in zip(items, in_test) if not test],
      "test": [item for item, test in zip(items, in_test) if test],
    }
    return folders, {split: found for split, found in drawn.items() if found}
  raise UserError(f"{source} holds no folders CLASS with images: mend --source.")


def main(argv: Sequence[str]) -> None:
  write = beam.writer(_RUNNER.value, argv[1:])
  output, seed = _OUTPUT_DIR.value, _SEED.value
  classes, splits = list_splits(_SOURCE.value, _TEST_FRACTION.value, seed)
  make_record = functools.partial(encoded_record, class_names=classes)
  settings = {"classes": len(classes)}
  for split, items in splits.items():
    shards = min(_NUM_SHARDS.value, len(items))
    line = convert(
      items,
      make_record,
      output,
      split,
      num_shards=shards,
      seed=seed,
      settings=settings,
      write=write,
      skip_bad_images=_SKIP_BAD_IMAGES.value,
    )
    print(line)
  path = os.path.join(output, "classes.txt")
  with writing.explain_failed_writing(output), writing.complete_file(path) as temporary:
    with tf.io.gfile.GFile(temporary, "w") as file:
      file.write("".join(f"{name}\n" for name in classes))
  print(f"{path}: {len(classes):,} classes")


if __name__ == "__main__":
  run_script(main)
