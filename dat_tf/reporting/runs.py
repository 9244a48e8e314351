"""What runs left in their directories, read for the report.

Whatever a run has not left is empty or None here, and is left out of the report.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from dat_tf import config as config_lib
from dat_tf.base import files
from dat_tf.base.errors import UserError
from dat_tf.base.run_directory import RunDirectory
from dat_tf.data import framing
from dat_tf.evaluation import outcomes
from dat_tf.monitoring import read_results
from dat_tf.reporting import schema


@dataclasses.dataclass(frozen=True)
class Outcomes:
  """What an attack did to each of N test examples (MODEL_DIR/evaluation/NAME.npz).

  Attributes:
    attack: its name.
    example_id: int64 [N].
    label: int32 [N], the true classes.
    prediction: int32 [N], of the images as they are.
    adversarial_prediction: int32 [N]; as `prediction` where the attack failed.
  """

  attack: str
  example_id: np.ndarray
  label: np.ndarray
  prediction: np.ndarray
  adversarial_prediction: np.ndarray

  @property
  def robust(self) -> np.ndarray:
    """Whether each is classified right under the attack, bool [N]."""
    return self.adversarial_prediction == self.label


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """One run.

  Attributes:
    name: that tells it from the others of a report.
    results: of results.json.
    settings: value by flag, of config.flags.
    outcomes: of attacks, the most harmful first.
    probes: of evaluation/probes.npz.
    curves: what TensorBoard shows: "train/loss" to float64 [2, points], steps and
      values.
  """

  name: str
  results: dict[str, Any]
  settings: dict[str, Any]
  outcomes: list[Outcomes]
  probes: dict[str, np.ndarray]
  curves: dict[str, np.ndarray]

  @property
  def accuracies(self) -> dict[str, float]:
    """The accuracy under each attack, 0 to 1, in the order of evaluation."""
    return self.results.get("robust_accuracy") or {}

  @property
  def norm(self) -> Optional[str]:
    """linf, l2 or l1."""
    return self.results.get("norm") or self.settings.get("norm")

  @property
  def epsilon(self) -> Optional[float]:
    """The radius of the ball, for pixels in [0, 1]."""
    value = self.results.get("epsilon") or self.settings.get("epsilon")
    return None if value is None else float(value)

  @property
  def batch_size(self) -> Optional[int]:
    """Images of a training step."""
    value = self.results.get("global_batch_size")
    value = value or self.settings.get("global_batch_size")
    return None if value is None else int(value)


def num_classes(run: RunRecord) -> int:
  """How many classes the outcomes of a run's attacks tell of, at least."""
  first = run.outcomes[0]
  classes = (first.label, first.prediction, first.adversarial_prediction)
  return 1 + max(int(numbers.max()) for numbers in classes)


def read_runs(directories: Sequence[str]) -> list[RunRecord]:
  """Reads runs' directories.

  Raises:
    UserError: one of them holds no run, or a file in it is damaged.
  """
  return [_read(*pair) for pair in zip(_names(directories), directories)]


def holds_run(directory: str) -> bool:
  """Whether a run has left anything there that a report can show."""
  return any(
    tf.io.gfile.exists(path)
    for path in (RunDirectory(directory).results, RunDirectory(directory).logs)
  )


def _names(directories: Sequence[str]) -> list[str]:
  """The shortest ends of the paths that differ."""
  parts = [os.path.normpath(path).split(os.sep) for path in directories]
  names: list[str] = []
  for length in range(1, max(map(len, parts)) + 1):
    names = ["/".join(part[-length:]) for part in parts]
    if len(set(names)) == len(names):
      break
  return names


def _read(name: str, directory: str) -> RunRecord:
  if not holds_run(directory):
    raise UserError(
      f"{directory} holds neither results.json nor logs/: name the directory of a run."
    )
  there = RunDirectory(directory)
  results = read_results(there.results)
  # Only attacks that results.json names, on the same weights and images, are read:
  # other files may be those of a run under way, or of earlier weights.
  found = []
  measured = results.get("fingerprint") or "unknown"
  for attack in results.get("robust_accuracy") or {}:
    arrays = _read_arrays(
      os.path.join(there.evaluation, f"{attack}.npz"), schema.check_outcomes
    )
    if (
      arrays
      # That of a source of transfer attacks comes after it.
      and str(arrays["fingerprint"]).startswith(measured)
      and len(arrays["label"]) == results.get("test_examples")
    ):
      names = [field.name for field in dataclasses.fields(Outcomes)][1:]
      found.append(Outcomes(attack, **{key: arrays[key] for key in names}))
  path = os.path.join(there.evaluation, "probes.npz")
  probed = results.get("probed_images")
  probes = _read_arrays(path, schema.check_probes) if probed else {}
  if probes and str(probes["fingerprint"]) != measured:
    probes = {}
  settings = config_lib.load(directory)
  return RunRecord(
    name,
    results,
    dataclasses.asdict(settings) if settings else {},
    sorted(found, key=lambda attacked: attacked.robust.mean()),
    probes,
    _read_curves(there.logs),
  )


def _read_arrays(
  path: str, check: Callable[[dict[str, np.ndarray]], None]
) -> dict[str, np.ndarray]:
  """The arrays of a .npz file by name; none if there is no file."""
  arrays = outcomes.read(path) or {}
  try:
    if arrays:
      check(arrays)
  except ValueError as error:
    raise UserError(
      f"{path} cannot be read ({error}): remove it and evaluate again."
    ) from None
  return arrays


def _read_curves(directory: str) -> dict[str, np.ndarray]:
  points: dict[str, dict[int, float]] = {}
  for folder in ("train", "test"):
    # In the order of time: what a restarted run wrote again holds.
    logs = os.path.join(directory, folder)
    for name in filter(lambda name: "tfevents" in name, files.names(logs)):
      path = os.path.join(logs, name)
      try:
        for record in framing.read_while_good(path):
          event = tf.compat.v1.Event.FromString(record)
          for value in event.summary.value:
            figure = _figure(value)
            if figure is not None:
              points.setdefault(f"{folder}/{value.tag}", {})[event.step] = figure
      except (DecodeError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
          f"{path} cannot be read ({error}): remove it; its curves are lost."
        ) from None
  return {
    tag: np.array(sorted(curve.items()), np.float64).T for tag, curve in points.items()
  }


def _figure(value: tf.compat.v1.Summary.Value) -> Optional[float]:
  """The number that a summary is of; None of a picture and the like."""
  tensor = value.tensor
  number = (tf.float32.as_datatype_enum, tf.float64.as_datatype_enum)
  if (
    value.metadata.plugin_data.plugin_name != "scalars"
    or tensor.dtype not in number
    # Which may claim more numbers than there are, and would be filled up.
    or tensor.tensor_shape.dim
  ):
    return None
  return float(tf.make_ndarray(tensor).item())
