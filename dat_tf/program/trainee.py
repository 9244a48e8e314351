"""The network that a run trains, and what keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import tensorflow as tf

from dat_tf import compat
from dat_tf import config as config_lib
from dat_tf.adversarial_model import AdversarialModel
from dat_tf.base.errors import UserError
from dat_tf.communication import quantizers
from dat_tf.compat import keras
from dat_tf.models import make_model, precision, transfer
from dat_tf.objectives import bounds
from dat_tf.program import exporting
from dat_tf.program.checkpoint_files import START, Position
from dat_tf.program.checkpointing import Checkpoints, copy_weights
from dat_tf.program.early_stopping import EarlyStopping
from dat_tf.workers.joined import Workers

# How many times as fast bfloat16 must be for its rounding to be worth while.
_WORTH_WHILE = 1.1


class Trainee:
  """The network that a run trains, and what keeps it.

  Attributes:
    model: the distributed model.
    plain: a copy of its classifier that one worker alone can run.
    checkpoints: of the model.
    early_stopping: None if it was not asked for.
  """

  def __init__(
    self,
    config: config_lib.Settings,
    workers: Workers,
    model: AdversarialModel,
    steps_per_epoch: int,
    check_claim: Callable[[], None],
  ):
    """Prepares to save and restore.

    Args:
      config: the settings.
      workers: of the run.
      model: as `build_model` makes it.
      steps_per_epoch: of training.
      check_claim: to be called before anything is written, see `directory.claimed`.
    """
    self._config, self._workers, self._check_claim = config, workers, check_claim
    self.model, self.plain = model, keras.models.clone_model(model.classifier)
    tracked: dict[str, Any] = {"classifier": model.classifier}
    if model.average:
      tracked["average"] = model.average
    if config.trains:
      tracked["optimizer"] = model.optimizer
    copies = None
    if config.trains and workers.is_chief:
      copies = _copies(config, model, steps_per_epoch)
    self.checkpoints = Checkpoints(
      config.directory.checkpoints,
      tracked,
      copies,
      replica_state=model.replica_state,
      keep=config.checkpoints_to_keep,
      worker=workers.cluster.index,
      num_workers=workers.cluster.num_workers,
    )
    self.early_stopping: Optional[EarlyStopping] = None
    if config.early_stopping:
      self.early_stopping = EarlyStopping(
        config.directory.best,
        model.classifier,
        patience=config.early_stopping * config.evaluate_every,
        is_chief=workers.is_chief,
      )

  @property
  def bytes_sent_per_step(self) -> int:
    return self.model.all_reduce.bytes_sent(
      self.model.classifier.trainable_variables, self._workers.cluster.num_workers
    )

  def restore(self) -> None:
    """Takes the weights of the newest checkpoint.

    Raises:
      UserError: there is none.
    """
    if self.restored() == START:
      raise UserError(
        f"{self._config.model_dir} holds no checkpoint: train first, with --mode=train."
      )
    self.take_best()

  def restored(self) -> Position:
    """Restores the newest checkpoint that is whole for all workers; a collective.

    Returns:
      Where it was saved, `START` if there is none.
    """
    there = self.checkpoints.newest()
    while (common := self._earliest(there)) is not None:
      if there > common:
        there = self.checkpoints.newest(limit=common)
    if there != START:
      self.checkpoints.restore(there)
    return there

  def _earliest(self, there: Position) -> Optional[Position]:
    """The earliest position that a worker found; None if all found the same."""
    number = (there.epochs << 32) + there.steps
    most = self._workers.largest(number)
    least = -self._workers.largest(-number)
    if least == most:
      return None
    if least == 0:
      raise UserError(
        f"--model_dir={self._config.model_dir}: worker {self._workers.cluster.index} "
        f"finds {there.name if number else 'no checkpoint'} there, and another worker "
        f"{'none' if number else 'one'}; it must be one directory that all share."
      )
    return Position(least >> 32, least & 0xFFFFFFFF)

  def take_best(self) -> None:
    """From now on the classifier has the weights that early stopping kept, if any."""
    if self.early_stopping and self.early_stopping.best_epoch:
      self.early_stopping.restore()
      self.model.average = None

  def copy_final_weights(self) -> None:
    """Gives the plain copy what training has made of the classifier."""
    with self.model.final_weights():
      copy_weights(self.model.classifier, self.plain)

  def export(self) -> None:
    """Writes the classifier as a plain Keras model."""
    self.copy_final_weights()
    if self._workers.is_chief:
      self._check_claim()
      exporting.export(self.plain, self._config.directory.export)


def _copies(
  config: config_lib.Settings, model: AdversarialModel, steps_per_epoch: int
) -> dict[str, Any]:
  """What a checkpoint is written from: the same as the model has, on the host."""
  with tf.device("CPU:0"):
    classifier = keras.models.clone_model(model.classifier)
    optimizer = config_lib.make_optimizer(config, classifier, steps_per_epoch)
    compat.make_slots(optimizer, classifier.trainable_variables)
    copies = {"classifier": classifier, "optimizer": optimizer}
    average = config_lib.make_average(config, classifier, steps_per_epoch)
    return {**copies, "average": average} if average else copies


def _attack_precision(
  config: config_lib.Settings, workers: Workers, batch_shape: tuple[int, ...]
) -> str:
  """The arithmetic in which training attacks the network, alike on all workers.

  Raises:
    UserError: bfloat16 was asked for, and a worker's machine cannot do it.
  """
  wanted = config.attack_precision
  if wanted == "auto" and config_lib.needs_exact_attack(config):
    wanted = "float32"
  if not config.trains or wanted == config.precision == "float32":
    return "float32"
  flag, form = "attack_precision", "bfloat16"
  if wanted == "float32":
    flag, form = "precision", config.precision
  reason, speedup = "", 0.0
  try:
    speedup = precision.speedup(config.model, batch_shape, config.num_classes, form)
  except precision.NoBfloat16Error as error:
    reason = str(error)
  reasons = list(filter(None, workers.texts(reason)))
  if wanted == "auto":
    # All wait for the slowest.
    slowest = -workers.largest(-round(100 * speedup)) / 100
    wanted = "bfloat16" if slowest > _WORTH_WHILE and not reasons else "float32"
    if workers.is_chief:
      why = reasons[0] if reasons else f"bfloat16 is {slowest:.2f} times as fast here"
      print(f"The attack computes in {wanted}: {why}.")
  elif reasons:
    raise UserError(f"--{flag}={form}: {reasons[0]}: choose float32.")
  return wanted


def build_model(
  config: config_lib.Settings,
  workers: Workers,
  image_shape: tuple[int, ...],
  steps_per_epoch: int,
) -> AdversarialModel:
  """The distributed model, compiled; nothing is restored yet."""
  batch_shape = config.global_batch_size // workers.num_replicas, *image_shape
  attacked_in = _attack_precision(config, workers, batch_shape)
  scope = workers.strategy.scope
  if config.jit_compile:
    with compat.quiet():
      quantizers.start_compiler()
  with scope():
    classifier = make_model(
      config.model, image_shape, config.num_classes, precision=config.precision
    )
    if config.certifies:
      bounds.check(classifier)
    if not config.layer_decay:
      transfer.freeze_backbone(classifier)
  all_reduce = None  # nothing to reduce without training
  if config.trains:
    all_reduce = config_lib.make_all_reduce(
      config, classifier.trainable_variables, workers
    )
  with scope():
    model = AdversarialModel(
      classifier,
      attack=config_lib.make_attack(
        config, config_lib.Trained(classifier, batch_shape, steps_per_epoch)
      ),
      objective=config_lib.make_objective(config, steps_per_epoch),
      all_reduce=all_reduce,
      evaluation_attack=config_lib.make_evaluation_attack(config),
      attack_in_training_mode=config.attack_in_training_mode,
      attack_precision=attacked_in,
      seed=config.seed,
      prepare=config_lib.make_preparation(config),
      accumulation=config.accumulation,
      clip_norm=config.clip_norm,
      average=config_lib.make_average(config, classifier, steps_per_epoch),
      jit_compile=config.jit_compile,
    )
    model.compile(
      optimizer=config_lib.make_optimizer(config, classifier, steps_per_epoch)
    )
    if config.trains:
      # Slots made now are restored now.
      compat.make_slots(model.optimizer, classifier.trainable_variables)
  return model
