"""What images without labels add to robustness, when few have labels.

    python benchmarks/semi_supervised.py --data=data/fashion_mnist_4000 \
        --json=docs/results/semi_supervised.json

Fashion-MNIST with 4,000 labelled images, the labels of the other 56,000 withheld
(tfrecords/build_fashion_mnist.py --num_labeled=4000): flags/
fashion_mnist_semi_supervised.flags on two local workers, for each seed

    labelled only   DAT on the 4,000, as many steps of as many images as the others take
    pseudo-labels   half of each batch unlabelled, with labels from a network trained on
                    the 4,000 without an attack (flags/fashion_mnist_teacher.flags)
    consistency     half of each batch unlabelled, no pseudo-labels
    both            the sum of the two terms

Differences to labelled-only training are taken seed by seed; their 95 % interval is
Student's. Each run keeps an evaluated.json under --work_dir and is not run again: the
benchmark can be interrupted.

JSON keys, METHOD one of labeled_only, pseudo_label, consistency and both:
  METHOD_standard_accuracy, METHOD_robust_accuracy    means over the seeds, 0 to 1
  METHOD_standard_difference, METHOD_robust_difference   mean of METHOD - labeled_only
  METHOD_standard_interval, METHOD_robust_interval       half the width of its interval
  teacher_standard_accuracy   of the network that makes the pseudo-labels
  seeds
"""

from __future__ import annotations

import os

import common
from absl import flags

from dat_tf.program.startup import run_script

_DATA = flags.DEFINE_string(
  "data", "data/fashion_mnist_4000", "Directory of labeled-*, unlabeled-* and test-*."
)
_WORK_DIR = flags.DEFINE_string(
  "work_dir", "runs/semi_supervised", "Directory of the runs; what is done stays."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds, from 0.", lower_bound=2)

# 40 epochs of 4,000 images in batches of 128 are as many steps, to within 2 %, as 20 of
# them in batches of 64 labelled and 64 unlabelled.
METHODS = {
  "labeled_only": ["--unlabeled_data=", "--epochs=40", "--warmup_epochs=1"],
  "pseudo_label": ["--unlabeled_loss=pseudo_label"],
  "consistency": ["--unlabeled_loss=consistency"],
  "both": ["--unlabeled_loss=both"],
}
WORKERS = 2


def run(flagfile: str, name: str, seed: int, *settings: str) -> dict[str, float]:
  """Trains and evaluates once, unless it was done; returns the accuracies."""
  print(f"\n{name}, seed {seed}", flush=True)
  data = os.path.abspath(_DATA.value)
  return common.accuracies(
    flagfile,
    directory(name, seed),
    WORKERS,
    f"--train_data={data}/labeled-*",
    f"--test_data={data}/test-*",
    f"--seed={seed}",
    "--pictures=0",
    "--probe_images=0",
    *settings,
  )


def directory(name: str, seed: int) -> str:
  """The directory of a run."""
  return os.path.abspath(os.path.join(_WORK_DIR.value, f"{name}_{seed}"))


def pseudo_labels(seed: int) -> tuple[float, str]:
  """The teacher's clean accuracy, and the pattern of the files that it labelled."""
  teacher = run("fashion_mnist_teacher", "teacher", seed)
  target = directory("pseudo_labels", seed)
  common.python(
    *["-m", "dat_tf.launch", f"--num_workers={WORKERS}", "--", "run_dat.py"],
    f"--flagfile={directory('teacher', seed)}/config.flags",
    "--mode=pseudo_label",
    f"--unlabeled_data={os.path.abspath(_DATA.value)}/unlabeled-*",
    f"--pseudo_label_dir={target}",
  )
  return teacher["standard_accuracy"], f"{target}/unlabeled-*"


def main(argv: list[str]) -> None:
  del argv
  results, teachers = [], []
  for seed in range(_SEEDS.value):
    teacher, pattern = pseudo_labels(seed)
    teachers.append(teacher)
    results.append(
      {
        name: run(
          "fashion_mnist_semi_supervised",
          name,
          seed,
          f"--unlabeled_data={pattern}",
          *settings,
        )
        for name, settings in METHODS.items()
      }
    )
  rows, figures = common.compared(results, "labeled_only")
  figures["teacher_standard_accuracy"] = sum(teachers) / len(teachers)
  print()
  common.report(rows, figures)


if __name__ == "__main__":
  run_script(main)
