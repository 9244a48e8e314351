"""The data of a run: the files that its flags name, and batches of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, Optional

import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError
from dat_tf.data import augment, comparison, mixture, pipeline, records, shards
from dat_tf.data.source import Source, open_source
from dat_tf.workers.joined import Workers


class Inputs:
  """One worker's data. Every worker makes the same calls in the same order.

  Attributes:
    train: labelled examples to train on; None in modes that do not train.
    test: examples to evaluate on; None if there are none.
    validation: examples to evaluate on while training, if they are not the test
      examples; None if there are none.
    unlabeled: examples to train on or to label without true labels; None if there are
      none.
  """

  def __init__(self, config: config_lib.Settings, workers: Workers):
    """Opens the files; a collective.

    Raises:
      UserError: files are missing or damaged, or do not go together.
    """
    self._config, self._workers = config, workers
    first_label = None if config.first_label == "auto" else int(config.first_label)
    self.reading: dict[str, Any] = {
      "num_classes": config.num_classes,
      "first_label": first_label,
    }
    per_replica = config.global_batch_size // workers.num_replicas
    unlabeled = 0
    if config.trains and config.unlabeled_data:
      unlabeled = round(config.unlabeled_fraction * per_replica)
      if not 0 < unlabeled < per_replica:
        raise UserError(
          f"--unlabeled_fraction={config.unlabeled_fraction:g} of the {per_replica} "
          "image(s) that a replica takes in a step leaves none of either kind: choose "
          "another, or a larger --global_batch_size."
        )
    self._batch_sizes = per_replica - unlabeled, unlabeled
    opened = functools.partial(
      open_source,
      workers=workers,
      batch_size=per_replica,
      image_size=config.image_size,
      in_color=config.channels == "3",
      skip_bad_records=config.skip_bad_records > 0,
    )
    local = config.data_is_local
    self.train = self.test = self.validation = self.unlabeled = None
    if config.trains:
      self.train = opened(
        config.train_data, batch_size=self._batch_sizes[0], data_is_local=local
      )
    if config.test_data and config.mode != "pseudo_label":
      self.test = opened(config.test_data)
    if config.trains and config.evaluate_every and config.validation_data:
      self.validation = opened(config.validation_data)
    if unlabeled or config.mode == "pseudo_label":
      self.unlabeled = opened(
        config.unlabeled_data,
        batch_size=unlabeled or per_replica,
        data_is_local=local,
        needs_label=False,
      )
      self._check_pseudo_labels()
    self._agree_on_channels()
    shapes = {source.image_shape for source in self._sources}
    if len(shapes) > 1:
      raise UserError(
        f"The images are of different shapes, {sorted(shapes)}: write all of them in "
        "one, or set --image_size."
      )
    if not shapes:
      raise UserError("--test_data is required: the images' shape is read from it.")
    (self.image_shape,) = shapes
    if config.skip_bad_records:
      self._check_bad_records()

  def _agree_on_channels(self) -> None:
    """Where some data are grey and some are not, all become RGB."""
    if len({source.image_shape[-1] for source in self._sources}) == 1:
      return
    for name in ("train", "test", "validation", "unlabeled"):
      source = getattr(self, name)
      if source is not None:
        setattr(self, name, source.in_color())

  @property
  def _sources(self) -> list[Source]:
    sources = self.train, self.unlabeled, self.validation, self.test
    return list(filter(None, sources))

  @property
  def steps_per_epoch(self) -> int:
    """Training steps of an epoch; 1 without training."""
    return self.train.steps * self._replays if self.train else 1

  @property
  def _replays(self) -> int:
    """How often each batch is trained on."""
    return self._config.attack_steps if self._config.attack == "free" else 1

  def warning(self) -> Optional[str]:
    """What is doubtful about the files to train and to test on; None if nothing is."""
    config, train, test = self._config, self.train, self.test
    if not train or not test:
      return None
    return comparison.warning(
      records.match_files(config.train_data),
      records.match_files(config.test_data),
      train.form,
      test.form,
    )

  def _check_pseudo_labels(self) -> None:
    config, source = self._config, self.unlabeled
    assert source is not None
    if config.mode == "pseudo_label" or config.unlabeled_loss == "consistency":
      return
    path = records.match_files(config.unlabeled_data)[0]
    skip = config.skip_bad_records > 0
    if not records.has_labels(path, source.form, skip_bad_records=skip):
      raise UserError(
        f"{path} has no pseudo-labels, which --unlabeled_loss={config.unlabeled_loss} "
        "needs: make them with --mode=pseudo_label, or choose "
        "--unlabeled_loss=consistency."
      )

  def _check_bad_records(self) -> None:
    """Reports the records that are left out; ends the run if they are too many."""
    mine = [bad for source in self._sources for bad in source.shard.bad_records]
    texts = self._workers.texts(json.dumps(mine))
    bad_records = [bad for text in texts for bad in json.loads(text)]
    shards.check_bad_records(bad_records, self._config.skip_bad_records)
    if self._workers.is_chief:
      for bad in bad_records:
        print(f"Left out: {bad}", flush=True)

  def training_batches(self, first_epoch: int, first_step: int = 0) -> tf.data.Dataset:
    """Batches for a replica of this worker, of all steps that are left.

    Args:
      first_epoch: the epoch to start at, from 0.
      first_step: its step to start at, from 0.
    """
    config, source = self._config, self.train
    assert source is not None
    augmentation = config_lib.make_augmentation(config)
    local = self._workers.num_local_replicas
    # A step takes a batch for each replica.
    first_batch, replayed = divmod(first_step * local, self._replays)
    common = {
      "batches_per_epoch": source.steps * local,
      "first_epoch": first_epoch,
      "first_batch": first_batch,
      "last_epoch": config.epochs,
      "shuffle_buffer": config.shuffle_buffer,
    }
    labeled, unlabeled = self._batch_sizes
    dataset = pipeline.training_dataset(
      source.shard,
      self.reading_of(source, augmentation),
      batch_size=labeled,
      data_service=config.data_service,
      **common,
    )
    if self.unlabeled is not None:
      others = pipeline.continuous_dataset(
        self.unlabeled.shard,
        self.reading_of(self.unlabeled, augmentation),
        batch_size=unlabeled,
        **common,
      )
      dataset = mixture.mixed(dataset, others, config.num_classes)
    return mixture.replayed(dataset, self._replays, replayed)

  def evaluation_batches(
    self, source: Source, batch_size: Optional[int] = None
  ) -> tf.data.Dataset:
    """Batches of one pass, for a replica of this worker or of another size."""
    examples = source.steps * self._config.global_batch_size
    workers = self._workers
    batch_size = batch_size or self._config.global_batch_size // workers.num_replicas
    return pipeline.evaluation_dataset(
      source.shard,
      self.reading_of(source, config_lib.make_crop(self._config)),
      batch_size=batch_size,
      batches_per_epoch=pipeline.batches_per_epoch(
        examples // workers.cluster.num_workers, batch_size
      ),
    )

  def reading_of(
    self, source: Source, augmentation: Optional[augment.Augmentation]
  ) -> pipeline.Reading:
    """How a source's records become examples."""
    return pipeline.Reading(
      source.form,
      source.image_shape,
      augmentation=augmentation,
      seed=self._config.seed,
      **self.reading,
    )

  def explain(self, test_paths: Sequence[str] = ()) -> Optional[str]:
    """What is wrong with the first bad record that is read here, if one is: one line.

    Args:
      test_paths: the files of test data that are read, if they are not this worker's.
    """
    for source in self._sources:
      others = source is self.test and test_paths
      message = records.explain_data_error(
        list(test_paths) if others else source.shard.paths,
        source.form,
        source.stored_shape,
        skip_bad_records=self._config.skip_bad_records > 0,
        **self.reading,
      )
      if message is not None:
        return message
    return None
