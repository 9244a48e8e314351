"""What TensorBoard shows of runs beside each figure by itself.

HParams compares runs by their settings and by the few figures that sum them up; Custom
Scalars has charts in which what belongs together are lines: accuracy on clean images
and under attack.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Optional, Union

import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api as hp

# Title of a category to titles of charts to the tags that are lines of one.
_CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
  "Accuracy": {"Clean and robust accuracy": ("accuracy", "robust_accuracy")},
  "Training": {
    "Loss": ("loss",),
    "Norm of the gradient": ("gradient_norm",),
    "Learning rate": ("learning_rate",),
  },
  "Communication": {
    "Time, ms": ("reduction_ms", "encode_ms", "exchange_ms", "decode_ms"),
    "Error of quantization": ("quantization_error",),
  },
}
# They say where a run is and what was last done with it, not what it is.
_NO_SETTINGS = {"model_dir", "mode", "runs"}


class Summary(hp.KerasCallback):
  """Writes a run's settings, and the accuracies of training after each epoch.

  They stand in a folder of their own: all scalars in it are columns of HParams.
  """

  def __init__(self, directory: str, settings: Mapping[str, Any], name: str):
    """Writes the layout of the charts.

    Args:
      directory: TensorBoard's log directory of the run.
      settings: value by flag.
      name: of the run, which tells it from others with the same settings.
    """
    writer = tf.summary.create_file_writer(_folder(directory))
    with writer.as_default():
      layout = custom_scalar.pb(_layout()).SerializeToString()
      tf.summary.experimental.write_raw_pb(layout, step=0)
    super().__init__(writer, _plain(settings), trial_id=name)
    self._scalars = writer

  def on_epoch_end(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
    with self._scalars.as_default():
      for name in ("accuracy", "robust_accuracy"):
        if name in (logs or {}):
          tf.summary.scalar(f"training/{name}", float((logs or {})[name]), epoch + 1)
    self._scalars.flush()  # before the checkpoint of this epoch is there


def log_evaluation(
  directory: str, settings: Mapping[str, Any], name: str, results: Mapping[str, Any]
) -> None:
  """Adds the figures of an evaluation, for HParams to compare.

  They are standard_accuracy, robust_accuracy/NAME for each attack, and
  robust_accuracy/lowest; their step is the number of epochs.

  Args:
    directory: see `Summary`.
    settings: see `Summary`.
    name: see `Summary`.
    results: what results.json holds.
  """
  if not tf.io.gfile.exists(_folder(directory)):  # nothing was trained here
    Summary(directory, settings, name).on_train_begin()
  accuracies = dict(results["robust_accuracy"])
  if accuracies:
    accuracies["lowest"] = min(accuracies.values())
  writer = tf.summary.create_file_writer(_folder(directory))
  with writer.as_default():
    step = results.get("epochs") or 0
    tf.summary.scalar("standard_accuracy", results["standard_accuracy"], step)
    for attack, accuracy in accuracies.items():
      tf.summary.scalar(f"robust_accuracy/{attack}", accuracy, step)
  writer.close()


def _folder(directory: str) -> str:
  return os.path.join(directory, "summary")


def _layout() -> layout_pb2.Layout:
  def chart(title: str, tags: tuple[str, ...]) -> layout_pb2.Chart:
    lines = layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags])
    return layout_pb2.Chart(title=title, multiline=lines)

  return layout_pb2.Layout(
    category=[
      layout_pb2.Category(
        title=category, chart=[chart(*pair) for pair in charts.items()]
      )
      for category, charts in _CHARTS.items()
    ]
  )


def _plain(settings: Mapping[str, Any]) -> dict[str, Union[bool, float, str]]:
  """Values that HParams takes; those of flags without a value are empty."""
  return {
    name: value
    if isinstance(value, (bool, int, float))
    else ",".join(x if isinstance(x, str) else f"{x:g}" for x in value)
    if isinstance(value, tuple)
    else value or ""
    for name, value in settings.items()
    if name not in _NO_SETTINGS
  }
