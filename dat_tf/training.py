"""Puts a run together: data, model, optimizer, callbacks, and what to do with them.

A run's directory holds

    config.flags    its settings, a flagfile that reproduces it
    checkpoints/    the newest few, one an epoch
    export/         the classifier, for tf.keras.models.load_model
    logs/           TensorBoard's
    results.json    figures at the end of training and of evaluation
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

from dat_tf import checkpointing, hashing, parts, pseudo_labeling, startup
from dat_tf import cluster as cluster_lib
from dat_tf import config as config_lib
from dat_tf.adversarial_model import NON_FINITE, AdversarialModel
from dat_tf.communication import QuantizedAllReduce
from dat_tf.data import records
from dat_tf.errors import UserError
from dat_tf.inputs import Inputs
from dat_tf.models import make_model
from dat_tf.monitoring import (
  AttackedImages,
  Progress,
  Scalars,
  StepClock,
  update_results,
)

# What collectives raise on a worker whose peer has ended, frozen or vanished.
_LOST_WORKER = (
  tf.errors.UnavailableError,
  tf.errors.AbortedError,
  tf.errors.CancelledError,
  tf.errors.DeadlineExceededError,
)


def run(config: flags.FlagValues, cluster: cluster_lib.Cluster) -> None:
  """Does what `config.mode` says, as one of the workers of `cluster`.

  Raises:
    UserError: settings, data or model directory do not fit together.
  """
  # A run that ended before its first checkpoint binds nobody.
  if tf.train.latest_checkpoint(os.path.join(config.model_dir, "checkpoints")):
    config_lib.check_against_saved(config)
  try:
    this = Run(config, cluster)
    if config.mode in ("train", "train_and_evaluate"):
      this.train()
    else:
      this.restore()
    if config.mode in ("evaluate", "train_and_evaluate"):
      this.evaluate()
    if config.mode == "pseudo_label":
      this.pseudo_label()
    if config.mode == "export":
      this.export()
      if cluster.is_chief:
        print(f"{config.model_dir}/export: the classifier, written anew.", flush=True)
    this.wait_for_all()
  except _LOST_WORKER:
    if cluster.num_workers == 1:
      raise
    # This worker is not the cause; exit code 1.
    raise SystemExit(
      f"Worker {cluster.index} ends because another one did: see what that one printed "
      "and start all again; they go on from the newest checkpoint."
    ) from None


# Images that are pseudo-labelled together, at most.
_LARGEST_BATCH = 256


class Run:
  """One worker's part of a run. Every worker makes the same calls in the same order."""

  def __init__(self, config: flags.FlagValues, cluster: cluster_lib.Cluster):
    """Opens the data and builds the model; nothing is written yet."""
    self._config, self._cluster = config, cluster
    if config.communication == "nccl" and not tf.config.list_physical_devices("GPU"):
      raise UserError("--communication=nccl needs GPUs, and none is here: use ring.")
    tf.keras.utils.set_random_seed(config.seed)
    self._options = cluster_lib.communication_options(
      config.communication, config.bytes_per_pack, config.collective_timeout
    )
    self._strategy = cluster_lib.make_strategy(cluster, self._options)
    self._replicas = self._strategy.num_replicas_in_sync
    config_lib.check_same(
      cluster_lib.all_workers_texts(self._strategy, config_lib.to_text(config))
    )
    surplus = config.global_batch_size % self._replicas
    if surplus:
      raise UserError(
        f"--global_batch_size={config.global_batch_size} is not a multiple of the "
        f"{self._replicas} replicas: choose one that is, such as "
        f"{config.global_batch_size - surplus + self._replicas}."
      )
    self.inputs = Inputs(config, cluster, self._strategy)
    self.model, self._plain = self._build(self.inputs.image_shape)
    residual = None
    if self.inputs.train and isinstance(self.model.all_reduce, QuantizedAllReduce):
      residual = self.model.all_reduce
    self._checkpoints = checkpointing.Checkpoints(
      os.path.join(config.model_dir, "checkpoints"),
      self.model.classifier,
      self.model.optimizer if self.inputs.train else None,
      residual,
      config.checkpoints_to_keep,
      cluster.is_chief,
    )

  def _build(
    self, image_shape: tuple[int, ...]
  ) -> tuple[AdversarialModel, tf.keras.Model]:
    """The distributed model, and a plain copy of its classifier."""
    config = self._config
    with self._strategy.scope():
      classifier = make_model(config.model, image_shape, config.num_classes)
    all_reduce = None  # nothing to reduce without training
    if self.inputs.train:
      all_reduce = parts.make_all_reduce(
        config, classifier.trainable_variables, self._strategy, self._options
      )
    with self._strategy.scope():
      model = AdversarialModel(
        classifier,
        attack=parts.make_attack(config),
        objective=parts.make_objective(config),
        all_reduce=all_reduce,
        evaluation_attack=parts.make_evaluation_attack(config),
        attack_in_training_mode=config.attack_in_training_mode,
        seed=config.seed,
      )
      steps = self.inputs.train.steps if self.inputs.train else 1
      model.compile(optimizer=parts.make_optimizer(config, steps))
    return model, tf.keras.models.clone_model(model.classifier)

  def train(self) -> None:
    """Trains from the newest checkpoint, if there is one, to the last epoch."""
    config, source = self._config, self.inputs.train
    assert source is not None
    first_epoch = self._restored_epochs()
    results: dict[str, Any] = {
      "standard_accuracy": None,  # until it is evaluated
      "robust_accuracy": {},
      "epochs": config.epochs,
      "global_batch_size": config.global_batch_size,
      "num_workers": self._cluster.num_workers,
      "parameters": self.model.classifier.count_params(),
      "train_seconds": None,
      "examples_per_second": None,
      "bytes_sent_per_step": self._bytes_sent_per_step,
    }
    if first_epoch >= config.epochs:
      if self._cluster.is_chief:
        print(f"{config.model_dir}: epoch {first_epoch} is done; --epochs adds more.")
      # What a run that was stopped just before its end still owes.
      if not tf.io.gfile.exists(os.path.join(config.model_dir, "results.json")):
        self._write_results(results)
      self.export()
      return
    if self._cluster.is_chief:
      config_lib.save(config)
    clock = StepClock()
    dataset = self.distribute(self.inputs.training_batches(first_epoch))
    validation: dict[str, Any] = {}
    if config.evaluate_every:
      assert self.inputs.test is not None
      validation = {
        "validation_data": self.distribute(
          self.inputs.evaluation_batches(self.inputs.test)
        ),
        "validation_steps": self.inputs.test.steps,
        "validation_freq": config.evaluate_every,
      }
    callbacks = [tf.keras.callbacks.LambdaCallback(on_epoch_end=self._save)]
    progress = Progress(config.epochs * source.steps, first_epoch * source.steps)
    if self._cluster.is_chief:
      callbacks += [*self.watchers(), progress]
    started = time.perf_counter()
    with self._explained_errors(), contextlib.closing(progress):
      self.model.fit(
        dataset,
        epochs=config.epochs,
        initial_epoch=first_epoch,
        steps_per_epoch=source.steps,
        callbacks=[*callbacks, clock],
        verbose=0,
        **validation,
      )
    self._write_results(
      {
        **results,
        "train_seconds": round(time.perf_counter() - started, 3),
        "examples_per_second": clock.steps_per_second * config.global_batch_size,
      }
    )
    self.export()

  def _save(self, epoch: int, logs: Any) -> None:
    # An update may overflow although the gradient did not.
    weights = self.model.classifier.trainable_variables
    if not all(tf.reduce_all(tf.math.is_finite(weight)) for weight in weights):
      raise self._diverged(f"The weights are not finite after epoch {epoch + 1}")
    self._checkpoints.save(epoch + 1)

  def watchers(self) -> list[tf.keras.callbacks.Callback]:
    """The callbacks that keep what TensorBoard shows, for the chief."""
    config, source = self._config, self.inputs.train
    assert source is not None
    draw = None
    if config.pictures:
      with self._explained_errors():
        batch = next(iter(self.inputs.evaluation_batches(source, config.pictures)))
      keys = hashing.stream_keys(config.seed, batch["epoch"], batch["example_id"])
      attack = self.model.evaluation_attack
      assert attack is not None
      attacked = AttackedImages(
        self._plain, attack, batch["image"], batch["label"], keys
      )

      def draw() -> np.ndarray:
        checkpointing.copy_weights(self.model.classifier, self._plain)
        return attacked.draw()

    return [
      Scalars(
        os.path.join(config.model_dir, "logs"),
        config.log_every,
        config.global_batch_size,
        self._bytes_sent_per_step,
        draw,
      )
    ]

  @property
  def _bytes_sent_per_step(self) -> int:
    return self.model.all_reduce.bytes_sent(
      self.model.classifier.trainable_variables, self._cluster.num_workers
    )

  def restore(self) -> None:
    """Takes the weights of the newest checkpoint.

    Raises:
      UserError: there is none.
    """
    if not self._restored_epochs():
      raise UserError(
        f"{self._config.model_dir} holds no checkpoint: train first, with --mode=train."
      )

  def _restored_epochs(self) -> int:
    """Restores the newest checkpoint; the epochs it has seen, 0 without one."""
    epochs = self._checkpoints.restore()
    most = cluster_lib.all_workers_max(self._strategy, epochs)
    least = -cluster_lib.all_workers_max(self._strategy, -epochs)
    if least != most:
      raise UserError(
        f"--model_dir={self._config.model_dir}: worker {self._cluster.index} finds a "
        f"checkpoint of {epochs} epochs there, others of {least} to {most}; it must be "
        "one directory that all workers share."
      )
    return epochs

  def evaluate(self) -> None:
    """Measures clean and robust accuracy, each test image counted once."""
    source = self.inputs.test
    assert source is not None
    progress = Progress(source.steps)
    with self._explained_errors(), contextlib.closing(progress):
      figures = self.model.evaluate(
        self.distribute(self.inputs.evaluation_batches(source)),
        steps=source.steps,
        callbacks=[progress] if self._cluster.is_chief else [],
        verbose=0,
        return_dict=True,
      )
    self._write_results(
      {
        "standard_accuracy": figures["accuracy"],
        "robust_accuracy": {
          f"pgd-{self._config.evaluation_attack_steps}": figures["robust_accuracy"]
        },
        "test_examples": int(figures["examples"]),
      }
    )

  def pseudo_label(self) -> None:
    """Labels this worker's part of the files of --unlabeled_data."""
    config, source = self._config, self.inputs.unlabeled
    assert source is not None
    self.model.average_statistics()
    checkpointing.copy_weights(self.model.classifier, self._plain)
    classify = tf.function(lambda images: self._plain(images, training=False))
    labeler = pseudo_labeling.PseudoLabeler(
      classify,
      source.form,
      source.image_shape,
      parts.make_crop(config),
      # The same on any number of workers.
      min(config.global_batch_size, _LARGEST_BATCH),
      config.pseudo_labels == "soft",
      config.confidence_threshold,
      self.inputs.reading["first_label"],
      config.skip_bad_records > 0,
    )
    paths = records.match_files(config.unlabeled_data)
    targets = pseudo_labeling.targets(paths, config.pseudo_label_dir)
    settings = {
      "weights": pseudo_labeling.fingerprint(self._plain),
      "labels": config.pseudo_labels,
      "threshold": config.confidence_threshold,
      "image_size": config.image_size,
      "first_label": config.first_label,
    }
    cluster, is_local = self._cluster, config.data_is_local
    pseudo_labeling.begin(
      config.pseudo_label_dir, settings, cluster.is_chief or is_local
    )
    # Files are labelled whole, each by one worker.
    mine = slice(None) if is_local else slice(cluster.index, None, cluster.num_workers)
    with self._explained_errors():
      counts = labeler.label_files(paths[mine], targets[mine], cluster.is_chief)
    texts = cluster_lib.all_workers_texts(self._strategy, json.dumps(counts))
    written, labeled = map(sum, zip(*map(json.loads, texts)))
    if cluster.is_chief:
      print(
        f"{config.pseudo_label_dir}: {labeled} of the {written} images written now have"
        " a pseudo-label.",
        flush=True,
      )

  def export(self) -> None:
    """Writes the classifier as a plain Keras model."""
    self.model.average_statistics()
    if self._cluster.is_chief:
      checkpointing.copy_weights(self.model.classifier, self._plain)
      checkpointing.export(self._plain, os.path.join(self._config.model_dir, "export"))

  def wait_for_all(self) -> None:
    """Returns once every worker has called it: none is missed while still needed."""
    cluster_lib.all_workers_max(self._strategy, 0)

  def distribute(self, dataset: tf.data.Dataset) -> tf.distribute.DistributedDataset:
    """Deals the batches of this worker's dataset to its replicas."""
    # Without a GPU there is no device to copy batches to ahead of time.
    options = tf.distribute.InputOptions(
      experimental_fetch_to_device=bool(tf.config.list_logical_devices("GPU"))
    )
    return _iterated_quietly(
      self._strategy.distribute_datasets_from_function(lambda context: dataset, options)
    )

  @contextlib.contextmanager
  def _explained_errors(self) -> Iterator[None]:
    """Turns what TensorFlow says of bad data and bad numbers into one line."""
    try:
      yield
    except records.DATA_ERRORS as error:
      diverged = re.search(re.escape(NON_FINITE) + r"\D*(\d+)", str(error))
      if diverged:
        raise self._diverged(f"{NON_FINITE} {diverged[1]}") from None
      message = self.inputs.explain()
      if message is None:
        raise
      raise UserError(message) from None

  def _diverged(self, what: str) -> UserError:
    newest = tf.train.latest_checkpoint(
      os.path.join(self._config.model_dir, "checkpoints")
    )
    return UserError(
      f"{what}: lower --learning_rate or lengthen --warmup_epochs; last good "
      f"checkpoint: {newest or 'none'}."
    )

  def _write_results(self, figures: dict[str, Any]) -> None:
    if self._cluster.is_chief:
      update_results(os.path.join(self._config.model_dir, "results.json"), figures)


def _iterated_quietly(
  dataset: tf.distribute.DistributedDataset,
) -> tf.distribute.DistributedDataset:
  """Drops the warning that tf.data gives of tf.distribute's own kind of iterator."""

  class Quiet(type(dataset)):  # type: ignore[misc]
    def __iter__(self) -> Any:
      with startup.quiet():
        return super().__iter__()

  dataset.__class__ = Quiet
  return dataset
