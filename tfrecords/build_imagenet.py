"""Writes ImageNet (ILSVRC2012) as TFRecords, from the original archives or folders.

    python tfrecords/build_imagenet.py --output_dir=DIR \
      --train=ILSVRC2012_img_train.tar --validation=ILSVRC2012_img_val.tar \
      --validation_labels=ILSVRC2012_devkit_t12.tar.gz

makes DIR/train-00000-of-01024 and so on, and DIR/validation-00000-of-00128 and so on,
in the canonical form: image/encoded (JPEG), image/class/label (from 1, in the
alphabetical order of the synsets), image/class/synset, and image/format, colorspace,
channels, height, width and filename. Images are shuffled by --seed and read inside the
archives, which are not unpacked. Every image is decoded once, to be sure that it can be
(those that cannot are all named at the end, or left out by --skip_bad_images); those
that are no RGB or grey JPEG are encoded anew as one. All cores work, each with one
file's images (some 150 MB) in memory. After an interruption the same command goes on
with the first file that is not complete.

--train is the archive, or a folder SYNSET/*.JPEG. --validation is the archive, a folder
of its images, which are named ILSVRC2012_val_00000001.JPEG and so on, or a folder
SYNSET/*.JPEG, which needs no labels. Either may be left out. --validation_labels is one
of these:

  ILSVRC2012_devkit_t12.tar.gz     the development kit
  LOC_val_solution.csv             Kaggle's list
  a text with a synset a line      in the order of the images' names
  ILSVRC2012_validation_ground_truth.txt, with the kit's meta.mat beside it: its numbers
                                   count synsets in an order of the kit's own

--runner=NAME writes the files as an Apache Beam pipeline instead, on many machines if
it is to; flags for Beam follow after `--`:

    ... --runner=DataflowRunner -- --project=P --region=R --temp_location=gs://B/tmp
"""

from __future__ import annotations

import functools
import io
import os
import re
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any, Optional

from absl import flags

from dat_tf.base.errors import UserError
from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf.conversion import archives, beam, published
  from dat_tf.conversion.convert import convert, encoded_record, has_begun
  from dat_tf.conversion.items import (
    Item,
    explain_failed_reading,
    list_folders,
    list_images,
    open_binary,
  )

ORIGINALS = {
  "train": published.Original(147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
  "validation": published.Original(6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
}
# Bytes; the original's labels and kit have less than 3 MB.
_LONGEST_LABELS = 2**24
SYNSET = re.compile(r"n\d{8}")
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")

_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", None, "Directory that the TFRecord files go to.", required=True
)
_TRAIN = flags.DEFINE_string(
  "train", None, "ILSVRC2012_img_train.tar, or a folder of SYNSET/*.JPEG."
)
_VALIDATION = flags.DEFINE_string(
  "validation", None, "ILSVRC2012_img_val.tar, or a folder of its images."
)
_LABELS = flags.DEFINE_string(
  "validation_labels", None, "The development kit, or a list of synsets; see --help."
)
_TRAIN_SHARDS = flags.DEFINE_integer(
  "num_train_shards", 1024, "Files for training, at least 1.", lower_bound=1
)
_VALIDATION_SHARDS = flags.DEFINE_integer(
  "num_validation_shards", 128, "Files for validation, at least 1.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the shuffling.", lower_bound=0)
_SKIP_BAD_IMAGES = flags.DEFINE_bool(
  "skip_bad_images", False, "Leave out images that cannot be read."
)
_RUNNER = flags.DEFINE_string(
  "runner", None, "Apache Beam's runner that is to write the files, if any."
)

# Each image's synset and the image, its label still to come.
Labeled = list[tuple[str, Item]]


def train_images(source: str) -> Labeled:
  """Lists the training images of the archive or the folder, with their synsets."""
  if tf.io.gfile.isdir(source):
    return images_in_synset_folders(source)
  images = []
  with explain_failed_reading(source), open_binary(source) as file:
    for tar in archives.tar_members(file, source):
      synset = os.path.basename(tar.name).removesuffix(".tar")
      if not SYNSET.fullmatch(synset) or not tar.name.endswith(".tar"):
        raise UserError(
          f"{source} holds {tar.name}, and not one tar a synset: set --train to "
          "ILSVRC2012_img_train.tar or to a folder of SYNSET/*.JPEG."
        )
      name = f"{source}: {tar.name}"
      for member in archives.tar_members(file, name, tar.offset, tar.size):
        path = f"{synset}/{os.path.basename(member.name)}"
        images.append((synset, Item(source, member.offset, member.size, None, path)))
  return images


def images_in_synset_folders(source: str) -> Labeled:
  return [
    (synset, image)
    for synset in list_folders(source)
    if SYNSET.fullmatch(synset)
    for image in list_images(os.path.join(source, synset), source)
  ]


def validation_images(source: str, labels: Optional[str]) -> Labeled:
  """Lists the validation images of the archive or the folder, with their synsets."""
  if tf.io.gfile.isdir(source):
    if images := images_in_synset_folders(source):
      return images
    items = list_images(source, source)
  else:
    with explain_failed_reading(source), open_binary(source) as file:
      items = [
        Item(source, member.offset, member.size, None, member.name)
        for member in archives.tar_members(file, source)
      ]
  numbered = {}
  for item in items:
    match = VALIDATION_NAME.fullmatch(os.path.basename(item.member))
    if not match:
      raise UserError(
        f"{source} holds {item.member}, which is not named as validation images are "
        "(ILSVRC2012_val_00000001.JPEG): set --validation to ILSVRC2012_img_val.tar or "
        "to a folder of its images."
      )
    numbered[int(match[1])] = item
  if labels is None:
    raise UserError(
      "--validation needs --validation_labels: set it to ILSVRC2012_devkit_t12.tar.gz."
    )
  synsets = read_labels(labels)
  if len(items) != len(numbered) or numbered.keys() != synsets.keys():
    differing = sorted(numbered.keys() ^ synsets.keys())
    raise UserError(
      f"{source} holds {len(items):,} images and {labels} has {len(synsets):,} labels"
      + (f"; image {differing[0]} is in one of them only" if differing else "")
      + ": set --validation and --validation_labels to files of one whole data set."
    )
  return [(synsets[number], numbered[number]) for number in sorted(numbered)]


def read_labels(path: str) -> dict[int, str]:
  """Reads the validation images' synsets, by the number in the image's name.

  Raises:
    UserError: The file is none of those that the head of this program lists.
  """
  with explain_failed_reading(path), open_binary(path) as file:
    content = archives.read_at_most(file.read, _LONGEST_LABELS, path)
  if content.startswith(b"\x1f\x8b"):
    return labels_from_kit(path, content)
  lines = content.decode("utf-8", "replace").split("\n")
  lines = [line.strip() for line in lines if line.strip()]
  if lines and lines[0].startswith("ImageId,"):
    labels = {}
    for number, line in enumerate(lines[1:], 2):
      name, _, prediction = line.partition(",")
      match = VALIDATION_NAME.fullmatch(f"{name}.JPEG")
      synset = prediction.split(" ")[0]
      if not match or not SYNSET.fullmatch(synset):
        raise UserError(f"{path}: line {number} names no image and synset.")
      labels[int(match[1])] = synset
    return labels
  if lines and all(map(SYNSET.fullmatch, lines)):
    return dict(enumerate(lines, 1))
  if lines and all(line.isdecimal() for line in lines):
    meta = os.path.join(os.path.dirname(path), "meta.mat")
    if not tf.io.gfile.exists(meta):
      raise UserError(
        f"{path} counts synsets in the development kit's own order, which is not the "
        "alphabetical one: put the kit's data/meta.mat beside it, or set "
        "--validation_labels to ILSVRC2012_devkit_t12.tar.gz."
      )
    with explain_failed_reading(meta), open_binary(meta) as file:
      return labels_by_id(path, lines, read_synset_ids(meta, file.read()))
  raise UserError(
    f"{path} is no list of validation labels: set --validation_labels to "
    "ILSVRC2012_devkit_t12.tar.gz, LOC_val_solution.csv or a text with a synset a line."
  )


def labels_from_kit(path: str, content: bytes) -> dict[int, str]:
  """Reads the ground truth and meta.mat out of the development kit's archive."""
  wanted = ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"]
  try:
    found = archives.read_members(io.BytesIO(content), path, wanted, _LONGEST_LABELS)
  except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
    raise UserError(f"{path} is no whole archive ({error}): copy it again.") from error
  for name in wanted:
    if not found.get(name):
      raise UserError(
        f"{path} holds no {name}: set --validation_labels to "
        "ILSVRC2012_devkit_t12.tar.gz."
      )
  meta, truth = (found[name] for name in wanted)
  lines = truth.decode("ascii", "replace").split()
  return labels_by_id(path, lines, read_synset_ids(path, meta))


def read_synset_ids(path: str, content: bytes) -> dict[int, str]:
  """Reads meta.mat: the synset of each ILSVRC2012_ID."""
  try:
    from scipy.io import loadmat
  except ImportError:
    raise UserError(
      f"{path} can be read with SciPy only: pip install scipy, or give a text with a "
      "synset a line."
    ) from None
  try:
    synsets = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    return {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets.flat}
  except Exception as error:  # SciPy raises all kinds of errors on a damaged file.
    raise UserError(
      f"{path}: meta.mat cannot be read ({error}): take it from the development kit."
    ) from error


def labels_by_id(
  path: str, lines: Sequence[str], synsets: dict[int, str]
) -> dict[int, str]:
  """The synset of each line's ILSVRC2012_ID, by the number of the line from 1."""
  for number, line in enumerate(lines, 1):
    if not line.isdecimal() or int(line) not in synsets:
      raise UserError(
        f"{path}: line {number} of the ground truth ('{line:.20}') is no "
        "ILSVRC2012_ID that meta.mat knows: take both from one development kit."
      )
  return {number: synsets[int(line)] for number, line in enumerate(lines, 1)}


def main(argv: Sequence[str]) -> None:
  write = beam.writer(_RUNNER.value, argv[1:])
  output = _OUTPUT_DIR.value
  images: dict[str, Labeled] = {}
  sources: dict[str, Any] = {"train": _TRAIN.value, "validation": _VALIDATION.value}
  for split, source in sources.items():
    if source is None:
      continue
    if not tf.io.gfile.isdir(source) and not has_begun(output, split):
      published.warn_of_other(source, ORIGINALS[split])
    print(f"Listing the images of {source} ...", flush=True)
    if split == "train":
      images[split] = train_images(source)
    else:
      images[split] = validation_images(source, _LABELS.value)
    if not images[split]:
      raise UserError(f"{source} holds no image of ILSVRC2012: mend --{split}.")
  if not images:
    raise UserError("There is nothing to write: set --train, --validation or both.")
  synsets, *others = (sorted({synset for synset, _ in one}) for one in images.values())
  if others and others[0] != synsets:
    differing = sorted(set(others[0]) ^ set(synsets))
    raise UserError(
      f"--train has {len(synsets)} synsets and --validation {len(others[0])}; "
      f"{differing[0]} is in one of them only: set both to one data set."
    )
  label = {synset: number for number, synset in enumerate(synsets)}
  make_record = functools.partial(
    encoded_record,
    class_names=synsets,
    class_feature="image/class/synset",
    rgb_jpeg=True,
  )
  shards = {"train": _TRAIN_SHARDS.value, "validation": _VALIDATION_SHARDS.value}
  for split in list(images):
    # Taken out, since a million items fill some memory.
    items = [item._replace(label=label[synset]) for synset, item in images.pop(split)]
    settings = {"classes": len(synsets)}
    line = convert(
      items,
      make_record,
      output,
      split,
      num_shards=shards[split],
      seed=_SEED.value,
      settings=settings,
      write=write,
      skip_bad_images=_SKIP_BAD_IMAGES.value,
    )
    print(f"{line}; {len(synsets):,} classes")


if __name__ == "__main__":
  run_script(main)
