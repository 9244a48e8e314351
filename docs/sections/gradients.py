"""Quantized gradients: their errors, their bytes and what they cost."""

from __future__ import annotations

from typing import Any

from sections.tables import compared, table


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


def quantized_accuracy(figures: dict[str, Any]) -> str:
  return f"""Fashion-MNIST, `flags/fashion_mnist_dat_pgd.flags` with {figures["epochs"]}
epochs on {figures["num_workers"]} workers, {figures["seeds"]} seeds. `Nbit` is
two-sided. Differences to fp32, seed by seed, are in points, with Student's 95 %
interval.

{compared(figures, "all-reduce")}"""


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
