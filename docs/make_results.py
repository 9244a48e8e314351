"""Writes docs/RESULTS.md from docs/results/*.json, which the benchmarks measured.

python docs/make_results.py
"""

from __future__ import annotations

import json
import pathlib
from typing import Any, Optional

from sections import gradients, peers, robustness, speed, training

DOCS = pathlib.Path(__file__).resolve().parent

HEAD = """# Results

Written by `python docs/make_results.py` from `docs/results/*.json`, never by hand. Each
section names the script that measured its figures; its head says how.
"""


def load(name: str) -> Optional[dict[str, Any]]:
  """The figures of a benchmark, or None if it was not run."""
  path = DOCS / "results" / f"{name}.json"
  return json.loads(path.read_text()) if path.exists() else None


# Title, name of the figures, what measures them, what writes the section.
SECTIONS = (
  ("Quick start", "quickstart", "benchmarks/quickstart.py", training.quickstart),
  (
    "Fashion-MNIST, DAT-PGD",
    "fashion_mnist_dat_pgd",
    "benchmarks/experiment.py",
    training.experiment,
  ),
  ("Python, TensorFlow and Keras", "stacks", "benchmarks/stacks.py", speed.stacks),
  ("Large batches", "large_batch", "benchmarks/large_batch.py", training.large_batch),
  ("Speed of the trainer", "step_time", "benchmarks/step_time.py", speed.step_time),
  ("Survival", "goodput", "benchmarks/goodput.py", speed.goodput),
  ("Other libraries", "peers", "benchmarks/peers.py", peers.peers),
  (
    "Communication",
    "communication",
    "benchmarks/communication.py",
    gradients.communication,
  ),
  (
    "Quantized gradients",
    "quantized_accuracy",
    "benchmarks/quantized_accuracy.py",
    gradients.quantized_accuracy,
  ),
  (
    "Semi-supervised training",
    "semi_supervised",
    "benchmarks/semi_supervised.py",
    training.semi_supervised,
  ),
  (
    "Input pipeline",
    "input_pipeline",
    "benchmarks/input_pipeline.py",
    speed.input_pipeline,
  ),
  ("Methods", "methods", "benchmarks/methods.py", training.methods),
  ("Attacks", "attacks", "benchmarks/attacks.py", robustness.attacks),
  ("Hostile input", "fuzz", "benchmarks/fuzz.py", robustness.hostile_input),
  ("ImageNet's path", "resnet50", "benchmarks/resnet50.py", training.resnet50),
  (
    "Small tensors",
    "full_precision",
    "benchmarks/full_precision.py",
    gradients.full_precision,
  ),
  (
    "The quantizer alone",
    "quantizers",
    "benchmarks/quantizers.py",
    gradients.quantizers,
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
