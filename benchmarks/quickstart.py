"""Adversarial against clean training of a small network, on two local workers.

    python benchmarks/quickstart.py                              (make quickstart)
    python benchmarks/quickstart.py --seeds=0,1,2 --json=docs/results/quickstart.json

Writes scikit-learn's digits as TFRecords, trains with flags/digits_dat_pgd.flags and
with flags/digits_clean.flags (two processes, MultiWorkerMirroredStrategy over gRPC),
and evaluates clean and PGD-20 accuracy on 360 test images. Everything goes to runs/
and data/ in the current directory; what is there of an earlier quick start is
replaced.

JSON keys (means over the seeds, accuracies from 0 to 1):
  dat_standard_accuracy, dat_robust_accuracy      trained with DAT-PGD
  clean_standard_accuracy, clean_robust_accuracy  trained on clean images
  dat_robust_accuracy_lowest                      the lowest of the seeds
  seeds                                           how many there were
  seconds                                         of the whole, of one seed
"""

from __future__ import annotations

import os
import shutil
import sys
import time

import common
from absl import flags

from dat_tf.program.startup import run_script

_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds to run, one after the other.")

EXPERIMENTS = {
  "dat": ("digits_dat_pgd", "adversarial (DAT-PGD)"),
  "clean": ("digits_clean", "clean"),
}


def train(name: str, seed: int) -> dict[str, float]:
  """Trains and evaluates by a flagfile; returns the accuracies."""
  model_dir = os.path.join("runs", f"quickstart_{name}")
  shutil.rmtree(model_dir, ignore_errors=True)
  print(f"\n{name}, seed {seed}", flush=True)
  results = common.train_and_evaluate(
    name, model_dir, 2, f"--seed={seed}", *common.records("data/digits")
  )
  return {
    "standard_accuracy": results["standard_accuracy"],
    "robust_accuracy": results["robust_accuracy"]["pgd-20"],
  }


def main(argv: list[str]) -> None:
  del argv
  started = time.perf_counter()
  shutil.rmtree("data/digits", ignore_errors=True)
  directory = os.path.abspath("data/digits")
  common.python("tfrecords/build_digits.py", f"--output_dir={directory}")
  measured = {
    key: [train(name, int(seed)) for seed in _SEEDS.value]
    for key, (name, _) in EXPERIMENTS.items()
  }
  count = len(_SEEDS.value)
  figures = {
    f"{key}_{metric}": sum(result[metric] for result in results) / count
    for key, results in measured.items()
    for metric in ("standard_accuracy", "robust_accuracy")
  }
  robust = [result["robust_accuracy"] for result in measured["dat"]]
  figures["dat_robust_accuracy_lowest"] = min(robust)
  figures["seeds"] = count
  figures["seconds"] = (time.perf_counter() - started) / count
  rows = [
    {
      "training": title,
      "clean accuracy": f"{figures[f'{key}_standard_accuracy']:.1%}",
      "under PGD-20, epsilon 0.2": f"{figures[f'{key}_robust_accuracy']:.1%}",
    }
    for key, (_, title) in EXPERIMENTS.items()
  ]
  print()
  common.report(rows, figures)
  print(f"""
Took {figures["seconds"]:.0f} s a seed. What was written, under {os.getcwd()}:
  runs/quickstart_digits_dat_pgd/export         the model: tf.keras.models.load_model
  runs/quickstart_digits_dat_pgd/results.json   these and other figures
  runs/quickstart_digits_dat_pgd/report.html    the same to look at
  runs/quickstart_digits_dat_pgd/logs           TensorBoard's
The next quick start writes all of it anew.
To see the curves: {sys.executable} -m tensorboard.main --logdir=runs
To attack the model harder: {sys.executable} run_dat.py \\
    --flagfile=runs/quickstart_digits_dat_pgd/config.flags --mode=evaluate \\
    --attacks=autoattack""")


if __name__ == "__main__":
  run_script(main)
