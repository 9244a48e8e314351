"""Puts a run together: data, model, optimizer, callbacks, and what to do with them.

A run's directory holds

    config.flags    its settings, a flagfile that reproduces it
    checkpoints/    the newest few, one an epoch
    export/         the classifier, for tf.keras.models.load_model
    logs/           TensorBoard's
    results.json    figures at the end of training and of evaluation
    evaluation/     of --attacks: what became of each example, and probes
    report.html     what was measured, to look at; its plots are in report/
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any, Optional

import tensorflow as tf
from absl import flags

from dat_tf import (
  checkpointing,
  exporting,
  files,
  hashing,
  initialization,
  parts,
  pseudo_labeling,
  reporting,
  startup,
)
from dat_tf import cluster as cluster_lib
from dat_tf import config as config_lib
from dat_tf.adversarial_model import NON_FINITE, AdversarialModel
from dat_tf.attacks import make_attacks
from dat_tf.communication import MeanAllReduce, QuantizedAllReduce, quantizers
from dat_tf.data import pipeline, records, shards
from dat_tf.early_stopping import EarlyStopping
from dat_tf.errors import UserError
from dat_tf.evaluation import Survey, UserModel, checks, outcomes, survey, user_model
from dat_tf.inputs import Inputs
from dat_tf.models import make_model, transfer
from dat_tf.monitoring import (
  Attacked,
  AttackedImages,
  Profiler,
  Progress,
  Scalars,
  StepClock,
  Summary,
  log_evaluation,
  update_results,
)
from dat_tf.watchdog import Watchdog

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
  if config.mode == "report":
    if cluster.is_chief:
      _report(config)
    return
  # A run that ended before its first checkpoint binds nobody.
  if config.model_path or tf.train.latest_checkpoint(
    os.path.join(config.model_dir, "checkpoints")
  ):
    config_lib.check_against_saved(config)
  for name in config.attacks:  # which may be none
    for attack in make_attacks(name, parts.make_ball(config)):
      attack.num_rounds(config.num_classes)
  try:
    this = Run(config, cluster)
    if config.mode in ("train", "train_and_evaluate"):
      this.train()
    elif not config.model_path:
      this.restore()
    if config.mode in ("evaluate", "train_and_evaluate"):
      this.evaluate()
      if cluster.is_chief:
        _log_evaluation(config)
        _report(config)
    if config.mode == "pseudo_label":
      this.pseudo_label()
    if config.mode == "export":
      this.export()
      if cluster.is_chief:
        print(f"{config.model_dir}/export: the classifier, written anew.", flush=True)
      if config.export_formats:
        this.export_formats()
    this.wait_for_all()
  except _LOST_WORKER:
    if cluster.num_workers == 1:
      raise
    # This worker is not the cause; exit code 1.
    raise SystemExit(
      f"Worker {cluster.index} ends because another one did: see what that one printed "
      "and start all again; they go on from the newest checkpoint."
    ) from None


def _log_evaluation(config: flags.FlagValues) -> None:
  """Hands what an evaluation found to TensorBoard."""
  text = files.read_text(os.path.join(config.model_dir, "results.json"))
  log_evaluation(
    os.path.join(config.model_dir, "logs"),
    config.flag_values_dict(),
    config.model_dir,
    json.loads(text or "{}"),
  )


def _report(config: flags.FlagValues) -> None:
  path = reporting.write_report(config.model_dir, config.runs)
  print(f"{path}: what was measured, to look at.", flush=True)


# Images that are pseudo-labelled or attacked together, at most.
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
      config.communication,
      config.bytes_per_pack,
      timeout_seconds=0,  # see Watchdog
    )
    self._strategy = cluster_lib.make_strategy(cluster, self._options)
    self._replicas = self._strategy.num_replicas_in_sync
    self._watchdog = Watchdog(config.collective_timeout, cluster.index)
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
    if config.model_path:  # nothing of our own is evaluated
      return
    self.model, self._plain = self._build(self.inputs.image_shape)
    tracked: dict[str, Any] = {
      "classifier": self.model.classifier,
      "average": self.model.average,
    }
    if self.inputs.train:
      tracked["optimizer"] = self.model.optimizer
      if isinstance(self.model.all_reduce, QuantizedAllReduce):
        tracked["residual"] = self.model.all_reduce
    self._checkpoints = checkpointing.Checkpoints(
      os.path.join(config.model_dir, "checkpoints"),
      tracked,
      config.checkpoints_to_keep,
      cluster.is_chief,
    )
    self._early_stopping = None
    if config.early_stopping:
      self._early_stopping = EarlyStopping(
        os.path.join(config.model_dir, "best"),
        self.model.classifier,
        config.early_stopping * config.evaluate_every,
        cluster.is_chief,
      )

  def _build(
    self, image_shape: tuple[int, ...]
  ) -> tuple[AdversarialModel, tf.keras.Model]:
    """The distributed model, and a plain copy of its classifier."""
    config, steps = self._config, self.inputs.steps_per_epoch
    batch_shape = config.global_batch_size // self._replicas, *image_shape
    if config.jit_compile:
      with startup.quiet():
        quantizers.start_compiler()
    with self._strategy.scope():
      classifier = make_model(
        config.model, image_shape, config.num_classes, config.precision
      )
      if not config.layer_decay:
        transfer.freeze_backbone(classifier)
    all_reduce = None  # nothing to reduce without training
    if self.inputs.train:
      all_reduce = parts.make_all_reduce(
        config, classifier.trainable_variables, self._strategy, self._options
      )
    with self._strategy.scope():
      model = AdversarialModel(
        classifier,
        attack=parts.make_attack(config, classifier, batch_shape, steps),
        objective=parts.make_objective(config, steps),
        all_reduce=all_reduce,
        evaluation_attack=parts.make_evaluation_attack(config),
        attack_in_training_mode=config.attack_in_training_mode,
        seed=config.seed,
        prepare=parts.make_preparation(config),
        accumulation=config.accumulation,
        clip_norm=config.clip_norm,
        average=parts.make_average(config, classifier, steps),
        jit_compile=config.jit_compile,
      )
      model.compile(optimizer=parts.make_optimizer(config, classifier, steps))
      if self.inputs.train:
        # Slots made now are restored now.
        model.optimizer._create_all_weights(classifier.trainable_variables)
    return model, tf.keras.models.clone_model(model.classifier)

  def _initialize(self) -> None:
    """Gives the classifier the weights of --initialize_from."""
    config = self._config
    source = initialization.source_model(
      config.initialize_from, config.model, self.inputs.image_shape
    )
    is_new = transfer.copy_weights_by_layer(source, self.model.classifier)
    if self._cluster.is_chief:
      head = "; its last layer is new" if is_new else ""
      print(f"{config.model} begins with {config.initialize_from}{head}.", flush=True)

  def train(self) -> None:
    """Trains from the newest checkpoint, if there is one, to the last epoch."""
    config, steps = self._config, self.inputs.steps_per_epoch
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
      "fp32_bytes_per_step": MeanAllReduce().bytes_sent(
        self.model.classifier.trainable_variables, self._cluster.num_workers
      ),
    }
    stopping = self._early_stopping
    if first_epoch >= config.epochs or (stopping and stopping.is_over(first_epoch)):
      if self._cluster.is_chief:
        over = first_epoch < config.epochs
        more = "a larger --early_stopping" if over else "--epochs"
        print(f"{config.model_dir}: epoch {first_epoch} is done; {more} adds more.")
      # What a run that was stopped just before its end still owes.
      if not tf.io.gfile.exists(os.path.join(config.model_dir, "results.json")):
        self._write_results(results)
      self._take_best()
      self.export()
      return
    if config.initialize_from and not first_epoch:
      self._initialize()
    if self._cluster.is_chief:
      config_lib.save(config)
    clock = StepClock()
    dataset = self.distribute(self.inputs.training_batches(first_epoch))
    validation: dict[str, Any] = {}
    if config.evaluate_every:
      source = self.inputs.validation or self.inputs.test
      assert source is not None
      validation = {
        "validation_data": self.distribute(self.inputs.evaluation_batches(source)),
        "validation_steps": source.steps,
        "validation_freq": config.evaluate_every,
      }
    callbacks: list[tf.keras.callbacks.Callback] = [
      self._watchdog,
      # Before the checkpoint: a run that is stopped between them does the epoch again.
      *([stopping] if stopping else []),
      tf.keras.callbacks.LambdaCallback(on_epoch_end=self._save),
    ]
    progress = Progress(config.epochs * steps, first_epoch * steps)
    if self._cluster.is_chief:
      callbacks += [*self.watchers(), progress]
    started = time.perf_counter()
    with self._explained_errors(), contextlib.closing(progress):
      history = self.model.fit(
        dataset,
        epochs=config.epochs,
        initial_epoch=first_epoch,
        steps_per_epoch=steps,
        callbacks=[*callbacks, clock],
        verbose=0,
        **validation,
      )
    self._write_results(
      {
        **results,
        "epochs": history.epoch[-1] + 1,
        "train_seconds": round(time.perf_counter() - started, 3),
        "examples_per_second": clock.steps_per_second * config.global_batch_size,
      }
    )
    self._take_best()
    self.export()

  def _take_best(self) -> None:
    """From now on the classifier has the weights that early stopping kept, if any."""
    if self._early_stopping and self._early_stopping.best_epoch:
      self._early_stopping.restore()
      self.model.average = None

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
    logs = os.path.join(config.model_dir, "logs")
    attack_pictures = None
    if config.pictures:
      with self._explained_errors():
        batch = next(iter(self.inputs.evaluation_batches(source, config.pictures)))
      keys = hashing.stream_keys(config.seed, batch["epoch"], batch["example_id"])
      attack = self.model.evaluation_attack
      assert attack is not None
      attacked = AttackedImages(
        self._plain, attack, batch["image"], batch["label"], keys
      )

      def attack_pictures() -> Attacked:
        checkpointing.copy_weights(self.model.classifier, self._plain)
        return attacked.attack()

    watchers = [
      Scalars(
        logs,
        config.log_every,
        config.global_batch_size,
        self._bytes_sent_per_step,
        attack_pictures,
      ),
      Summary(logs, config.flag_values_dict(), config.model_dir),
    ]
    profiled = config_lib.profile_steps(config)
    if profiled:
      watchers.append(Profiler(logs, *profiled))
    return watchers

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
    self._take_best()

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
    if self._config.attacks:
      self.attack()
      return
    source = self.inputs.test
    assert source is not None
    progress = Progress(source.steps)
    with self._explained_errors(), contextlib.closing(progress):
      figures = self.model.evaluate(
        self.distribute(self.inputs.evaluation_batches(source)),
        steps=source.steps,
        callbacks=[self._watchdog, *([progress] if self._cluster.is_chief else [])],
        verbose=0,
        return_dict=True,
      )
    robust = {f"pgd-{self._config.evaluation_attack_steps}": figures["robust_accuracy"]}
    self._write_accuracies(figures["accuracy"], robust, int(figures["examples"]))
    if "certified_accuracy" in figures:
      self._write_results({"certified_accuracy": figures["certified_accuracy"]})

  def attack(self) -> None:
    """Measures robust accuracy under each of --attacks, example by example."""
    cluster = self._cluster
    with self._explained_errors():
      work = self._survey()
      probes = work.probe(self._config.probe_images) if cluster.is_chief else {}
      warnings = checks.from_probes(probes)
      checks.show(warnings)
      tables: dict[str, outcomes.Rows] = {}
      for name in dict.fromkeys(self._config.attacks):
        progress = Progress(work.steps(name))
        with contextlib.closing(progress):
          if cluster.is_chief:
            progress.on_test_begin()
            work.attack(name, functools.partial(progress.on_test_batch_end, 0))
            progress.on_test_end()
          else:
            work.attack(name)
        self.wait_for_all()
        if cluster.is_chief:
          rows = tables[name] = work.merge(name)
          standard = float((rows["prediction"] == rows["label"]).mean())
          robust = float(outcomes.robust(rows).mean())
          count = len(rows["label"])
          print(
            f"{name}: {robust:.2%} of {count} images stay right, of {standard:.2%} "
            "without an attack.",
            flush=True,
          )
          self._write_accuracies(standard, {name: robust}, count, warnings)
    if cluster.is_chief:
      more = checks.from_outcomes(tables, probes)
      checks.show(more)
      self._write_results({"warnings": warnings + more})

  def _survey(self) -> Survey:
    """This worker's part of the attacks."""
    config, cluster, source = self._config, self._cluster, self.inputs.test
    assert source is not None
    paths = records.match_files(config.test_data)
    skip = config.skip_bad_records > 0
    whole = shards.shard_files(paths, 0, 1, skip_bad_records=skip)
    # All workers read all files, and any may meet a bad record.
    self.inputs.test = dataclasses.replace(source, paths=paths)

    def batches(shard: shards.Shard, batch_size: int) -> tf.data.Dataset:
      return pipeline.evaluation_dataset(
        shard,
        self.inputs.reading_of(source, parts.make_crop(config)),
        batch_size=batch_size,
        batches_per_epoch=-(-shard.num_examples // batch_size),
      )

    data = survey.Data(
      survey.first_examples(whole, config.evaluation_examples),
      batches,
      # The same on any number of workers.
      min(config.global_batch_size, _LARGEST_BATCH),
    )
    if config.model_path:
      model = UserModel(
        config.model_path, config_lib.input_range(config), config.probabilities
      )
      model.check(data.first_batch(), config.num_classes)
      classifier: Any = model
      weights = user_model.fingerprint(config.model_path)
      if cluster.is_chief:
        config_lib.save(config)
    else:
      self._copy_final_weights()
      classifier = functools.partial(self._plain, training=False)
      weights = pseudo_labeling.fingerprint(self._plain)
    files_read = [[os.path.basename(p), tf.io.gfile.stat(p).length] for p in paths]
    names = "image_size", "first_label", "input_range", "probabilities"
    return Survey(
      os.path.join(config.model_dir, "evaluation"),
      classifier,
      parts.make_ball(config),
      config.norm,
      data,
      config.seed,
      [weights, files_read, *(config[name].serialize() for name in names)],
      cluster.index,
      cluster.num_workers,
    )

  def pseudo_label(self) -> None:
    """Labels this worker's part of the files of --unlabeled_data."""
    config, source = self._config, self.inputs.unlabeled
    assert source is not None
    self._copy_final_weights()
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
    self._copy_final_weights()
    if self._cluster.is_chief:
      exporting.export(self._plain, os.path.join(self._config.model_dir, "export"))

  def export_formats(self) -> None:
    """Writes it in the forms of --export_formats too."""
    config = self._config
    if self._cluster.is_chief:
      paths = exporting.export_formats(
        self._plain, config.model_dir, config.export_formats
      )
      print("\n".join(f"{path}: gives the same logits." for path in paths), flush=True)

  def _copy_final_weights(self) -> None:
    """Gives the plain copy what training has made of the classifier."""
    with self.model.final_weights():
      checkpointing.copy_weights(self.model.classifier, self._plain)

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
      self._watchdog.rest()
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

  def _write_accuracies(
    self,
    standard: float,
    robust: dict[str, float],
    test_examples: int,
    warnings: Optional[checks.Warnings] = None,
  ) -> None:
    """Puts accuracies beside those under other attacks on the same test data."""
    path = os.path.join(self._config.model_dir, "results.json")
    there = json.loads(files.read_text(path) or "{}")
    if (
      there.get("test_examples") != test_examples
      # Two ways to compute may disagree about an image.
      or abs((there.get("standard_accuracy") or 0.0) - standard) > 1e-3
    ):
      there = {}
    self._write_results(
      {
        "standard_accuracy": standard,
        "robust_accuracy": {**there.get("robust_accuracy", {}), **robust},
        "test_examples": test_examples,
        "norm": self._config.norm,
        "epsilon": self._config.epsilon,
        "warnings": there.get("warnings", []) if warnings is None else warnings,
      }
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
