"""What training reaches, in accuracy and in time."""

from __future__ import annotations

from typing import Any

from sections.tables import compared, table


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
contrast of optimizers, not an estimate of accuracy. A grid was made
longer (0.05 and 0.02 for SGD, 30 for LARS) when its best rate was seen to stand at an
edge; none does now.

{table(rows)}"""


def semi_supervised(figures: dict[str, Any]) -> str:
  return f"""Fashion-MNIST with the labels of 4,000 images, `flags/
fashion_mnist_semi_supervised.flags`, {figures["seeds"]} seeds, as many steps of as many
images for all. The network that made the pseudo-labels has a clean accuracy of
{figures["teacher_standard_accuracy"]:.1%}. Differences to labelled-only training, seed
by seed, are in points, with Student's 95 % interval.

{compared(figures, "training")}"""


def methods(figures: dict[str, Any]) -> str:
  names = [key.removesuffix("_pgd_50") for key in figures if key.endswith("_pgd_50")]
  count = figures["autoattack_examples"]
  trained_on: dict[str, list[str]] = {}
  columns = {
    "standard_accuracy": "clean",
    "pgd_50": "PGD-50",
    "pgd_50_there": f"PGD-50, {count}",
    "autoattack": f"AutoAttack, {count}",
    "certified_accuracy": "certified",
  }
  rows = []
  for name in names:
    row = {"method": name, "ball": f"{figures[f'{name}_norm']}"}
    row["ball"] += f" {figures[f'{name}_epsilon']:g}"
    for key, column in columns.items():
      value = figures[f"{name}_{key}"]
      row[column] = "" if value is None else f"{value:.1%}"
    row["s/epoch"] = f"{figures[f'{name}_seconds_per_epoch']:.1f}"
    row["time / AT"] = f"{figures[f'{name}_time_over_at']:.2f}"
    seconds = figures[f"{name}_row_seconds"]
    row["row [s]"] = "" if seconds is None else f"{seconds:.0f}"
    rows.append(row)
    trained_on.setdefault(figures[f"{name}_machine"], []).append(name)
  origins = [
    f"{', '.join(trained)} on {machine}" for machine, trained in trained_on.items()
  ]
  return f"""Fashion-MNIST, an eighth of it (7,500 training images), one worker, the
same network (certified training: one without batch-norm) and number of steps (3
epochs), one seed; `flags/methods/METHOD.flags`. PGD-50 on 1,250 test images, and beside
AutoAttack on the first {count} of them. An epoch is 118 steps of 64 images; steps were
timed in turns, as in the last epoch. `row` is all the time that a row took: training
and evaluation, with two starts of the program. `gradalign` is `fgsm_from_image` with a
guard against its collapse; these two and `yopo` train on adversarial images alone.
`crown_ibp` was timed with its linear bounds, which the last fifth of its training does
without.

{table(rows)}

Trained and evaluated: {"; ".join(origins)}."""


def resnet50(figures: dict[str, Any]) -> str:
  return f"""ResNet-50 at 224 x 224 on photographs, `flags/imagenet_dat_pgd.flags` with
{figures["global_batch_size"]} images a step on {figures["num_workers"]} workers: the
loss falls from {figures["first_loss"]:.2f} to {figures["last_loss"]:.2f} in
{figures["steps"]} steps of {figures["seconds_per_step"]:.1f} s; the larger worker took
{figures["peak_memory_gb"]:.1f} GB at its peak."""
