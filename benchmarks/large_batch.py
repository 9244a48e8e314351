"""SGD, LARS and LAMB at a large batch: what layer-wise learning rates keep.

    python benchmarks/large_batch.py --data=data/fashion_mnist \
        --json=docs/results/large_batch.json

Fashion-MNIST, l-infinity, epsilon 0.1, a global batch of 4,096 on 4 local workers, 5
epochs (75 steps), FGSM with a random start in training (one attack step instead of ten,
to keep the whole grid affordable) and PGD-20 in evaluation, on
all 10,000 test images. Each optimizer runs over its grid of peak learning rates; the
other settings are the same for all: one epoch of warm-up, cosine decay, weight decay
1e-4, clean weight 1, batch-norm momentum as everywhere. One seed.

Each run keeps an evaluated.json under --work_dir and is not run again: the benchmark
can be interrupted.

JSON keys:
  OPTIMIZER_LR_standard_accuracy, OPTIMIZER_LR_robust_accuracy   for each run, 0 to 1
  OPTIMIZER_best_learning_rate   the one of the highest robust accuracy
  global_batch_size, num_workers, epochs
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
  "work_dir", "runs/large_batch", "Directory of the runs; what is done stays."
)

GRID = {
  "sgd": (0.02, 0.05, 0.1, 0.2, 0.4),
  # LARS' rate is multiplied by its trust coefficient of 0.001 in adapted layers.
  "lars": (1.0, 3.0, 10.0, 30.0),
  "lamb": (0.02, 0.05, 0.1),
}
BATCH, WORKERS, EPOCHS = 4096, 4, 5


def run(optimizer: str, learning_rate: float) -> dict[str, float]:
  """Trains and evaluates once, unless it was done; returns the accuracies."""
  return common.accuracies(
    "fashion_mnist_dat_pgd",
    os.path.join(_WORK_DIR.value, f"{optimizer}_{learning_rate}"),
    WORKERS,
    *common.records(_DATA.value),
    "--attack=fgsm",
    "--attack_steps=1",
    "--step_size=0.125",
    f"--epochs={EPOCHS}",
    f"--global_batch_size={BATCH}",
    f"--optimizer={optimizer}",
    f"--learning_rate={learning_rate}",
    "--warmup_epochs=1",
    "--pictures=0",
    "--probe_images=0",
  )


def main(argv: list[str]) -> None:
  del argv
  rows: list[dict[str, object]] = []
  figures: dict[str, object] = {
    "global_batch_size": BATCH, "num_workers": WORKERS, "epochs": EPOCHS
  }  # fmt: skip
  for optimizer, rates in GRID.items():
    robust = {}
    for rate in rates:
      print(f"\n{optimizer}, learning rate {rate}", flush=True)
      results = run(optimizer, rate)
      robust[rate] = results["robust_accuracy"]
      for name, value in results.items():
        figures[f"{optimizer}_{rate}_{name}"] = value
      rows.append(
        {
          "optimizer": optimizer,
          "learning rate": rate,
          "clean accuracy": f"{results['standard_accuracy']:.1%}",
          "under PGD-20, epsilon 0.1": f"{results['robust_accuracy']:.1%}",
        }
      )
    figures[f"{optimizer}_best_learning_rate"] = max(
      robust, key=lambda rate: robust[rate]
    )
  print()
  common.report(rows, figures)


if __name__ == "__main__":
  run_script(main)
