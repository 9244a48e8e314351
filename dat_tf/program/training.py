"""Trains a run from its newest checkpoint, if there is one, to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Optional

import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf.base import hashing, stack
from dat_tf.base.errors import UserError, one_line
from dat_tf.communication import MeanAllReduce
from dat_tf.compat import keras
from dat_tf.models import batch_norm, transfer
from dat_tf.monitoring import (
  Attacked,
  AttackedImages,
  Events,
  Profiler,
  Progress,
  Scalars,
  StepClock,
  Summary,
  forget_later,
)
from dat_tf.program import checkpoint_files, checkpointing, initialization
from dat_tf.program.checkpoint_files import START
from dat_tf.program.run import Run
from dat_tf.program.saving import Saving, Verification
from dat_tf.program.trainee import Trainee
from dat_tf.workers import preemption
from dat_tf.workers.stragglers import Stragglers


def train(run: Run, trainee: Trainee) -> None:
  """Trains from the newest checkpoint, if there is one, to the last epoch."""
  config, steps = run.config, run.inputs.steps_per_epoch
  classifier = trainee.model.classifier
  begin = trainee.restored()
  first_epoch = begin.epochs
  results: dict[str, Any] = {
    "standard_accuracy": None,  # until it is evaluated
    "robust_accuracy": {},
    **({"certified_accuracy": None} if config.certifies else {}),
    "warnings": [],
    "probed_images": 0,
    "trained_with": stack.versions(),
    "epochs": first_epoch,
    "global_batch_size": config.global_batch_size,
    "num_workers": run.workers.cluster.num_workers,
    "parameters": classifier.count_params(),
    "attack_precision": trainee.model.attack_precision,
    "train_seconds": None,
    "examples_per_second": None,
    "bytes_sent_per_step": trainee.bytes_sent_per_step,
    "fp32_bytes_per_step": MeanAllReduce().bytes_sent(
      classifier.trainable_variables, run.workers.cluster.num_workers
    ),
  }
  stopping = trainee.early_stopping
  if first_epoch >= config.epochs or (stopping and stopping.is_over(first_epoch)):
    if run.workers.is_chief:
      over = first_epoch < config.epochs
      more = "a larger --early_stopping" if over else "--epochs"
      print(f"{config.model_dir}: epoch {first_epoch} is done; {more} adds more.")
    # What a run that was stopped just before its end still owes.
    if not tf.io.gfile.exists(config.directory.results):
      run.write_results(results)
    trainee.take_best()
    trainee.export()
    return
  if config.initialize_from and begin == START:
    _initialize(run, classifier)
  if begin != START and (warning := trainee.checkpoints.warning(begin)):
    print(f"Warning: {warning}.", flush=True)
  first_step = first_epoch * steps + begin.steps
  if run.workers.is_chief:
    checkpoint_files.remove_after(config.directory.checkpoints, begin)
    forget_later(config.directory.logs, first_step, first_epoch)
    config_lib.save(config)
    _warn_of_lagging_averages(config, classifier)
    if warning := run.inputs.warning():
      print(f"Warning: {warning}.", flush=True)
  clock = StepClock()
  dataset = run.distribute(run.inputs.training_batches(first_epoch, begin.steps))
  validation: dict[str, Any] = {}
  if config.evaluate_every:
    source = run.inputs.validation or run.inputs.test
    assert source is not None
    validation = {
      "validation_data": run.distribute(run.inputs.evaluation_batches(source)),
      "validation_steps": source.steps,
      "validation_freq": config.evaluate_every,
    }
  every = config.verify_every
  callbacks: list[keras.callbacks.Callback] = [
    run.watchdog,
    *([Verification(run.workers, steps, every)] if every else []),
    *([stopping] if stopping else []),
  ]
  progress = Progress(config.epochs * steps, first_step)
  events = Events(config.directory.events if run.workers.is_chief else None)
  stragglers = Stragglers()
  if run.workers.is_chief:
    callbacks += watchers(
      run,
      trainee,
      lambda: {
        "goodput": events.goodput(),
        "slowest_worker_over_median": stragglers.ratio,
      },
    )
    callbacks.append(progress)
  # No worker writes before what another run has left there is gone.
  run.workers.wait()
  started = time.perf_counter()
  events.write_start(first_epoch, first_step, run.workers.cluster.num_workers)
  told_to_end = preemption.awaited(config.grace_seconds, run.workers.cluster.index)
  with (
    _noted(events, trainee),
    run.explained_errors(),
    contextlib.closing(progress),
    told_to_end as is_told_to_end,
  ):
    # Last: what the others wrote of a step is there before its checkpoint, and a run
    # that is stopped between the two does the step again.
    saving = Saving(
      run,
      trainee,
      steps,
      events=events,
      stragglers=stragglers,
      is_told_to_end=is_told_to_end,
    )
    history = trainee.model.fit(
      dataset,
      epochs=config.epochs,
      initial_epoch=first_epoch,
      initial_step=begin.steps,
      steps_per_epoch=steps,
      callbacks=[*callbacks, saving, clock],
      verbose=0,
      **validation,
    )
    trainee.checkpoints.finish()
  run.write_results(
    {
      **results,
      "epochs": history.epoch[-1] + 1,
      "train_seconds": round(time.perf_counter() - started, 3),
      "examples_per_second": clock.steps_per_second * config.global_batch_size,
    }
  )
  trainee.take_best()
  trainee.export()


@contextlib.contextmanager
def _noted(events: Events, trainee: Trainee) -> Iterator[None]:
  """Tells the events how training ended."""
  try:
    yield
  except preemption.Preempted:
    trainee.checkpoints.finish()
    events.write_here("told_to_end")
    raise
  except Exception as error:
    events.write_here("failure", cause=one_line(error)[:300])
    raise
  events.write_here("trained")


def _initialize(run: Run, classifier: keras.Model) -> None:
  """Gives the classifier the weights of --initialize_from."""
  config = run.config
  source = initialization.source_model(
    config.initialize_from,
    config.model,
    run.inputs.image_shape,
    unsafe=config.unsafe_model,
  )
  try:
    is_new = transfer.copy_weights_by_layer(source, classifier)
  except UserError as error:
    raise UserError(
      f"--initialize_from={config.initialize_from} and --model={config.model}: {error}"
    ) from error
  if run.workers.is_chief:
    head = "; its last layer is new" if is_new else ""
    print(f"{config.model} begins with {config.initialize_from}{head}.", flush=True)


def _warn_of_lagging_averages(
  config: config_lib.Settings, classifier: keras.Model
) -> None:
  """Says so if attacks may meet another network than the one that is trained."""
  momentum = batch_norm.largest_momentum(classifier)
  trains = config_lib.training_attack(config.attack).trains
  in_inference_mode = not (
    config.attack_in_training_mode or trains or config.attack == "none"
  )
  if momentum > batch_norm.MOMENTUM and in_inference_mode:
    print(
      f"Warning: the batch-norm averages of {config.model} have momentum {momentum:g}. "
      "An attack in inference mode then meets a network that lags behind the one that "
      "is trained, and may be weak: use --attack_in_training_mode, or a network with "
      f"momentum {batch_norm.MOMENTUM:g}, such as imagenet_resnet50.",
      flush=True,
    )


def watchers(
  run: Run,
  trainee: Trainee,
  more: Callable[[], dict[str, Optional[float]]] = dict,
) -> list[keras.callbacks.Callback]:
  """The callbacks that keep what TensorBoard shows, for the chief.

  Args:
    run: of this worker.
    trainee: what is trained.
    more: as `Scalars` takes it.
  """
  config, source = run.config, run.inputs.train
  assert source is not None
  logs = config.directory.logs
  attack_pictures = None
  if config.pictures:
    with run.explained_errors():
      batch = next(iter(run.inputs.evaluation_batches(source, config.pictures)))
    keys = hashing.stream_keys(config.seed, batch["epoch"], batch["example_id"])
    attack = trainee.model.evaluation_attack
    assert attack is not None
    attacked = AttackedImages(
      trainee.plain, attack, batch["image"], batch["label"], keys
    )

    def attack_pictures() -> Attacked:
      checkpointing.copy_weights(trainee.model.classifier, trainee.plain)
      return attacked.attack()

  watchers = [
    Scalars(
      logs,
      config.log_every,
      config.global_batch_size,
      trainee.bytes_sent_per_step,
      attack_pictures,
      more=more,
    ),
    Summary(logs, dataclasses.asdict(config), config.model_dir),
  ]
  profiled = config.profile_steps
  if profiled:
    watchers.append(Profiler(logs, *profiled))
  return watchers
