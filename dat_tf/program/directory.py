"""A run's directory: one run at a time in it, nothing in it lost or left half done.

It holds

    config.flags    its settings, a flagfile that reproduces it
    checkpoints/    the newest few, one an epoch
    best/           the best weights, with early stopping
    export/         the classifier, for tf.keras.models.load_model
    logs/           TensorBoard's
    events.jsonl    its starts, checkpoints and failures
    results.json    figures at the end of training and of evaluation
    evaluation/     of --attacks: what became of each example, and probes
    report.html     what was measured, to look at; its plots are in report/
    lock            who writes there now
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Optional

import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf.base import files
from dat_tf.base.errors import UserError
from dat_tf.evaluation import outcomes
from dat_tf.monitoring import read_results
from dat_tf.program import checkpoint_files, exporting
from dat_tf.program.locking import Lock
from dat_tf.workers.joined import Workers

_WRITTEN = re.compile(
  r"config\.flags|checkpoints|best|export|logs|results(_\d+)?\.json|evaluation|report"
  r"|report\.html|events\.jsonl|" + "|".join(map(re.escape, exporting.FORMATS.values()))
)
_RESULTS = re.compile(r"results(_\d+)?\.json")


@contextlib.contextmanager
def claimed(
  config: config_lib.Settings, workers: Workers
) -> Iterator[Callable[[], None]]:
  """While it lasts no other run writes in the directory.

  Yields:
    A function that raises UserError if the directory was removed, or is another run's
    by now.

  Raises:
    UserError: another run writes there; or it was written with other settings, is
      damaged, or cannot be written.
  """
  lock: Optional[Lock] = None
  message = ""
  # To label images, weights are only read.
  if workers.is_chief and config.mode != "pseudo_label":
    try:
      lock = claim(config)
    except UserError as error:
      message = str(error)
  check_claim = lock.check if lock else lambda: None
  try:
    # The others look at the directory only now.
    message = workers.texts(message)[0]
    if message:
      raise UserError(message)
    check(config, warn=workers.is_chief)
    yield check_claim
  except (OSError, tf.errors.OpError):
    check_claim()  # a directory that is gone explains any of them
    raise
  finally:
    if lock:
      lock.release()


def claim(config: config_lib.Settings) -> Lock:
  """Takes the directory, and clears it if --overwrite says so.

  What a killed run left half done is removed.

  Raises:
    UserError: another run writes there, or it cannot be written.
  """
  model_dir = config.model_dir
  lock = Lock(model_dir)
  try:
    with files.explained_writing(model_dir):
      if config.overwrite:
        for name in filter(_WRITTEN.fullmatch, files.names(model_dir)):
          _remove(os.path.join(model_dir, name))
      there = config.directory
      for path in (there.checkpoints, there.best):
        checkpoint_files.remove_leftovers(path)
      exporting.remove_leftovers(model_dir)
      kept = there.checkpoints, there.best, there.evaluation, there.plots
      for path in (model_dir, *kept):
        files.remove_temporaries(path)
  except BaseException:
    lock.release()
    raise
  return lock


def check(config: config_lib.Settings, *, warn: bool = True) -> None:
  """Checks that what is there is whole, and of a run with the same settings.

  Args:
    config: the settings.
    warn: whether to print a line where nothing tells of the earlier run's settings.

  Raises:
    UserError: the settings differ, or a file is damaged.
  """
  model_dir = config.model_dir
  # Settings bind a later run only once there is a checkpoint.
  checkpoints = checkpoint_files.present(config.directory.checkpoints)
  if config.model_path or checkpoints:
    is_known = config_lib.check_against_saved(config)
    if checkpoints and not is_known and warn:
      print(
        f"Warning: {model_dir} has checkpoints but no config.flags: nothing tells "
        "whether they were made with the same settings.",
        flush=True,
      )
  for name in filter(_RESULTS.fullmatch, files.names(model_dir)):
    read_results(os.path.join(model_dir, name))
  evaluation = config.directory.evaluation
  for name in files.names(evaluation):
    if name.endswith(".npz"):
      outcomes.read(os.path.join(evaluation, name))


def _remove(path: str) -> None:
  if tf.io.gfile.isdir(path):
    tf.io.gfile.rmtree(path)
  else:
    tf.io.gfile.remove(path)
