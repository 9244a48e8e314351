"""Puts a run together: its workers, data, network and directory."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

import tensorflow as tf

from dat_tf import compat
from dat_tf import config as config_lib
from dat_tf.adversarial_model import NON_FINITE
from dat_tf.base import stack
from dat_tf.base.errors import UserError, one_line
from dat_tf.compat import keras
from dat_tf.data import records
from dat_tf.data.examples import PROBABILITIES
from dat_tf.monitoring import update_results
from dat_tf.program import checkpoint_files, directory
from dat_tf.program.inputs import Inputs
from dat_tf.program.trainee import Trainee, build_model
from dat_tf.workers import joined
from dat_tf.workers.cluster import Cluster
from dat_tf.workers.joined import Workers
from dat_tf.workers.peers import Lookout
from dat_tf.workers.preemption import PREEMPTED, Preempted
from dat_tf.workers.watchdog import Watchdog

# Images that are attacked or labelled together, at most.
_LARGEST_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Run:
  """One worker's part of a run. Every worker makes the same calls in the same order.

  Attributes:
    config: the settings.
    workers: all workers, joined.
    inputs: files and batches.
    trainee: the network; None where the model of --model_path is evaluated.
    watchdog: to be a callback of whatever runs steps.
    check_claim: to be called before anything is written, see `directory.claimed`.
  """

  config: config_lib.Settings
  workers: Workers
  inputs: Inputs
  trainee: Optional[Trainee]
  watchdog: Watchdog
  check_claim: Callable[[], None]

  @property
  def inference_batch_size(self) -> int:
    """Images that a worker attacks or labels together: as many on any number of them.

    The last bits of a convolution depend on it.
    """
    return min(self.config.global_batch_size, _LARGEST_BATCH)

  def distribute(self, dataset: tf.data.Dataset) -> tf.distribute.DistributedDataset:
    """Deals the batches of this worker's dataset to its replicas."""
    # Without a GPU there is no device to copy batches to ahead of time.
    options = tf.distribute.InputOptions(
      experimental_fetch_to_device=bool(tf.config.list_logical_devices("GPU"))
    )
    strategy = self.workers.strategy
    return compat.quiet_iterator(
      strategy.distribute_datasets_from_function(lambda context: dataset, options),
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
    newest = [
      f"{checkpoints}/{each.name}" for each in checkpoint_files.present(checkpoints)
    ]
    return UserError(
      f"{what}: lower --learning_rate or lengthen --warmup_epochs; last good "
      f"checkpoint: {newest[0] if newest else 'none'}."
    )

  def write_results(self, results: dict[str, Any]) -> None:
    if self.workers.is_chief:
      self.check_claim()
      update_results(self.config.directory.results, results)


@contextlib.contextmanager
def opened(config: config_lib.Settings, cluster: Cluster) -> Iterator[Run]:
  """Joins the workers, opens the data, builds the network and claims the directory.

  Nothing is written before all that is sound. At the end the workers wait for each
  other, also if one of them was told to end.

  Raises:
    UserError: settings, data or directory do not fit together.
    SystemExit: with `PREEMPTED`, if all have saved and end because they were told to.
  """
  workers = _join(config, cluster)
  lookout = Lookout(cluster.addresses, cluster.index, joined.SILENCE)
  watchdog = Watchdog(config.collective_timeout, cluster.index)
  for text, check in (
    (stack.to_text(), stack.check_same),
    (config_lib.to_text(config), config_lib.check_same),
  ):
    check(workers.texts(text))
  _check_batch(config, workers.num_replicas)
  inputs = Inputs(config, workers)
  model = None
  if not config.model_path:  # nothing of our own is evaluated
    model = build_model(config, workers, inputs.image_shape, inputs.steps_per_epoch)
  with directory.claimed(config, workers) as check_claim:
    trainee = None
    if model is not None:
      steps = inputs.steps_per_epoch
      trainee = Trainee(config, workers, model, steps, check_claim)
    preempted: Optional[Preempted] = None
    try:
      yield Run(config, workers, inputs, trainee, watchdog, check_claim)
    except Preempted as error:
      preempted = error
      assert trainee is not None
      trainee.checkpoints.finish()
    lookout.stop()
    workers.part()
  if preempted is not None:
    if workers.is_chief:
      print(
        f"{config.model_dir}: saved, since a worker was told to end. The same command "
        "goes on from there.",
        flush=True,
      )
    raise SystemExit(PREEMPTED) from preempted


def _join(config: config_lib.Settings, cluster: Cluster) -> Workers:
  with compat.quiet():  # TensorFlow looks for CUDA now
    has_gpus = bool(tf.config.list_physical_devices("GPU"))
  if config.communication == "nccl" and not has_gpus:
    raise UserError("--communication=nccl needs GPUs, and none is here: use ring.")
  keras.utils.set_random_seed(config.seed)
  options = joined.communication_options(
    config.communication,
    config.bytes_per_pack,
    timeout_seconds=0,  # see Watchdog
  )
  return joined.join(cluster, options, config.start_timeout)


def _check_batch(config: config_lib.Settings, replicas: int) -> None:
  each, surplus = divmod(config.global_batch_size, replicas)
  if surplus:
    raise UserError(
      f"--global_batch_size={config.global_batch_size} is not a multiple of the "
      f"{replicas} replicas: choose one that is, such as "
      f"{config.global_batch_size - surplus + replicas}."
    )
  if config.trains and each % config.accumulation:
    raise UserError(
      f"--accumulation={config.accumulation} does not divide the {each} images of a "
      "replica's batch: choose a number that does."
    )
