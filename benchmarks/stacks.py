"""The same runs on TensorFlow 2.15, 2.18 and 2.21, in turns.

    python benchmarks/stacks.py --python=python3.11 --json=docs/results/stacks.json

Makes an environment of each (`make install STACK=...`), all with one Python, so that
nothing but TensorFlow and Keras differs: it must be one that all three serve, 3.9 to
3.11. Trains with flags/digits_dat_pgd.flags on two local workers, with float32
gradients and with 8 bits, for each seed on one version after the other; then once for
ten steps alone.

JSON keys, of each version V (2.15, 2.18, 2.21) and gradient G (fp32, 8bit):
  V_G_standard_accuracy, V_G_robust_accuracy   means over the seeds, 0 to 1
  V_G_robust_spread            largest less smallest robust accuracy of the seeds
  V_G_images_per_second        median of the seeds
  V_G_speed                    images/s over those of 2.15 at the same turn, the median
  V_G_speed_lowest, V_G_speed_highest   of the turns
  V_G_difference               largest difference of any weight from 2.15's, 10 steps
  V_tensorflow, V_keras, V_python       whole versions
  V_cuda, V_cudnn, V_gpus      what the wheel is built for: sm_XY has code for GPUs
                               from X.Y to X.9, compute_XY also PTX for later ones
  seeds                        how many there were
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from typing import Any

import common
import numpy as np
from absl import flags

from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

_PYTHON = flags.DEFINE_string("python", "python3.11", "Interpreter, 3.9 to 3.11.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one after the other.")

STACKS = {"2.15": "", "2.18": "2.18", "2.21": "2.21"}  # make's STACK
GRADIENTS = {"fp32": ["--all_reduce=fp32"], "8bit": ["--all_reduce=two_sided"]}

_ABOUT = """
import json
from dat_tf.base import stack
import tensorflow as tf
built = tf.sysconfig.get_build_info()
print(json.dumps({
  **{name: stack.versions()[name] for name in ("tensorflow", "keras", "python")},
  "cuda": built["cuda_version"],
  "cudnn": built["cudnn_version"],
  "gpus": " ".join(built["cuda_compute_capabilities"]),
}))
"""


def install(name: str) -> str:
  """Makes the environment of a stack, unless it is there; returns its Python."""
  folder = ".venv" + (f"-{name}" if name else "")
  command = ["make", "install", f"STACK={name}", f"PYTHON={_PYTHON.value}"]
  subprocess.run(command, cwd=common.ROOT, check=True)
  return os.path.join(common.ROOT, folder, "bin", "python")


def about(python: str) -> dict[str, str]:
  command = [python, "-c", _ABOUT]
  text = subprocess.check_output(
    command, cwd=common.ROOT, text=True, stderr=subprocess.DEVNULL
  )
  return json.loads(text.splitlines()[-1])


def weights(model_dir: str) -> dict[str, np.ndarray]:
  """The exported classifier's, by their keys in the checkpoint."""
  path = os.path.join(model_dir, "export", "variables", "variables")
  reader = tf.train.load_checkpoint(path)
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if name.startswith("layer_with_weights")
  }


def train(
  python: str, data: str, gradient: str, seed: str, *settings: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Trains and evaluates; returns results.json and the weights."""
  with tempfile.TemporaryDirectory() as folder:
    model_dir = os.path.join(folder, "run")
    results = common.train_and_evaluate(
      "digits_dat_pgd",
      model_dir,
      2,
      f"--seed={seed}",
      *GRADIENTS[gradient],
      *common.records(data),
      *settings,
      interpreter=python,
    )
    return results, weights(model_dir)


def measure(pythons: dict[str, str], data: str, gradient: str) -> dict[str, Any]:
  """The figures of one form of gradients, in turns; keys lack the gradient's name."""
  runs: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
  for seed in _SEEDS.value:
    for name, python in pythons.items():
      print(f"\nTensorFlow {name}, {gradient}, seed {seed}", flush=True)
      runs[name].append(train(python, data, gradient, seed)[0])
  # 1,437 images: ten steps an epoch.
  ten = ["--epochs=1", "--global_batch_size=144", "--warmup_epochs=0", "--mode=train"]
  after_ten = {
    name: train(python, data, gradient, "0", *ten)[1]
    for name, python in pythons.items()
  }
  figures: dict[str, Any] = {}
  reference = after_ten["2.15"]
  for name, results in runs.items():
    robust = [each["robust_accuracy"]["pgd-20"] for each in results]
    speeds = np.array([each["examples_per_second"] for each in results])
    ratios = speeds / [each["examples_per_second"] for each in runs["2.15"]]
    assert after_ten[name].keys() == reference.keys()
    figures[name] = {
      "standard_accuracy": np.mean([each["standard_accuracy"] for each in results]),
      "robust_accuracy": np.mean(robust),
      "robust_spread": max(robust) - min(robust),
      "images_per_second": float(np.median(speeds)),
      "speed": float(np.median(ratios)),
      "speed_lowest": ratios.min(),
      "speed_highest": ratios.max(),
      "difference": max(
        float(np.abs(values - after_ten[name][key]).max())
        for key, values in reference.items()
      ),
    }
  return figures


def main(argv: list[str]) -> None:
  del argv
  pythons = {name: install(stack) for name, stack in STACKS.items()}
  figures: dict[str, Any] = {
    f"{name}_{key}": value
    for name, python in pythons.items()
    for key, value in about(python).items()
  }
  rows = []
  with tempfile.TemporaryDirectory() as data:
    common.python("tfrecords/build_digits.py", f"--output_dir={data}")
    for gradient in GRADIENTS:
      for name, found in measure(pythons, data, gradient).items():
        rows.append({"TensorFlow": name, "gradients": gradient, **found})
        figures.update({f"{name}_{gradient}_{k}": v for k, v in found.items()})
  figures["seeds"] = len(_SEEDS.value)
  common.report(rows, figures)


if __name__ == "__main__":
  run_script(main)
