"""Writes docs/RESULTS.md from docs/results/*.json, which the benchmarks measured.

python docs/make_results.py
"""

from __future__ import annotations

import json
import pathlib
from typing import Any, Optional

from tabulate import tabulate

DOCS = pathlib.Path(__file__).resolve().parent

HEAD = """# Results

Written by `python docs/make_results.py` from `docs/results/*.json`, never by hand. Each
section names the script that measured its figures; its head says how.
"""


def load(name: str) -> Optional[dict[str, Any]]:
  """The figures of a benchmark, or None if it was not run."""
  path = DOCS / "results" / f"{name}.json"
  return json.loads(path.read_text()) if path.exists() else None


def table(rows: list[dict[str, Any]]) -> str:
  return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def quickstart(figures: dict[str, Any]) -> str:
  rows = [
    {
      "training": title,
      "clean accuracy": f"{figures[f'{key}_standard_accuracy']:.1%}",
      "under PGD-20": f"{figures[f'{key}_robust_accuracy']:.1%}",
    }
    for key, title in (("dat", "adversarial (DAT-PGD)"), ("clean", "clean"))
  ]
  return f"""\
Digits, 8 x 8 pixels, l-infinity, epsilon 0.2, two local workers, 360 test images.
Means of {figures["seeds"]} seeds; the lowest robust accuracy of DAT-PGD is
{figures["dat_robust_accuracy_lowest"]:.1%}. Both trainings with their evaluations took
{figures["seconds"]:.0f} s a seed.

{table(rows)}"""


def experiment(figures: dict[str, Any]) -> str:
  rows = [
    {"figure": "clean accuracy", "value": f"{figures['standard_accuracy']:.1%}"},
    {
      "figure": "accuracy under PGD-20",
      "value": f"{figures['robust_accuracy_pgd-20']:.1%}",
    },
    {"figure": "test images", "value": figures["test_examples"]},
    {"figure": "workers", "value": figures["num_workers"]},
    {"figure": "epochs", "value": figures["epochs"]},
    {"figure": "global batch", "value": figures["global_batch_size"]},
    {"figure": "weights", "value": f"{figures['parameters']:,}"},
    {"figure": "training, seconds", "value": f"{figures['train_seconds']:.0f}"},
    {"figure": "images/s", "value": f"{figures['examples_per_second']:.0f}"},
    {
      "figure": "bytes sent by each worker and step",
      "value": f"{figures['bytes_sent_per_step']:,}",
    },
  ]
  return f"""`flags/{figures["experiment"]}.flags`, one seed.

{table(rows)}"""


def large_batch(figures: dict[str, Any]) -> str:
  rows = []
  for key, value in figures.items():
    if key.endswith("_standard_accuracy"):
      run = key.removesuffix("_standard_accuracy")
      optimizer, rate = run.split("_")
      best = float(rate) == figures[f"{optimizer}_best_learning_rate"]
      rows.append(
        {
          "optimizer": optimizer.upper(),
          "learning rate": rate,
          "clean accuracy": f"{value:.1%}",
          "under PGD-20": f"{figures[f'{run}_robust_accuracy']:.1%}",
          "best of its grid": "yes" if best else "",
        }
      )
  batch, workers = figures["global_batch_size"], figures["num_workers"]
  return f"""Fashion-MNIST, l-infinity, epsilon 0.1, global batch {batch:,} on {workers}
workers, {figures["epochs"]} epochs, FGSM with a random start in training, one seed. The
best of a grid is that of the highest accuracy under PGD-20, on the test images: a
contrast of optimizers, not an estimate of accuracy. The grids of SGD and LARS got a
fourth rate (0.05; 30) after their best of three was seen to stand at an edge; SGD's
best still does.

{table(rows)}"""


def step_time(figures: dict[str, Any]) -> str:
  rows = [
    {
      "network": title,
      "trainer, images/s": f"{figures[f'trainer{key}_images_per_second']:.1f}",
      "bare loop, images/s": f"{figures[f'bare{key}_images_per_second']:.1f}",
      "trainer / bare": f"{figures[f'trainer_over_bare{key}']:.3f}",
      "of the turns": f"{figures[f'lowest_ratio{key}']:.3f} to "
      f"{figures[f'highest_ratio{key}']:.3f}",
    }
    for key, title in (
      ("", "PreActResNet-18, 32 x 32 x 3, batch 32"),
      ("_small", "small CNN, 28 x 28 x 1, batch 128"),
    )
  ]
  return f"""PGD-10 training steps, one process, in turns. The ratio is the median
of the turns' own ratios, the speeds are medians by themselves: they differ where the
machine was noisy.

{table(rows)}"""


SECTIONS = (
  ("Quick start", "quickstart", "benchmarks/quickstart.py", quickstart),
  (
    "Fashion-MNIST, DAT-PGD",
    "fashion_mnist_dat_pgd",
    "benchmarks/experiment.py",
    experiment,
  ),
  ("Large batches", "large_batch", "benchmarks/large_batch.py", large_batch),
  ("Speed of the trainer", "step_time", "benchmarks/step_time.py", step_time),
)


def main() -> None:
  parts = [HEAD]
  for title, name, script, write in SECTIONS:
    figures = load(name)
    if figures is not None:
      parts.append(f"## {title}\n")
      parts.append(f"{write(figures)}\n")
      parts.append(f"Measured by `{script}` on: {figures['machine']}.\n")
  (DOCS / "RESULTS.md").write_text("\n".join(parts))


if __name__ == "__main__":
  main()
