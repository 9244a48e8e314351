"""Every method of robust training on the same network, images and number of steps.

    python benchmarks/methods.py --json=docs/results/methods.json

Each of flags/methods/*.flags is trained on one worker, on an eighth of Fashion-MNIST,
7,500 images, and evaluated: clean and PGD-50 accuracy on 1,250 test images, PGD-50 and
AutoAttack on the first of them. What is done stays under --work_dir and is not run
again: the benchmark can be interrupted.

Then all methods take turns of a few training steps, as in their last epoch, in one
process. A method's time is the median over the rounds; its ratio to AT, which is PGD-10
with a clean and an adversarial half, is the median of those of the rounds.

JSON keys, METHOD a flagfile's name:
  METHOD_standard_accuracy, METHOD_pgd_50    0 to 1
  METHOD_autoattack, METHOD_pgd_50_there     0 to 1, of the same, fewer images
  METHOD_certified_accuracy     0 to 1, of certified training
  METHOD_seconds_per_epoch      of 118 steps of 64 images
  METHOD_time_over_at           of a step
  METHOD_epsilon, METHOD_norm   of the attacks in evaluation
  METHOD_machine                where it was trained and evaluated
  METHOD_row_seconds            of all of that, null if it was interrupted
  autoattack_examples           how many images AutoAttack had
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from typing import Any, Callable, Optional

import numpy as np
import tqdm
from absl import flags

from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf import config as config_lib
  from dat_tf.program.run import opened
  from dat_tf.workers.cluster import Cluster

import common

_DATA = flags.DEFINE_string(
  "data", "data/fashion_mnist", "Directory of train-* and test-* TFRecords."
)
_WORK_DIR = flags.DEFINE_string(
  "work_dir", "runs/methods", "Directory of the runs; what is done stays."
)
_EXAMPLES = flags.DEFINE_integer(
  "autoattack_examples", 50, "Test images for AutoAttack.", lower_bound=1
)
_ONLY = flags.DEFINE_list(
  "only", [], "Methods to run, all unless given; the others' figures stay in --json."
)

STEPS = 118
STEPS_A_TURN = 4

# The first turn, which compiles, takes its steps from the epoch too.
_ROUNDS = flags.DEFINE_integer(
  "rounds", 7, "Turns of each.", lower_bound=1, upper_bound=STEPS // STEPS_A_TURN - 1
)


def run(name: str) -> dict[str, Any]:
  """A method's row, computed unless it was."""
  directory = os.path.abspath(os.path.join(_WORK_DIR.value, name))
  path = os.path.join(directory, f"row_{_EXAMPLES.value}.json")
  if not os.path.exists(path):
    print(f"\n{name}", flush=True)
    started = None if os.path.exists(directory) else time.monotonic()
    settings = _settings(name)
    common.python("run_dat.py", *settings)
    results = _results(directory)
    common.python(
      *["run_dat.py", *settings, "--mode=evaluate", "--attacks=pgd-50,autoattack"],
      f"--evaluation_examples={_EXAMPLES.value}",
    )
    robust = _results(directory)["robust_accuracy"]
    config = config_lib.load(directory)
    assert config is not None
    row = {
      "norm": config.norm,
      "epsilon": config.epsilon,
      "standard_accuracy": results["standard_accuracy"],
      "pgd_50": results["robust_accuracy"]["pgd-50"],
      "autoattack": robust["autoattack"],
      "pgd_50_there": robust["pgd-50"],
      "certified_accuracy": results.get("certified_accuracy"),
      "machine": common.machine(),
      "row_seconds": started and time.monotonic() - started,
    }
    with open(path, "w", encoding="utf-8") as file:
      json.dump(row, file)
  with open(path, encoding="utf-8") as file:
    return json.load(file)


def _settings(name: str) -> list[str]:
  data = os.path.abspath(_DATA.value)
  return [
    f"--flagfile={common.ROOT}/flags/methods/{name}.flags",
    f"--model_dir={os.path.abspath(os.path.join(_WORK_DIR.value, name))}",
    f"--train_data={data}/train-00000-of-00008",
    f"--test_data={data}/test-00000-of-00008",
    "--pictures=0",
    "--probe_images=0",
  ]


def turns_of(name: str, open_runs: contextlib.ExitStack) -> Callable[[], float]:
  """Builds a method's training; what it returns gives the seconds of a step."""
  config = config_lib.parse(["methods", *_settings(name)])
  run = open_runs.enter_context(opened(config, Cluster()))
  assert run.trainee is not None
  model = run.trainee.model
  step = model.make_train_function()
  last = config.epochs - 1
  # Some attacks grow from step to step.
  model.optimizer.iterations.assign(last * run.inputs.steps_per_epoch)
  batches = iter(run.distribute(run.inputs.training_batches(last)))

  def turn() -> float:
    started = time.perf_counter()
    for _ in range(STEPS_A_TURN):
      logs = step(batches)
    tf.nest.map_structure(np.asarray, logs)
    return (time.perf_counter() - started) / STEPS_A_TURN

  turn()
  return turn


def step_times(names: list[str]) -> dict[str, np.ndarray]:
  """Seconds of a step of each method, and of `at`, in each round."""
  with contextlib.ExitStack() as open_runs:
    turns = {
      name: turns_of(name, open_runs)
      for name in tqdm.tqdm(dict.fromkeys([*names, "at"]), desc="compiling")
    }
    rounds = [
      {name: turn() for name, turn in turns.items()}
      for _ in tqdm.trange(_ROUNDS.value, desc="rounds")
    ]
  return {name: np.array([each[name] for each in rounds]) for name in turns}


def _results(directory: str) -> dict[str, Any]:
  with open(os.path.join(directory, "results.json"), encoding="utf-8") as file:
    return json.load(file)


def _cell(value: Optional[float], form: str = ".1%") -> str:
  return "" if value is None else format(value, form)


def main(argv: list[str]) -> None:
  del argv
  flagfiles = pathlib.Path(common.ROOT, "flags", "methods").glob("*.flags")
  names = _ONLY.value or sorted({path.stem for path in flagfiles} - {"common"})
  figures = common.figures_there() if _ONLY.value else {}
  figures["autoattack_examples"] = _EXAMPLES.value
  rows = []
  results = {name: run(name) for name in names}
  times = step_times(names)
  for name, row in results.items():
    row["seconds_per_epoch"] = STEPS * float(np.median(times[name]))
    row["time_over_at"] = float(np.median(times[name] / times["at"]))
    figures |= {f"{name}_{key}": value for key, value in row.items()}
    rows.append(
      {
        "method": name,
        "ball": f"{row['norm']} {row['epsilon']:g}",
        "clean": _cell(row["standard_accuracy"]),
        "PGD-50": _cell(row["pgd_50"]),
        "AutoAttack": _cell(row["autoattack"]),
        "PGD-50 there": _cell(row["pgd_50_there"]),
        "certified": _cell(row["certified_accuracy"]),
        "s/epoch": f"{row['seconds_per_epoch']:.1f}",
        "time / AT": f"{row['time_over_at']:.2f}",
        "row [s]": _cell(row["row_seconds"], ".0f"),
      }
    )
  common.report(rows, figures)


if __name__ == "__main__":
  run_script(main)
