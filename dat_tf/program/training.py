"""Trains a run from its newest checkpoint, if there is one, to its end."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf.base import hashing, stack
from dat_tf.base.errors import UserError
from dat_tf.communication import MeanAllReduce
from dat_tf.compat import keras, takes_tensors
from dat_tf.models import batch_norm, transfer
from dat_tf.monitoring import (
  Attacked,
  AttackedImages,
  Profiler,
  Progress,
  Scalars,
  StepClock,
  Summary,
)
from dat_tf.program import checkpointing, initialization
from dat_tf.program.run import Run
from dat_tf.program.trainee import Trainee
from dat_tf.workers.joined import Workers


def train(run: Run, trainee: Trainee) -> None:
  """Trains from the newest checkpoint, if there is one, to the last epoch."""
  config, steps = run.config, run.inputs.steps_per_epoch
  classifier = trainee.model.classifier
  first_epoch = trainee.restored_epochs()
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
  if config.initialize_from and not first_epoch:
    _initialize(run, classifier)
  if run.workers.is_chief:
    config_lib.save(config)
    _warn_of_lagging_averages(config, classifier)
    if warning := run.inputs.warning():
      print(f"Warning: {warning}.", flush=True)
  clock = StepClock()
  dataset = run.distribute(run.inputs.training_batches(first_epoch))
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
    # Before the checkpoint: a run that is stopped between them does the epoch again.
    *([stopping] if stopping else []),
    keras.callbacks.LambdaCallback(on_epoch_end=functools.partial(_save, run, trainee)),
  ]
  progress = Progress(config.epochs * steps, first_epoch * steps)
  if run.workers.is_chief:
    callbacks += [*watchers(run, trainee), progress]
  started = time.perf_counter()
  with run.explained_errors(), contextlib.closing(progress):
    history = trainee.model.fit(
      dataset,
      epochs=config.epochs,
      initial_epoch=first_epoch,
      steps_per_epoch=steps,
      callbacks=[*callbacks, clock],
      verbose=0,
      **validation,
    )
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


def _save(run: Run, trainee: Trainee, epoch: int, logs: Any) -> None:
  # An update may overflow although the gradient did not.
  weights = trainee.model.classifier.trainable_variables
  if not all(tf.reduce_all(tf.math.is_finite(weight)) for weight in weights):
    raise run.diverged(f"The weights are not finite after epoch {epoch + 1}")
  check_same_weights(run.workers, weights, f"epoch {epoch + 1}")
  run.check_claim()
  trainee.checkpoints.save(epoch + 1)


@takes_tensors
class Verification(keras.callbacks.Callback):
  """Compares all weights over the workers each so many steps."""

  def __init__(self, workers: Workers, steps: int, every: int):
    """Makes the callback.

    Args:
      workers: which all have it.
      steps: of an epoch.
      every: steps between two comparisons.
    """
    super().__init__()
    self._workers, self._steps, self._every = workers, steps, every

  def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
    self._before = epoch * self._steps

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    step = self._before + batch + 1
    if step % self._every == 0:
      weights = self.model.classifier.trainable_variables
      check_same_weights(self._workers, weights, f"step {step}")


def check_same_weights(
  workers: Workers, weights: Sequence[tf.Variable], when: str
) -> None:
  """Makes sure that all workers have the same weights, bit for bit; a collective.

  Args:
    workers: all of them.
    weights: of the network.
    when: after what, for the message.

  Raises:
    UserError: a worker has others, by a callback or a fault of its machine. Figures
      would not show it, since they are means over all workers.
  """
  digest = checkpointing.digest(weights)
  number = int(digest, 16) >> 2  # an int64
  if workers.largest(number) == -workers.largest(-number):
    return
  digests = workers.texts(digest)
  ((most, count), *_) = collections.Counter(digests).most_common()
  odd = [worker for worker, other in enumerate(digests) if other != most]
  if odd:
    others = f"the {count} others" if count > 1 else f"worker {digests.index(most)}"
    raise UserError(
      f"After {when} worker {odd[0]} has other weights than {others}: a callback or a "
      "fault of that machine changed them. Start all again without it; they go on from "
      "the newest checkpoint."
    )


def watchers(run: Run, trainee: Trainee) -> list[keras.callbacks.Callback]:
  """The callbacks that keep what TensorBoard shows, for the chief."""
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
    ),
    Summary(logs, dataclasses.asdict(config), config.model_dir),
  ]
  profiled = config.profile_steps
  if profiled:
    watchers.append(Profiler(logs, *profiled))
  return watchers
