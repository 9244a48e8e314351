"""The data of a run: which files, and how their images become batches."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Optional

from dat_tf.config.declaring import (
  Option,
  choice,
  integer,
  number,
  options,
  switch,
  text,
)
from dat_tf.config.refusals import Refusals

if TYPE_CHECKING:
  from dat_tf.config.settings import Settings

_AUGMENTATION = options(
  Option("none"),
  Option("pad_crop_flip", "shifts by up to 4 pixels, and mirrors half of the images"),
  Option("random_resized_crop", "cuts out a random part, and mirrors half"),
)
_CHANNELS = options(
  Option(
    "auto",
    "grey images become RGB if any of the first 200 is in color; if none is, an image "
    "in color that comes later ends the run",
  ),
  Option("3", "grey images become RGB"),
)


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Which files a run reads, and how."""

  ROOM = "data"

  train_data: str = text(
    None,
    "TFRecords to train on: a pattern of file names, in which *, ? and [ ] stand for "
    "others, or several patterns separated by commas.",
  )
  test_data: str = text(
    None, "TFRecords to evaluate on; patterns as for train_data.", may_change=True
  )
  validation_data: Optional[str] = text(
    None,
    "TFRecords for evaluate_every and early_stopping, which are neither trained nor "
    "tested on; patterns as for train_data.",
  )
  num_classes: int = integer(10, "Number of classes of the labels.", lower=2)
  first_label: str = choice(
    "auto",
    ("auto", "0", "1"),
    "Label of the first class in the records; auto is 1 in ImageNet's form, else 0.",
  )
  global_batch_size: int = integer(
    128,
    "Images of one step on all workers together; a multiple of the replicas.",
    lower=1,
  )
  shuffle_buffer: int = integer(
    10_000, "Records that each worker shuffles among; 0 keeps the order of the files."
  )
  augmentation: str = choice("none", _AUGMENTATION, "What training does to its images.")
  image_size: Optional[int] = integer(
    None,
    "Pixels of either side to which images are brought: their middle is taken, or what "
    "random_resized_crop cuts out. Default: images keep their size, which must be one.",
    lower=1,
  )
  channels: str = choice("auto", _CHANNELS, "Channels of the images.", may_change=True)
  data_is_local: bool = switch(
    "Each worker trains on all files that its own pattern matches, which no other "
    "worker has, instead of on a share of common files. Test data are common files.",
  )
  skip_bad_records: int = integer(
    0,
    "Largest number of records with a wrong checksum, on all workers together, that "
    "are left out. To find them all files are read once before the first step.",
    may_change=True,
  )
  data_service: Optional[str] = text(
    None,
    "HOST:PORT of a tf.data service (python -m dat_tf.data.service) that reads, "
    "decodes and augments labelled images to train on. Their order is left to chance.",
    may_change=True,
  )
  unlabeled_data: str = text(
    None,
    "TFRecords without labels or with pseudo-labels, to train on beside labelled ones, "
    "or for --mode=pseudo_label; patterns as for train_data.",
  )
  unlabeled_fraction: float = number(
    0.5, "Part of each batch that is unlabelled.", above=0, below=1
  )


def make_crop(settings: Settings) -> Any:
  """What brings images of any size to one; None leaves them as they are."""
  from dat_tf.data import augment

  return augment.CenterCrop(settings.image_size) if settings.image_size else None


def make_augmentation(settings: Settings) -> Any:
  """What training does to its images; None leaves them as they are."""
  from dat_tf.data import augment

  if settings.augmentation == "pad_crop_flip":
    return augment.PadCropFlip(4)
  if settings.augmentation == "random_resized_crop":
    assert settings.image_size
    return augment.RandomResizedCrop(settings.image_size)
  return make_crop(settings)


def contradictions(settings: Settings) -> Refusals:
  """What does not go together, see `refusals`."""
  yield (
    settings.augmentation == "random_resized_crop" and settings.image_size is None,
    "--augmentation=random_resized_crop needs --image_size, such as 224.",
  )
  yield (
    settings.augmentation == "pad_crop_flip" and settings.image_size is not None,
    "--augmentation=pad_crop_flip is for images of one size, --image_size for those of "
    "many: choose random_resized_crop, or drop --image_size.",
  )
  yield from (
    (
      settings.trains
      and not settings.unlabeled_data
      and getattr(settings, name) != default,
      f"--{name} plays no part without --unlabeled_data: name it, or drop --{name}.",
    )
    for name, default in (
      ("unlabeled_fraction", 0.5),
      ("unlabeled_loss", "pseudo_label"),
      ("unlabeled_weight", 1),
      ("consistency_growing_epochs", 10),
      ("pseudo_label_smoothing", 0),
    )
  )
