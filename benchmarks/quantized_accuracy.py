"""What quantized gradients cost in accuracy, beside float32 ones.

    python benchmarks/quantized_accuracy.py --data=data/fashion_mnist \
        --json=docs/results/quantized_accuracy.json

flags/fashion_mnist_dat_pgd.flags on 4 local workers, with few epochs: for each of the
seeds once with every all-reduce. The same seed means the same first weights, order of
images and random starts, so that differences to float32 are taken seed by seed. Their
95 % interval is Student's, from so few seeds a wide one.

Each run keeps an evaluated.json under --work_dir and is not run again: the benchmark
can be interrupted.

JSON keys, METHOD one of fp32, 8bit, 4bit, 2bit and 2bit_feedback:
  METHOD_standard_accuracy, METHOD_robust_accuracy    means over the seeds, 0 to 1
  METHOD_standard_difference, METHOD_robust_difference   mean of METHOD - fp32
  METHOD_standard_interval, METHOD_robust_interval       half the width of its interval
  seeds, epochs, num_workers
"""

from __future__ import annotations

import os

import common
from absl import flags

from dat_tf.program.startup import run_script

_DATA = flags.DEFINE_string(
  "data", "data/fashion_mnist", "Directory of train-* and test-* TFRecords."
)
_WORK_DIR = flags.DEFINE_string(
  "work_dir", "runs/quantized_accuracy", "Directory of the runs; what is done stays."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds, from 0.", lower_bound=2)
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of each run.", lower_bound=1)

METHODS = {
  "fp32": ["--all_reduce=fp32"],
  "8bit": ["--all_reduce=two_sided", "--bits=8"],
  "4bit": ["--all_reduce=two_sided", "--bits=4"],
  "2bit": ["--all_reduce=two_sided", "--bits=2"],
  "2bit_feedback": ["--all_reduce=two_sided", "--bits=2", "--error_feedback"],
}
WORKERS = 4


def run(method: str, seed: int) -> dict[str, float]:
  """Trains and evaluates once, unless it was done; returns the accuracies."""
  print(f"\n{method}, seed {seed}", flush=True)
  return common.accuracies(
    "fashion_mnist_dat_pgd",
    os.path.join(_WORK_DIR.value, f"{_EPOCHS.value}_epochs", f"{method}_{seed}"),
    WORKERS,
    *common.records(_DATA.value),
    *METHODS[method],
    f"--epochs={_EPOCHS.value}",
    f"--seed={seed}",
    "--pictures=0",
    "--probe_images=0",
  )


def main(argv: list[str]) -> None:
  del argv
  seeds = range(_SEEDS.value)
  # Seed by seed: what an interruption leaves can be compared.
  results = [{method: run(method, seed) for method in METHODS} for seed in seeds]
  rows, figures = common.compared(results, "fp32")
  figures.update(epochs=_EPOCHS.value, num_workers=WORKERS)
  print()
  common.report(rows, figures)


if __name__ == "__main__":
  run_script(main)
