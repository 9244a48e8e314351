"""What the benchmarks share: a table, a flat JSON object, a line on the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from absl import flags
from tabulate import tabulate

from dat_tf.base.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

JSON = flags.DEFINE_string("json", None, "File that the figures are written to.")


def report(
  rows: Sequence[dict[str, Any]], figures: dict[str, Any], note: str = ""
) -> None:
  """Prints rows as a table and writes the figures to --json, with the machine.

  Figures that were measured elsewhere bring their own `machine`.
  """
  print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g"))
  if note:
    print(note)
  write(figures)


def write(figures: dict[str, Any]) -> None:
  """Writes the figures to --json, with the machine, and prints nothing."""
  if JSON.value:
    os.makedirs(os.path.dirname(os.path.abspath(JSON.value)), exist_ok=True)
    with open(JSON.value, "w", encoding="utf-8") as file:
      json.dump({"machine": machine(), **figures}, file, indent=2)
      file.write("\n")


def figures_there() -> dict[str, Any]:
  """What --json holds of an earlier run; empty if nothing."""
  if not JSON.value or not os.path.exists(JSON.value):
    return {}
  with open(JSON.value, encoding="utf-8") as file:
    return json.load(file)


def machine() -> str:
  """Processor, cores in use and memory."""
  name = platform.processor() or platform.machine()
  memory = ""
  if os.path.exists("/proc/cpuinfo"):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      names = [line.split(":")[1].strip() for line in file if "model name" in line]
    name = names[0] if names else name
    memory = (
      f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    )
  cores = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  )
  return f"{name}, {cores} cores{memory}"


def train_and_evaluate(
  flagfile: str,
  model_dir: str,
  num_workers: int,
  *settings: str,
  interpreter: str = sys.executable,
) -> dict[str, Any]:
  """Runs an experiment on local workers; a failure ends this program.

  Args:
    flagfile: name of a file in flags/, without its ending.
    model_dir: a run that was interrupted there goes on.
    num_workers: local worker processes.
    *settings: further flags.
    interpreter: the Python that runs it.

  Returns:
    The run's results.json.
  """
  # The flagfile's paths, and its flagfiles, are relative to the project.
  command = ["-m", "dat_tf.launch", f"--num_workers={num_workers}", "--", "run_dat.py"]
  command += [f"--flagfile=flags/{flagfile}.flags"]
  command += [f"--model_dir={os.path.abspath(model_dir)}", *settings]
  python(*command, interpreter=interpreter)
  with open(os.path.join(model_dir, "results.json"), encoding="utf-8") as file:
    return json.load(file)


def accuracies(
  flagfile: str, model_dir: str, num_workers: int, *settings: str
) -> dict[str, float]:
  """`train_and_evaluate`, unless it was done: clean and PGD-20 accuracy, 0 to 1."""
  path = os.path.join(model_dir, "evaluated.json")
  if not os.path.exists(path):
    results = train_and_evaluate(flagfile, model_dir, num_workers, *settings)
    with open(path, "w", encoding="utf-8") as file:
      json.dump(results, file)
  with open(path, encoding="utf-8") as file:
    results = json.load(file)
  return {
    "standard_accuracy": results["standard_accuracy"],
    "robust_accuracy": results["robust_accuracy"]["pgd-20"],
  }


def compared(
  results: Sequence[dict[str, dict[str, float]]], base: str
) -> tuple[list[dict[str, Any]], dict[str, float]]:
  """Compares methods that were run with the same seeds.

  Args:
    results: for each seed, `accuracies` by method; two seeds at least.
    base: the method to which the others are compared, seed by seed.

  Returns:
    The table's rows, and for each METHOD the means over the seeds
    (METHOD_standard_accuracy, METHOD_robust_accuracy), the means of METHOD - base
    (METHOD_standard_difference, ...) and half the width of their 95 % interval,
    Student's (METHOD_standard_interval, ...), all from 0 to 1; and `seeds`.
  """
  count = len(results)
  spread = scipy.stats.t.ppf(0.975, count - 1) / np.sqrt(count)
  rows: list[dict[str, Any]] = []
  figures: dict[str, float] = {"seeds": count}
  for method in results[0]:
    row = {"method": method}
    for kind in ("standard", "robust"):
      key = f"{kind}_accuracy"
      values = np.array([seed[method][key] for seed in results])
      gained = values - [seed[base][key] for seed in results]
      mean, half = gained.mean(), spread * gained.std(ddof=1)
      figures[f"{method}_{key}"] = values.mean()
      figures[f"{method}_{kind}_difference"] = mean
      figures[f"{method}_{kind}_interval"] = half
      row[key] = f"{values.mean():.2%}"
      row[f"{kind} - {base}, points"] = f"{100 * mean:+.2f} +- {100 * half:.2f}"
    rows.append(row)
  return rows, figures


def python(*command: str, interpreter: str = sys.executable) -> None:
  """Runs a Python command in the project; its failure ends this program."""
  code = subprocess.call([interpreter, *command], cwd=ROOT)
  if code:
    sys.exit(code)


def records(directory: str) -> list[str]:
  """The flags that name the TFRecords in a directory."""
  directory = os.path.abspath(directory)
  return [f"--train_data={directory}/train-*", f"--test_data={directory}/test-*"]


def read_records(pattern: str, count: int = -1) -> tuple[np.ndarray, np.ndarray]:
  """Images of bare pixels, float32 in [0, 1], and labels.

  Args:
    pattern: of the TFRecord files.
    count: how many, from the first on; -1 is all.

  Raises:
    UserError: there are no such files.
  """
  import tensorflow as tf  # not every benchmark needs it

  paths = sorted(tf.io.gfile.glob(pattern))
  if not paths:
    raise UserError(f"{pattern} matches no file: give TFRecords (--data).")
  images, labels = [], []
  for record in tf.data.TFRecordDataset(paths).take(count).as_numpy_iterator():
    feature = tf.train.Example.FromString(record).features.feature
    pixels = np.frombuffer(feature["image/raw"].bytes_list.value[0], np.uint8)
    images.append(pixels.reshape(feature["image/shape"].int64_list.value))
    labels.append(feature["label"].int64_list.value[0])
  return np.stack(images).astype(np.float32) / 255.0, np.array(labels)
