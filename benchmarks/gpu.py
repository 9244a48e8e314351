"""One GPU, ready: what training, attacks and the quantizer cost there, in 9 minutes.

    pip install '.[quickstart,gpu]'
    python benchmarks/gpu.py --json=gpu.json

**No GPU was available to run this.** Only --tiny was run, on CPUs: the same parts with
small networks, which takes a few minutes and whose figures say nothing.

Each part runs in a process of its own for a limited time, on the first GPU. What it has
measured by then counts. A crash, a lack of memory, an exception or the end of its time
is written down as its error, and the next part begins. A part whose turn comes after
--minutes is left out; a longer --minutes gives each part as much more. The last parts
are those that tell least.

Training is PGD-10, clean weight 1, on PreActResNet-18, 32 x 32 x 3. The trainer is what
run_dat.py runs, as in benchmarks/loops.py. The bare loop is a hand-written
`tf.function` over batches in memory, on the same view. Both take LAMB. PyTorch's loop
has the same network and attack, runs eagerly in channels-last form, and takes AdamW,
since PyTorch has no LAMB. It is left out where `import torch` fails.

JSON keys, by PART: about, train_PRECISION, quantizer, torch, resnet50, autoattack,
all_reduce:
  PART_seconds         how long the part took, its start included
  PART_error           why it ended before its end, in a line; also CASE_error, where
                       only that case of a part failed
  PART_skipped         why it did not begin
by CASE: PRECISION_VIEW or PRECISION_VIEW_xla, where PRECISION is tf32 (what TensorFlow
does by default, on GPUs that have it), float32, bfloat16 (of the attack alone) or mixed
(bfloat16 in all layers); VIEW is folded (batch-norm within the layers before it) or
plain; xla is --jit_compile. float32 and bfloat16 are always folded, mixed always plain:
  trainer_CASE_images_per_second, bare_CASE_images_per_second   medians of the turns
  trainer_over_bare_CASE              median over the turns of the ratio
  trainer_CASE_peak_gb, bare_CASE_peak_gb     most memory in use at once, 10^9 bytes
  trainer_CASE_start_seconds, bare_CASE_start_seconds   graph, compilation, two steps
  torch_PRECISION_images_per_second, torch_PRECISION_peak_gb    the same of PyTorch
  resnet50_CASE_images_per_second, resnet50_CASE_peak_gb   the training step on images
                       in memory: ResNet-50, 224 x 224, PGD-4
  resnet50_CASE_start_seconds
  batch, resnet50_batch                       images a step
  autoattack_suite_seconds   AutoAttack's standard suite in l-infinity on the network
                       of training. It is made such that no image is broken, so that
                       each goes through all attacks. Graphs are built in this time.
  autoattack_NAME_seconds                     the same of each of its attacks
  autoattack_images, autoattack_robust_accuracy   how many; 1 if none was broken
  autoattack_peak_gb
  quantize_ms_Nbit, dequantize_ms_Nbit        the two-sided quantizer on as many values
                       as ResNet-50 has, N = 8, 4 and 2
  quantizer_copy_ms, quantizer_values         adding 1 to them; how many
  all_reduce_ms        a float32 all-reduce of as many values over all GPUs by NCCL
  all_reduce_gb_per_second   its 2 (R - 1) / R of the bytes over that time, in 10^9
  all_reduce_values, all_reduce_replicas      how many; R
  gpu, gpus, compute_capability, nvidia_smi, tensorflow   what it ran on
  torch                PyTorch's version
  tiny                 whether it was --tiny
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import common
from absl import flags

from dat_tf.base.errors import UserError
from dat_tf.program.startup import run_script

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How much is measured; the parts' own processes get it as JSON.

  Attributes:
    model: that is trained and attacked, on `image` x `image` x 3.
    batch: images a step.
    attack_steps: K of PGD in training.
    turns: of each loop.
    turn_seconds: how long a turn lasts, roughly.
    deep_model: that of the part `resnet50`, on `deep_image` x `deep_image` x 3.
    deep_batch: its images a step.
    attacked: images for AutoAttack.
    values: for quantizer and all-reduce.
  """

  model: str = "preact_resnet18"
  image: int = 32
  batch: int = 512
  attack_steps: int = 10
  turns: int = 3
  turn_seconds: float = 2.0
  deep_model: str = "imagenet_resnet50"
  deep_image: int = 224
  deep_batch: int = 64
  attacked: int = 64
  values: int = 25_600_000


TINY = Sizes(
  model="gpu:tiny_network",
  image=8,
  batch=8,
  attack_steps=1,
  turns=1,
  turn_seconds=0.1,
  deep_model="gpu:tiny_network",
  deep_image=16,
  deep_batch=4,
  attacked=4,
  values=100_000,
)

# In the order in which they run: the longest that each may take, in seconds, of the
# usual nine minutes.
_USUAL_MINUTES = 9.0
PARTS = {
  "about": 40,
  "train_tf32": 130,
  "quantizer": 40,
  "torch": 60,
  "train_bfloat16": 90,
  "resnet50": 100,
  "autoattack": 90,
  "all_reduce": 40,
  "train_mixed": 90,
  "train_float32": 130,
}
# Those that see more GPUs than the first.
_ON_ALL_GPUS = {"about", "all_reduce"}

_TINY = flags.DEFINE_boolean("tiny", False, "The same parts on CPUs, small.")
_MINUTES = flags.DEFINE_float(
  "minutes", _USUAL_MINUTES, "What all takes at most.", lower_bound=0
)
_PARTS = flags.DEFINE_list("parts", list(PARTS), "Those that are run.")
_BATCH = flags.DEFINE_integer("batch", None, "Images a step.", lower_bound=1)
_DEEP_BATCH = flags.DEFINE_integer(
  "resnet50_batch", None, "Images a step of ResNet-50.", lower_bound=1
)
_TORCH_PYTHON = flags.DEFINE_string(
  "torch_python", sys.executable, "The Python interpreter that has torch."
)


def tiny_network(image_shape: Sequence[int], num_classes: int) -> Any:
  """The network of --tiny, as `make_model` takes it."""
  from dat_tf.compat import keras

  layers = keras.layers
  inputs = keras.Input(image_shape)
  x = layers.Conv2D(4, 3, use_bias=False)(inputs)
  x = layers.ReLU()(layers.BatchNormalization()(x))
  x = layers.GlobalAveragePooling2D()(x)
  return keras.Model(inputs, layers.Dense(num_classes)(x))


def outcome(
  part: str, command: Sequence[str], seconds: float, environment: Mapping[str, str]
) -> dict[str, Any]:
  """Runs a part in a process of its own, whatever becomes of it.

  Args:
    part: its name.
    command: prints a JSON object a line, as soon as it has measured something.
    seconds: after which it is killed, with all processes that it has started.
    environment: its environment variables.

  Returns:
    What it printed, `PART_seconds`, and `PART_error` if it did not come to its end.
  """
  started = time.monotonic()
  with contextlib.ExitStack() as stack:
    stdout, stderr = (
      stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
      for _ in range(2)
    )
    process = subprocess.Popen(
      command, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
    )
    try:
      why = _ending(process.wait(seconds))
    except subprocess.TimeoutExpired:
      why = f"was not done after {seconds:.0f} s"
    finally:
      # It may have left processes, such as the trial of bfloat16.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    figures = _figures(stdout)
    stderr.seek(0)
    last = [line.strip() for line in stderr if line.strip()][-1:]
  figures[f"{part}_seconds"] = round(time.monotonic() - started, 1)
  if why:
    # What the part itself says of its end is better than what its end looks like.
    figures.setdefault(f"{part}_error", ": ".join([why, *last])[:500])
  return figures


def _ending(code: int) -> str:
  """What an exit code says; nothing of 0."""
  if code < 0:
    with contextlib.suppress(ValueError):
      return f"killed by {signal.Signals(-code).name}"
  return f"exit code {code}" if code else ""


def _figures(stdout: Any) -> dict[str, Any]:
  """The JSON objects among the lines, as one."""
  figures: dict[str, Any] = {}
  stdout.seek(0)
  for line in stdout:
    # A killed process may leave half a line.
    with contextlib.suppress(ValueError):
      found = json.loads(line)
      if isinstance(found, dict):
        figures.update(found)
  return figures


def environment_of(part: str) -> dict[str, str]:
  """The environment variables of a part's process."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
  if _TINY.value:
    visible = "-1"
  elif part not in _ON_ALL_GPUS:
    visible = visible.split(",")[0] or "0"
  environment = {"TF_CPP_MIN_LOG_LEVEL": "1", **os.environ}
  return {**environment, "CUDA_VISIBLE_DEVICES": visible} if visible else environment


def command_of(part: str, sizes: Sizes) -> list[str]:
  python, script = sys.executable, "gpu_parts.py"
  if part == "torch":
    python, script = _TORCH_PYTHON.value, "torch_loop.py"
  script = os.path.join(HERE, script)
  return [python, script, part, json.dumps(dataclasses.asdict(sizes))]


def sizes_asked_for() -> Sizes:
  sizes = TINY if _TINY.value else Sizes()
  if _BATCH.value:
    sizes = dataclasses.replace(sizes, batch=_BATCH.value)
  if _DEEP_BATCH.value:
    sizes = dataclasses.replace(sizes, deep_batch=_DEEP_BATCH.value)
  return sizes


def main(argv: list[str]) -> None:
  del argv
  unknown = set(_PARTS.value) - set(PARTS)
  if unknown:
    raise UserError(
      f"--parts: there is no {min(unknown)}; there are {', '.join(PARTS)}."
    )
  sizes = sizes_asked_for()
  figures: dict[str, Any] = {
    "tiny": _TINY.value,
    "batch": sizes.batch,
    "resnet50_batch": sizes.deep_batch,
  }
  end = time.monotonic() + 60 * _MINUTES.value
  for part in (name for name in PARTS if name in _PARTS.value):
    left = end - time.monotonic()
    if left <= 0:
      figures[f"{part}_skipped"] = f"the {_MINUTES.value:g} minutes were over"
      continue
    print(part, end=" ", flush=True)
    limit = min(PARTS[part] * _MINUTES.value / _USUAL_MINUTES, left)
    found = outcome(part, command_of(part, sizes), limit, environment_of(part))
    print(f"{found[f'{part}_seconds']:.0f} s", flush=True)
    figures.update(found)
    if figures.get("gpus") == 0 and not _TINY.value:
      raise UserError("TensorFlow sees no GPU here; --tiny tries all parts on CPUs.")
    common.write(figures)  # in case that this process is killed
  common.report([{"figure": k, "value": v} for k, v in figures.items()], figures)


if __name__ == "__main__":
  run_script(main)
