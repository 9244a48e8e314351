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


def stacks(figures: dict[str, Any]) -> str:
  names = [key.removesuffix("_tensorflow") for key in figures if "_tensorflow" in key]
  rows = [
    {
      "TensorFlow": figures[f"{name}_tensorflow"],
      "gradients": {"fp32": "float32", "8bit": "8 bits"}[gradient],
      "clean": f"{figures[f'{key}_standard_accuracy']:.1%}",
      "under PGD-20": f"{figures[f'{key}_robust_accuracy']:.1%}",
      "of the seeds": f"within {100 * figures[f'{key}_robust_spread']:.1f} points",
      "images/s": f"{figures[f'{key}_images_per_second']:.0f}",
      "speed / 2.15": f"{figures[f'{key}_speed']:.2f}",
      "of the turns": f"{figures[f'{key}_speed_lowest']:.2f} to "
      f"{figures[f'{key}_speed_highest']:.2f}",
      "weights after 10 steps": f"{figures[f'{key}_difference']:.1e}",
    }
    for gradient in ("fp32", "8bit")
    for name in names
    for key in (f"{name}_{gradient}",)
  ]
  wheels = [
    {
      "TensorFlow": figures[f"{name}_tensorflow"],
      "Keras": figures[f"{name}_keras"],
      "CUDA": figures[f"{name}_cuda"],
      "cuDNN": figures[f"{name}_cudnn"],
      "built for": figures[f"{name}_gpus"],
    }
    for name in names
  ]
  python = figures[f"{names[0]}_python"]
  return f"""Digits, `flags/digits_dat_pgd.flags`, two local workers, Python {python},
the versions in turns: means of {figures["seeds"]} seeds. `weights after 10 steps` is
the largest difference of any weight from those of the first version with the same seed.
Speeds are medians.

{table(rows)}

What the wheels are built for, as `tf.sysconfig.get_build_info()` says: `sm_XY` is code
for GPUs from X.Y to X.9, `compute_XY` is also PTX for later ones.

{table(wheels)}"""


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


def quantizers(figures: dict[str, Any]) -> str:
  rows = [
    {
      "bits": bits,
      "quantize / copy": f"{figures[f'quantize_ratio_{bits}bit']:.2f}",
      "dequantize / copy": f"{figures[f'dequantize_ratio_{bits}bit']:.2f}",
      "payload / values": f"{figures[f'payload_ratio_{bits}bit']:.4f}",
    }
    for bits in (8, 4, 2)
  ]
  return f"""25.6 M values on one core, buckets of 1,024, beside a plain copy of the
same array in turns ({figures["copy_ms"]:.0f} ms). Medians of the turns.

{table(rows)}"""


def communication(figures: dict[str, Any]) -> str:
  prefix = "time_ratio_tensorflow_"
  rates = [key.removeprefix(prefix) for key in figures if key.startswith(prefix)]
  methods = [
    key.removeprefix("bytes_ratio_") for key in figures if key.startswith("bytes_ratio")
  ]
  sizes = [
    {
      "all-reduce": method,
      "MB sent by each worker": f"{figures[f'megabytes_{method}']:.1f}",
      "bytes / TF": f"{figures[f'bytes_ratio_{method}']:.3f}",
      **{
        f"{rate}: time / TF, / fp32": f"{figures[f'time_ratio_{method}_{rate}']:.2f}"
        f", {figures[f'over_fp32_{method}_{rate}']:.2f}"
        for rate in rates
      },
    }
    for method in methods
  ]

  def milliseconds(key: str) -> str:
    return f"{figures[key]:.0f}" if key in figures else ""

  times = [
    {
      "rate": rate,
      "all-reduce": method,
      **{
        f"{part}, ms": milliseconds(f"{key}_{method}_{rate}")
        for part, key in (
          ("all", "milliseconds"),
          ("encode", "encode"),
          ("wire", "wire"),
          ("decode", "decode"),
        )
      },
    }
    for rate in rates
    for method in methods
  ]
  network, workers = figures["network"], figures["workers"]
  text = f"""The gradient of {network}, {workers} workers, all on this machine's 2
cores, each in a network namespace whose link has the rate in either direction.
`tensorflow` (TF) is tf.distribute's own all-reduce, the gradient in one piece; `fp32`
is ours, in packs; `Nbit` is two-sided. Bytes are those that the interface counted. A
part is the time in which some pack is at it: parts overlap, and what a pack waits for
the network counts as wire.

{table(sizes)}

{table(times)}"""
  if any(key.startswith("step_ratio") for key in figures):
    steps = [
      {
        "all-reduce": method,
        **{
          f"step / TF, {rate}": f"{figures[f'step_ratio_{method}_{rate}']:.2f}"
          for rate in rates
        },
      }
      for method in methods
    ]
    text += f"""

The whole training step (PreActResNet-18, FGSM, 4 images a worker):

{table(steps)}"""
  return text


def full_precision(figures: dict[str, Any]) -> str:
  rows = []
  for key, value in figures.items():
    if key.endswith("_worst"):
      run = key.removesuffix("_worst")
      network, _, below = run.rpartition("_below_")
      network, _, bits = network.rpartition("_")
      rows.append(
        {
          "network": network,
          "bits": bits.removesuffix("bit"),
          "float32 below": below,
          "error, worst tensor": f"{value:.3f}",
          "error, all": f"{figures[f'{run}_whole']:.3f}",
          "bytes / float32": f"{figures[f'{run}_bytes']:.3f}",
        }
      )
  return f"""Relative l2 errors of a quantized adversarial gradient, if tensors of fewer
values than `float32 below` are not quantized. The default is 1,024, a bucket.

{table(rows)}"""


def compared(figures: dict[str, Any], what: str) -> str:
  """The table of methods that were run with the same seeds (`common.compared`)."""
  suffix = "_standard_difference"
  rows = [
    {
      what: method,
      **{
        title: cell
        for kind, name in (("standard", "clean"), ("robust", "under PGD-20"))
        for title, cell in (
          (name, f"{figures[f'{method}_{kind}_accuracy']:.2%}"),
          (
            f"{name}, difference",
            f"{100 * figures[f'{method}_{kind}_difference']:+.2f} ± "
            f"{100 * figures[f'{method}_{kind}_interval']:.2f}",
          ),
        )
      },
    }
    for method in (key.removesuffix(suffix) for key in figures if key.endswith(suffix))
  ]
  return table(rows)


def quantized_accuracy(figures: dict[str, Any]) -> str:
  return f"""Fashion-MNIST, `flags/fashion_mnist_dat_pgd.flags` with {figures["epochs"]}
epochs on {figures["num_workers"]} workers, {figures["seeds"]} seeds. `Nbit` is
two-sided. Differences to fp32, seed by seed, are in points, with Student's 95 %
interval.

{compared(figures, "all-reduce")}"""


def semi_supervised(figures: dict[str, Any]) -> str:
  return f"""Fashion-MNIST with the labels of 4,000 images, `flags/
fashion_mnist_semi_supervised.flags`, {figures["seeds"]} seeds, as many steps of as many
images for all. The network that made the pseudo-labels has a clean accuracy of
{figures["teacher_standard_accuracy"]:.1%}. Differences to labelled-only training, seed
by seed, are in points, with Student's 95 % interval.

{compared(figures, "training")}"""


def input_pipeline(figures: dict[str, Any]) -> str:
  rows = [
    {
      "pipeline": name,
      "images/s": f"{figures[f'{key}_images_per_second']:.0f}",
      "ours / it": f"{figures[ratio]:.2f}" if ratio in figures else "",
    }
    for key, ratio, name in (
      ("ours", "", "ours, from TFRecord files"),
      ("bare", "over_bare_decode", "bare tf.data map, in memory"),
      ("torch", "over_torch_loader", "torchvision DataLoader, Pillow"),
    )
    if f"{key}_images_per_second" in figures
  ]
  return f"""JPEGs of 500 x 375, {figures["jpeg_kb"]:.0f} kB each, are cut, resized to
224 x 224, flipped and batched; {figures["processes"]} cores, or processes of the
DataLoader. Memory of ours, at most: {figures["rss_mb_start"]:.0f} MB in the first tenth
of {figures["rss_images"]:,.0f} images, {figures["rss_mb_end"]:.0f} MB in all.

{table(rows)}"""


def resnet50(figures: dict[str, Any]) -> str:
  return f"""ResNet-50 at 224 x 224 on photographs, `flags/imagenet_dat_pgd.flags` with
{figures["global_batch_size"]} images a step on {figures["num_workers"]} workers: the
loss falls from {figures["first_loss"]:.2f} to {figures["last_loss"]:.2f} in
{figures["steps"]} steps of {figures["seconds_per_step"]:.1f} s; the larger worker took
{figures["peak_memory_gb"]:.1f} GB at its peak."""


def hostile_input(figures: dict[str, Any]) -> str:
  rows = [
    {"inputs that": title, "": f"{figures[key]:,}"}
    for title, key in (
      ("were refused in one line", "refused"),
      ("were taken", "accepted"),
      ("ended in a traceback or by a signal", "tracebacks"),
      ("took more than a minute", "hangs"),
      ("needed more than 1 GiB", "over_memory"),
      ("wrote outside of their folder", "written_outside"),
      ("were taken although they are broken", "accepted_broken"),
    )
  ]
  return f"""\
Archives, records, models, flagfiles, TF_CONFIG and the files of a run, damaged or made
to do harm: {figures["inputs"]:,} inputs, {figures["programs"]} of them through the
programs themselves.

{table(rows)}"""


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


def attacks(figures: dict[str, Any]) -> str:
  peers = {
    "apgd_ce": "APGD-CE",
    "apgd_dlr": "APGD-DLR",
    "apgd_t": "APGD-T",
    "square": "Square",
    "pgd_foolbox": "PGD-40 (Foolbox)",
    "pgd_cleverhans": "PGD-40 (CleverHans)",
    "ddn": "DDN (Foolbox)",
    "deepfool": "DeepFool (Foolbox)",
    "autoattack": "APGD-CE, APGD-T and Square together",
  }
  rows = [
    {
      "attack": title,
      "ours - peer's, points": f"{figures[f'{key}_minus_peer_points']:+.1f}",
    }
    for key, title in peers.items()
    if f"{key}_minus_peer_points" in figures
  ]
  return f"""Robust accuracy that our attacks leave less what others' leave, with the
same budgets on the same network and {figures["images"]:,} images (negative: ours are
stronger; the peers' PGD and APGD return their last point, ours the best). The three of
the last row, one after the other on {figures["timed_images"]} images, took
ours {figures["autoattack_seconds"]:.0f} s and the peer's
{figures["autoattack_peer_seconds"]:.0f} s: {figures["autoattack_speedup"]:.1f} times as
fast ({figures["timed_on"]}).

{table(rows)}{_in_color(figures)}"""


def _in_color(figures: dict[str, Any]) -> str:
  rows = [
    {
      "norm": norm,
      "Square": f"{figures[f'square_{norm}_color']:.1f}%",
      "APGD-CE": f"{figures[f'apgd_ce_{norm}_color']:.1f}%",
    }
    for norm in ("l2", "l1")
    if f"square_{norm}_color" in figures
  ]
  if not rows:
    return ""
  return f"""

Robust accuracy on {figures["color_images"]} images in color, of a small network that
is trained on such images by PGD in l2 ({figures["color_clean_accuracy"]:.1f} % clean):
what random search leaves, and what the gradient does ({figures["color_on"]}).

{table(rows)}"""


SECTIONS = (
  ("Quick start", "quickstart", "benchmarks/quickstart.py", quickstart),
  (
    "Fashion-MNIST, DAT-PGD",
    "fashion_mnist_dat_pgd",
    "benchmarks/experiment.py",
    experiment,
  ),
  ("Python, TensorFlow and Keras", "stacks", "benchmarks/stacks.py", stacks),
  ("Large batches", "large_batch", "benchmarks/large_batch.py", large_batch),
  ("Speed of the trainer", "step_time", "benchmarks/step_time.py", step_time),
  (
    "Communication",
    "communication",
    "benchmarks/communication.py",
    communication,
  ),
  (
    "Quantized gradients",
    "quantized_accuracy",
    "benchmarks/quantized_accuracy.py",
    quantized_accuracy,
  ),
  (
    "Semi-supervised training",
    "semi_supervised",
    "benchmarks/semi_supervised.py",
    semi_supervised,
  ),
  (
    "Input pipeline",
    "input_pipeline",
    "benchmarks/input_pipeline.py",
    input_pipeline,
  ),
  ("Methods", "methods", "benchmarks/methods.py", methods),
  ("Attacks", "attacks", "benchmarks/attacks.py", attacks),
  ("Hostile input", "fuzz", "benchmarks/fuzz.py", hostile_input),
  ("ImageNet's path", "resnet50", "benchmarks/resnet50.py", resnet50),
  (
    "Small tensors",
    "full_precision",
    "benchmarks/full_precision.py",
    full_precision,
  ),
  (
    "The quantizer alone",
    "quantizers",
    "benchmarks/quantizers.py",
    quantizers,
  ),
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
