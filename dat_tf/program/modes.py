"""What each --mode does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Optional

import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf import reporting
from dat_tf.attacks import make_attacks
from dat_tf.base import files
from dat_tf.base.errors import UserError, one_line
from dat_tf.data import records
from dat_tf.monitoring import log_evaluation, read_results
from dat_tf.program import (
  checkpointing,
  evaluating,
  exporting,
  pseudo_labeling,
  status,
  training,
)
from dat_tf.program.run import Run, opened
from dat_tf.program.trainee import Trainee
from dat_tf.workers import peers
from dat_tf.workers.cluster import Cluster

# What collectives raise on a worker whose peer has ended, frozen or vanished.
_LOST_WORKER = (
  tf.errors.UnavailableError,
  tf.errors.AbortedError,
  tf.errors.CancelledError,
  tf.errors.DeadlineExceededError,
)


def run(config: config_lib.Settings, cluster: Cluster) -> None:
  """Does what `config.mode` says, as one of the workers of `cluster`.

  Raises:
    UserError: settings, data or model directory do not fit together.
  """
  if config.mode in _OF_FILES:
    if cluster.is_chief:
      _OF_FILES[config.mode](config)
    return
  exporting.check_packages(config.export_formats)
  for name in config.attacks:  # which may be none
    # Whether a source can be loaded is seen later.
    stand_in = tf.identity if config.source_model_path else None
    make_attacks(name, config_lib.make_ball(config), source=stand_in)
  try:
    with opened(config, cluster) as this:
      if this.trainee is None:
        _evaluate(this, None)
      else:
        for step in _STEPS[config.mode]:
          step(this, this.trainee)
  except _LOST_WORKER as error:
    if cluster.num_workers == 1:
      raise
    # This worker is not the cause; exit code 1.
    raise SystemExit(peers.farewell(error, cluster.addresses, cluster.index)) from None
  except (OSError, tf.errors.OpError) as error:
    if not files.is_refused_writing(error, config.model_dir):
      raise
    raise UserError(
      f"--model_dir={config.model_dir} cannot be written ({one_line(error)}): make "
      "room, and start again; the same command goes on from the newest checkpoint."
    ) from None


def _restore(run: Run, trainee: Trainee) -> None:
  trainee.restore()


def _evaluate(run: Run, trainee: Optional[Trainee]) -> None:
  """Evaluates what was trained, or without it the model of --model_path."""
  config = run.config
  evaluating.evaluate(run, trainee)
  if run.workers.is_chief:
    log_evaluation(
      config.directory.logs,
      dataclasses.asdict(config),
      config.model_dir,
      read_results(config.directory.results),
    )
    _report(config)


def _export(run: Run, trainee: Trainee) -> None:
  config = run.config
  trainee.export()
  if run.workers.is_chief:
    print(f"{config.directory.export}: the classifier, written anew.", flush=True)
    if config.export_formats:
      paths = exporting.export_formats(
        trainee.plain, config.model_dir, config.export_formats
      )
      print("\n".join(f"{path}: gives the same logits." for path in paths), flush=True)


def _report(config: config_lib.Settings) -> None:
  path = reporting.write_report(config.model_dir, config.runs)
  print(f"{path}: what was measured, to look at.", flush=True)


def _status(config: config_lib.Settings) -> None:
  print(status.status(config.directory), flush=True)


def _pseudo_label(run: Run, trainee: Trainee) -> None:
  """Labels this worker's part of the files of --unlabeled_data."""
  config, source = run.config, run.inputs.unlabeled
  assert source is not None
  trainee.copy_final_weights()
  classify = tf.function(lambda images: trainee.plain(images, training=False))
  labeler = pseudo_labeling.PseudoLabeler(
    classify,
    source.form,
    source.image_shape,
    config_lib.make_crop(config),
    run.inference_batch_size,
    config.pseudo_labels == "soft",
    config.confidence_threshold,
    run.inputs.reading["first_label"],
    config.skip_bad_records > 0,
  )
  paths = records.match_files(config.unlabeled_data)
  targets = pseudo_labeling.targets(paths, config.pseudo_label_dir)
  settings = {
    "weights": checkpointing.fingerprint(trainee.plain),
    "labels": config.pseudo_labels,
    "threshold": config.confidence_threshold,
    "image_size": config.image_size,
    "first_label": config.first_label,
  }
  cluster, is_local = run.workers.cluster, config.data_is_local
  pseudo_labeling.begin(
    config.pseudo_label_dir, settings, is_chief=cluster.is_chief or is_local
  )
  # Files are labelled whole, each by one worker.
  mine = slice(None) if is_local else slice(cluster.index, None, cluster.num_workers)
  with run.explained_errors():
    counts = labeler.label_files(
      paths[mine], targets[mine], show_progress=cluster.is_chief
    )
  texts = run.workers.texts(json.dumps(counts))
  written, labeled = map(sum, zip(*map(json.loads, texts)))
  if cluster.is_chief:
    print(
      f"{config.pseudo_label_dir}: {labeled} of the {written} images written now have"
      " a pseudo-label.",
      flush=True,
    )


# Modes that need no workers, for they only look at what lies there.
_OF_FILES = {"report": _report, "status": _status}
# What each mode does, once the run's directory is its own.
_STEPS: dict[str, tuple[Callable[[Run, Trainee], None], ...]] = {
  "train": (training.train,),
  "train_and_evaluate": (training.train, _evaluate),
  "evaluate": (_restore, _evaluate),
  "pseudo_label": (_restore, _pseudo_label),
  "export": (_restore, _export),
}
