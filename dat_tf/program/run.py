"""Puts a run together: strategy, data, model, optimizer, checkpoints."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import tensorflow as tf

from dat_tf import compat
from dat_tf import config as config_lib
from dat_tf.adversarial_model import NON_FINITE, AdversarialModel
from dat_tf.base import stack
from dat_tf.base.errors import UserError, one_line
from dat_tf.communication import QuantizedAllReduce, quantizers
from dat_tf.compat import keras
from dat_tf.data import records
from dat_tf.data.examples import PROBABILITIES
from dat_tf.models import make_model, transfer
from dat_tf.monitoring import update_results
from dat_tf.objectives import bounds
from dat_tf.program import checkpointing, directory, exporting
from dat_tf.program.early_stopping import EarlyStopping
from dat_tf.program.inputs import Inputs
from dat_tf.program.locking import Lock
from dat_tf.workers import cluster as cluster_lib
from dat_tf.workers.peers import Lookout
from dat_tf.workers.watchdog import Watchdog

# Images that are attacked or labelled together, at most.
_LARGEST_BATCH = 256


class Run:
  """One worker's part of a run. Every worker makes the same calls in the same order.

  Attributes:
    config: the settings.
    cluster: all workers, and which of them this is.
    strategy: what joins them.
    inputs: files and batches.
    model: the distributed model; there is none where --model_path is evaluated.
    plain: a copy of its classifier that one worker alone can run.
    checkpoints: of the model; there, as `early_stopping`, while it is `claimed`.
    early_stopping: None if it was not asked for.
    lookout: after the other workers; to be stopped before they may end.
    watchdog: to be a callback of whatever runs steps.
  """

  def __init__(self, config: config_lib.Settings, cluster: cluster_lib.Cluster):
    """Opens the data and builds the model; nothing is written yet."""
    self.config, self.cluster = config, cluster
    with compat.quiet():  # TensorFlow looks for CUDA now
      has_gpus = bool(tf.config.list_physical_devices("GPU"))
    if config.communication == "nccl" and not has_gpus:
      raise UserError("--communication=nccl needs GPUs, and none is here: use ring.")
    keras.utils.set_random_seed(config.seed)
    self._options = cluster_lib.communication_options(
      config.communication,
      config.bytes_per_pack,
      timeout_seconds=0,  # see Watchdog
    )
    self.strategy = cluster_lib.make_strategy(
      cluster, self._options, config.start_timeout
    )
    self.lookout = Lookout(cluster.addresses, cluster.index, cluster_lib.SILENCE)
    self._replicas = self.strategy.num_replicas_in_sync
    self.watchdog = Watchdog(config.collective_timeout, cluster.index)
    for text, check in (
      (stack.to_text(), stack.check_same),
      (config_lib.to_text(config), config_lib.check_same),
    ):
      check(cluster_lib.all_workers_texts(self.strategy, text))
    surplus = config.global_batch_size % self._replicas
    if surplus:
      raise UserError(
        f"--global_batch_size={config.global_batch_size} is not a multiple of the "
        f"{self._replicas} replicas: choose one that is, such as "
        f"{config.global_batch_size - surplus + self._replicas}."
      )
    self.inputs = Inputs(config, cluster, self.strategy)
    each = config.global_batch_size // self._replicas
    if self.inputs.train and each % config.accumulation:
      raise UserError(
        f"--accumulation={config.accumulation} does not divide the {each} images of a "
        "replica's batch: choose a number that does."
      )
    if config.model_path:  # nothing of our own is evaluated
      return
    self.model, self.plain = self._build(self.inputs.image_shape)

  @contextlib.contextmanager
  def claimed(self) -> Iterator[None]:
    """While it lasts no other run writes in the directory.

    Raises:
      UserError: another one does; or the directory was written with other settings, or
        is damaged.
    """
    self._lock: Optional[Lock] = None
    message = ""
    # To label images, weights are only read.
    if self.cluster.is_chief and self.config.mode != "pseudo_label":
      try:
        self._lock = directory.claim(self.config)
      except UserError as error:
        message = str(error)
    try:
      # The others look at the directory only now.
      message = cluster_lib.all_workers_texts(self.strategy, message)[0]
      if message:
        raise UserError(message)
      directory.check(self.config, self.cluster.is_chief)
      if not self.config.model_path:
        self._track()
      yield
    except (OSError, tf.errors.OpError):
      self.check_claim()  # a directory that is gone explains any of them
      raise
    finally:
      if self._lock:
        self._lock.release()

  def check_claim(self) -> None:
    """Raises UserError if the directory was removed, or is another run's by now."""
    if self._lock:
      self._lock.check()

  def _track(self) -> None:
    """Prepares to save and restore."""
    config, cluster = self.config, self.cluster
    tracked: dict[str, Any] = {
      "classifier": self.model.classifier,
      "average": self.model.average,
    }
    if self.inputs.train:
      tracked["optimizer"] = self.model.optimizer
      if isinstance(self.model.all_reduce, QuantizedAllReduce):
        tracked["residual"] = self.model.all_reduce
    self.checkpoints = checkpointing.Checkpoints(
      config.directory.checkpoints,
      tracked,
      config.checkpoints_to_keep,
      cluster.is_chief,
    )
    self.early_stopping = None
    if config.early_stopping:
      self.early_stopping = EarlyStopping(
        config.directory.best,
        self.model.classifier,
        config.early_stopping * config.evaluate_every,
        cluster.is_chief,
      )

  def _build(
    self, image_shape: tuple[int, ...]
  ) -> tuple[AdversarialModel, keras.Model]:
    """The distributed model, and a plain copy of its classifier."""
    config, steps = self.config, self.inputs.steps_per_epoch
    batch_shape = config.global_batch_size // self._replicas, *image_shape
    if config.jit_compile:
      with compat.quiet():
        quantizers.start_compiler()
    with self.strategy.scope():
      classifier = make_model(
        config.model, image_shape, config.num_classes, config.precision
      )
      if config.certifies:
        bounds.check(classifier)
      if not config.layer_decay:
        transfer.freeze_backbone(classifier)
    all_reduce = None  # nothing to reduce without training
    if self.inputs.train:
      all_reduce = config_lib.make_all_reduce(
        config, classifier.trainable_variables, self.strategy, self._options
      )
    with self.strategy.scope():
      model = AdversarialModel(
        classifier,
        attack=config_lib.make_attack(
          config, config_lib.Trained(classifier, batch_shape, steps)
        ),
        objective=config_lib.make_objective(config, steps),
        all_reduce=all_reduce,
        evaluation_attack=config_lib.make_evaluation_attack(config),
        attack_in_training_mode=config.attack_in_training_mode,
        seed=config.seed,
        prepare=config_lib.make_preparation(config),
        accumulation=config.accumulation,
        clip_norm=config.clip_norm,
        average=config_lib.make_average(config, classifier, steps),
        jit_compile=config.jit_compile,
      )
      model.compile(optimizer=config_lib.make_optimizer(config, classifier, steps))
      if self.inputs.train:
        # Slots made now are restored now.
        compat.make_slots(model.optimizer, classifier.trainable_variables)
    return model, keras.models.clone_model(model.classifier)

  @property
  def bytes_sent_per_step(self) -> int:
    return self.model.all_reduce.bytes_sent(
      self.model.classifier.trainable_variables, self.cluster.num_workers
    )

  @property
  def inference_batch_size(self) -> int:
    """Images that a worker attacks or labels together: as many on any number of them.

    The last bits of a convolution depend on it.
    """
    return min(self.config.global_batch_size, _LARGEST_BATCH)

  def restore(self) -> None:
    """Takes the weights of the newest checkpoint.

    Raises:
      UserError: there is none.
    """
    if not self.restored_epochs():
      raise UserError(
        f"{self.config.model_dir} holds no checkpoint: train first, with --mode=train."
      )
    self.take_best()

  def restored_epochs(self) -> int:
    """Restores the newest checkpoint; the epochs it has seen, 0 without one."""
    epochs = self.checkpoints.restore()
    most = cluster_lib.all_workers_max(self.strategy, epochs)
    least = -cluster_lib.all_workers_max(self.strategy, -epochs)
    if least != most:
      raise UserError(
        f"--model_dir={self.config.model_dir}: worker {self.cluster.index} finds a "
        f"checkpoint of {epochs} epochs there, others of {least} to {most}; it must be "
        "one directory that all workers share."
      )
    return epochs

  def take_best(self) -> None:
    """From now on the classifier has the weights that early stopping kept, if any."""
    if self.early_stopping and self.early_stopping.best_epoch:
      self.early_stopping.restore()
      self.model.average = None

  def export(self) -> None:
    """Writes the classifier as a plain Keras model."""
    self.copy_final_weights()
    if self.cluster.is_chief:
      self.check_claim()
      exporting.export(self.plain, self.config.directory.export)

  def export_formats(self) -> None:
    """Writes it in the forms of --export_formats too."""
    config = self.config
    if self.cluster.is_chief:
      paths = exporting.export_formats(
        self.plain, config.model_dir, config.export_formats
      )
      print("\n".join(f"{path}: gives the same logits." for path in paths), flush=True)

  def copy_final_weights(self) -> None:
    """Gives the plain copy what training has made of the classifier."""
    with self.model.final_weights():
      checkpointing.copy_weights(self.model.classifier, self.plain)

  def wait_for_all(self) -> None:
    """Returns once every worker has called it: none is missed while still needed."""
    cluster_lib.all_workers_max(self.strategy, 0)

  def distribute(self, dataset: tf.data.Dataset) -> tf.distribute.DistributedDataset:
    """Deals the batches of this worker's dataset to its replicas."""
    # Without a GPU there is no device to copy batches to ahead of time.
    options = tf.distribute.InputOptions(
      experimental_fetch_to_device=bool(tf.config.list_logical_devices("GPU"))
    )
    return compat.quiet_iterator(
      self.strategy.distribute_datasets_from_function(lambda context: dataset, options),
      compat.quiet,
    )

  @contextlib.contextmanager
  def explained_errors(self, test_paths: Sequence[str] = ()) -> Iterator[None]:
    """Turns what TensorFlow says of bad data and bad numbers into one line.

    Args:
      test_paths: as `Inputs.explain` takes them.
    """
    try:
      yield
    except records.DATA_ERRORS as error:
      self.watchdog.rest()
      diverged = re.search(re.escape(NON_FINITE) + r"\D*(\d+)", str(error))
      if diverged:
        raise self.diverged(f"{NON_FINITE} {diverged[1]}") from None
      if PROBABILITIES in str(error):
        raise UserError(
          f"--model={self.config.model}: {PROBABILITIES}: leave out its last softmax."
        ) from None
      message = self.inputs.explain(test_paths)
      if message is None:
        raise
      raise UserError(message) from None
    except tf.errors.NotFoundError as error:
      self.watchdog.rest()
      if not self.config.data_service:
        raise
      raise UserError(
        f"--data_service={self.config.data_service}: its workers do not find the data "
        f"({one_line(error)}): they must see the same files under the same paths."
      ) from None

  def diverged(self, what: str) -> UserError:
    checkpoints = self.config.directory.checkpoints
    newest = [f"{checkpoints}/epoch-{n}" for n in checkpointing.present(checkpoints)]
    return UserError(
      f"{what}: lower --learning_rate or lengthen --warmup_epochs; last good "
      f"checkpoint: {newest[0] if newest else 'none'}."
    )

  def write_results(self, figures: dict[str, Any]) -> None:
    if self.cluster.is_chief:
      self.check_claim()
      update_results(self.config.directory.results, figures)
