"""Stacks, the trainer and the input pipeline beside others."""

from __future__ import annotations

from typing import Any

from sections.tables import table


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
  parts = [
    {
      "TensorFlow": figures[f"{name}_tensorflow"],
      "attack, 8 x 8": f"{figures[f'{name}_attack_ms']:.1f} ms",
      "attack, 28 x 28": f"{figures[f'{name}_large_attack_ms']:.1f} ms",
      "first convolution": f"{figures[f'{name}_first_convolution_ms']:.2f} ms",
      "an operation": f"{figures[f'{name}_operation_us']:.2f} us",
      "reduction, float32": f"{figures[f'{name}_fp32_reduction_ms']:.1f} ms",
      "8 bits": f"{figures[f'{name}_8bit_reduction_ms']:.1f} ms",
      "of it on the way": f"{figures[f'{name}_8bit_wire_ms']:.1f} ms",
    }
    for name in names
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

Where a difference comes from: in one process of one core, as each worker has, the
versions in turns, PGD-10 alone on small_cnn, of 32 images of 8 x 8 pixels and of 128 of
28 x 28; the first convolution of the latter, of one channel; and a thousand sines of
one number each, which are TensorFlow's own work for an operation. Between two workers
on this host, the reduction of that network's gradient. Medians of three turns
({figures["operations_machine"]}).

{table(parts)}

An operation costs the same on all. What newer versions lose on images of one channel is
in the first convolution, for which oneDNN takes another kernel there
(`ONEDNN_VERBOSE=1` names it); the latest also loses in its collectives over gRPC, which
count where steps are as short as these.

What the wheels are built for, as `tf.sysconfig.get_build_info()` says: `sm_XY` is code
for GPUs from X.Y to X.9, `compute_XY` is also PTX for later ones.

{table(wheels)}"""


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


def goodput(figures: dict[str, Any]) -> str:
  parts = []
  if "checkpoint_overhead" in figures:
    rows = [
      {
        "each 50 steps": title,
        "costs": f"{figures[f'{name}_overhead']:.1%}",
        "of the turns": f"{figures[f'lowest_{name}_overhead']:.1%} to "
        f"{figures[f'highest_{name}_overhead']:.1%}",
      }
      for name, title in (
        ("checkpoint", "a checkpoint"),
        ("verify", "a comparison of all weights"),
      )
    ]
    parts.append(f"""Time of a step beside that without, small CNN, Fashion-MNIST,
PGD-10, {figures["turns"]} turns. Writing a checkpoint of
{figures["checkpoint_bytes"] / 1e6:.1f} MB takes {figures["checkpoint_seconds"]:.2f} s,
while training goes on. What is below the noise of the turns may be negative.

{table(rows)}

On: {figures["cost_machine"]}.""")
  if "goodput" in figures:
    parts.append(f"""{figures["faults"]} times in {figures["minutes"]:g} minutes one of
{figures["num_workers"]} workers was killed, and the launcher started all again: the
goodput was {figures["goodput"]:.1%}. From a kill to the end of the next step it took
{figures["recovery_seconds"]:.1f} s, the median, and
{figures["longest_recovery_seconds"]:.1f} s at most.

On: {figures["faults_machine"]}.""")
  return "\n\n".join(parts)
