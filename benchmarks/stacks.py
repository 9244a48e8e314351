"""The same runs on TensorFlow 2.15, 2.18 and 2.21, in turns.

    python benchmarks/stacks.py --python=python3.11 --json=docs/results/stacks.json

Makes an environment of each (`make install STACK=...`), all with one Python, so that
nothing but TensorFlow and Keras differs: it must be one that all three serve, 3.9 to
3.11. Trains with flags/digits_dat_pgd.flags on two local workers, with float32
gradients and with 8 bits, for each seed on one version after the other; then once for
ten steps alone.

To tell where a difference of speed comes from, it also times in a single process of one
core, as each of the workers has, in turns: the attack alone; the first convolution of
that network, whose images have one channel; and a thousand sines of one number each,
which cost nearly nothing but TensorFlow's own work for an operation. And it times the
reduction of small_cnn's gradient between two workers (benchmarks/communication.py).
--parts=operations does only that.

JSON keys, of each version V (2.15, 2.18, 2.21) and gradient G (fp32, 8bit):
  V_G_standard_accuracy, V_G_robust_accuracy   means over the seeds, 0 to 1
  V_G_robust_spread            largest less smallest robust accuracy of the seeds
  V_G_images_per_second        median of the seeds
  V_G_speed                    images/s over those of 2.15 at the same turn, the median
  V_G_speed_lowest, V_G_speed_highest   of the turns
  V_G_difference               largest difference of any weight from 2.15's, 10 steps
  V_attack_ms                  PGD-10 alone, small_cnn, 32 images of 8 x 8 x 1
  V_large_attack_ms            the same, 128 images of 28 x 28 x 1
  V_first_convolution_ms       forward, of the latter images
  V_operation_us               one of the thousand sines
  V_G_reduction_ms             from the gradients to their mean, on loopback
  V_8bit_encode_ms, V_8bit_wire_ms, V_8bit_decode_ms   its parts, which overlap
  operations_machine           where these were measured
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
import tqdm
from absl import flags

from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

_PYTHON = flags.DEFINE_string("python", "python3.11", "Interpreter, 3.9 to 3.11.")
_PARTS = flags.DEFINE_list("parts", ["operations", "runs"], "What is timed.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one after the other.")

OPERATIONS = (
  "attack_ms",
  "large_attack_ms",
  "first_convolution_ms",
  "operation_us",
  "fp32_reduction_ms",
  "8bit_reduction_ms",
  "8bit_wire_ms",
)
_TURNS = 3
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

_TIMED = """
import json, os, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import tensorflow as tf
from dat_tf.attacks import PGD, LInfinity
from dat_tf.base import hashing
from dat_tf.models import make_model
from dat_tf.models.view import inference_view

@tf.function
def sines(x):
  for _ in range(1000):
    x = tf.sin(x)
  return x

def attack_of(size, batch):
  model = make_model("small_cnn", (size, size, 1), 10)
  view, attack = inference_view(model), PGD(LInfinity(0.2), step_size=0.05, steps=10)
  images = tf.random.stateless_uniform([batch, size, size, 1], [0, 0])
  labels, keys = tf.range(batch) % 10, hashing.stream_keys(0, tf.range(batch))
  return tf.function(lambda: attack(view(), images, labels, keys))

@tf.function
def convolutions(images, kernel):
  # Ten times, so that what surrounds a call does not count.
  outcome = [tf.nn.conv2d(images + i, kernel, 1, "SAME")[0, 0, 0, 0] for i in range(10)]
  return tf.stack(outcome)

@tf.function
def no_convolutions(images):
  return tf.stack([(images + i)[0, 0, 0, 0] for i in range(10)])

def milliseconds(call, times):
  call()
  started = time.perf_counter()
  for _ in range(times):
    result = call()
  result.numpy()
  return 1000 * (time.perf_counter() - started) / times

images = tf.random.stateless_uniform([128, 28, 28, 1], [0, 0])
kernel = tf.random.stateless_uniform([3, 3, 1, 16], [0, 0])
convolving = milliseconds(lambda: convolutions(images, kernel), 20)
print(json.dumps({
  "first_convolution_ms": (
    convolving - milliseconds(lambda: no_convolutions(images), 20)
  ) / 10,
  "attack_ms": milliseconds(attack_of(8, 32), 100),
  "large_attack_ms": milliseconds(attack_of(28, 128), 10),
  "operation_us": milliseconds(lambda: sines(tf.ones([])), 100),
}))
"""


def install(name: str) -> str:
  """Makes the environment of a stack, unless it is there; returns its Python."""
  folder = ".venv" + (f"-{name}" if name else "")
  command = ["make", "install", f"STACK={name}", f"PYTHON={_PYTHON.value}"]
  subprocess.run(command, cwd=common.ROOT, check=True)
  return os.path.join(common.ROOT, folder, "bin", "python")


def told(python: str, script: str) -> dict[str, Any]:
  """What a script prints on its last line."""
  command = [python, "-c", script]
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


def reduction(python: str) -> dict[str, float]:
  """What the reduction costs, by benchmarks/communication.py."""
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "figures.json")
    common.python(
      "benchmarks/communication.py",
      "--num_workers=2",
      "--network=small_cnn",
      "--rates=loopback",
      "--method=8bit",
      f"--json={path}",
      interpreter=python,
    )
    with open(path, encoding="utf-8") as file:
      found = json.load(file)
  return {
    "fp32_reduction_ms": found["milliseconds_fp32_loopback"],
    "8bit_reduction_ms": found["milliseconds_8bit_loopback"],
    **{
      f"8bit_{part}_ms": found[f"{part}_8bit_loopback"]
      for part in ("encode", "wire", "decode")
    },
  }


def operations(pythons: dict[str, str]) -> dict[str, Any]:
  """Figures of what `_TIMED` and `reduction` time, medians of the turns."""
  turns: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
  for _ in tqdm.trange(_TURNS, desc="operations"):
    for name, python in pythons.items():
      turns[name].append(told(python, _TIMED) | reduction(python))
  figures: dict[str, Any] = {"operations_machine": common.machine()}
  for name, found in turns.items():
    for key in found[0]:
      figures[f"{name}_{key}"] = float(np.median([each[key] for each in found]))
  return figures


def runs(pythons: dict[str, str], rows: list[dict[str, Any]]) -> dict[str, Any]:
  """Figures of the runs; adds the table's rows."""
  figures: dict[str, Any] = {"seeds": len(_SEEDS.value), "machine": common.machine()}
  with tempfile.TemporaryDirectory() as data:
    common.python("tfrecords/build_digits.py", f"--output_dir={data}")
    for gradient in GRADIENTS:
      for name, found in measure(pythons, data, gradient).items():
        rows.append({"TensorFlow": name, "gradients": gradient, **found})
        figures.update({f"{name}_{gradient}_{k}": v for k, v in found.items()})
  return figures


def main(argv: list[str]) -> None:
  del argv
  pythons = {name: install(stack) for name, stack in STACKS.items()}
  figures = common.figures_there()
  for name, python in pythons.items():
    figures |= {f"{name}_{key}": value for key, value in told(python, _ABOUT).items()}
  rows: list[dict[str, Any]] = []
  if "operations" in _PARTS.value:
    figures |= operations(pythons)
    rows = [
      {"TensorFlow": name, **{key: figures[f"{name}_{key}"] for key in OPERATIONS}}
      for name in pythons
    ]
    common.report(rows, figures)
  if "runs" in _PARTS.value:
    rows = []
    figures |= runs(pythons, rows)
    common.report(rows, figures)


if __name__ == "__main__":
  run_script(main)
