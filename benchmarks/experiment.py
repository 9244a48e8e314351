"""Runs an experiment of flags/ on local workers and keeps its figures.

    python benchmarks/experiment.py --experiment=fashion_mnist_dat_pgd
        --num_workers=2 --json=docs/results/fashion_mnist_dat_pgd.json

The run is the flagfile's own: its data and its model_dir. What was interrupted goes on.

JSON keys: those of results.json, with robust_accuracy_NAME for each attack, and the
experiment's name.
"""

from __future__ import annotations

import os

import common
from absl import flags

from dat_tf.program.startup import run_script

_EXPERIMENT = flags.DEFINE_string(
  "experiment", None, "Name of a file in flags/, without its ending.", required=True
)
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers", 2, "Local worker processes.", lower_bound=1
)


def main(argv: list[str]) -> None:
  del argv
  results = common.train_and_evaluate(
    _EXPERIMENT.value,
    os.path.join(common.ROOT, "runs", _EXPERIMENT.value),
    _NUM_WORKERS.value,
  )
  for attack, accuracy in results.pop("robust_accuracy").items():
    results[f"robust_accuracy_{attack}"] = accuracy
  rows = [{"figure": name, "value": value} for name, value in results.items()]
  common.report(rows, {"experiment": _EXPERIMENT.value, **results})


if __name__ == "__main__":
  run_script(main)
