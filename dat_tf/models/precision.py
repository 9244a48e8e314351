"""Whether this machine computes in bfloat16, and whether that is faster.

On processors without such instructions bfloat16 is slow, and on a few it ends the
process with an illegal instruction. So it is tried first, in a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from dat_tf.compat import quiet

with quiet():
  import tensorflow as tf

from dat_tf.models.registry import make_model
from dat_tf.models.view import inference_view

# As Linux names them in /proc/cpuinfo, on x86 and on ARM.
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
_COMPUTE_CAPABILITY = (8, 0)
_TURNS = 7


def is_native() -> bool:
  """Whether all GPUs, or the processor if there are none, have bfloat16 instructions.

  GPUs have them from compute capability 8.0 on.
  """
  gpus = tf.config.list_physical_devices("GPU")
  if gpus:
    details = map(tf.config.experimental.get_device_details, gpus)
    return all(
      each.get("compute_capability", (0, 0)) >= _COMPUTE_CAPABILITY for each in details
    )
  return bool(_INSTRUCTIONS & _processor_flags())


def _processor_flags() -> set[str]:
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      lines = [line.partition(":") for line in file]
  except OSError:  # another system than Linux
    return set()
  found = (text for name, _, text in lines if name.strip() in ("flags", "Features"))
  return set(next(found, "").split())


class NoBfloat16Error(Exception):
  """This machine does not compute in bfloat16; the text says why."""


def speedup(
  name: str, batch_shape: Sequence[int], num_classes: int, precision: str
) -> float:
  """How many times as fast as in float32 a network is in bfloat16 on this machine.

  Args:
    name: of the network, as `make_model`'s.
    batch_shape: (B, H, W, C) of the images that go through it at once.
    num_classes: number of logits.
    precision: `bfloat16`, of the view that is attacked, or `mixed_bfloat16`, of the
      network that is trained.

  Returns:
    The ratio of the times of logits and input gradient, medians of some turns, measured
    in a process of its own.

  Raises:
    NoBfloat16Error: the machine has no such instructions, or the process failed.
  """
  if not is_native():
    raise NoBfloat16Error("this machine has no instructions for bfloat16")
  done = subprocess.run(
    [sys.executable, "-m", "dat_tf.models.precision"],
    input=json.dumps([name, list(batch_shape), num_classes, precision]),
    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    capture_output=True,
    text=True,
  )
  if done.returncode:
    lines = done.stderr.strip().splitlines()
    # A signal leaves no message.
    why = lines[-1] if done.returncode > 0 and lines else f"code {done.returncode}"
    raise NoBfloat16Error(f"a trial of bfloat16 failed ({why})")
  return float(done.stdout.split()[-1])


def _measured(
  name: str, batch_shape: Sequence[int], num_classes: int, precision: str
) -> float:
  images = tf.random.stateless_uniform(batch_shape, [0, 0])
  model = make_model(name, batch_shape[1:], num_classes)
  if precision == "bfloat16":
    networks = [inference_view(model, dtype)() for dtype in (tf.float32, tf.bfloat16)]
  else:
    networks = [
      model,
      make_model(name, batch_shape[1:], num_classes, precision=precision),
    ]

  def seconds(one_pass: Callable[[], tf.Tensor]) -> float:
    started = time.perf_counter()
    one_pass().numpy()
    return time.perf_counter() - started

  passes = [
    tf.function(lambda n=n: tf.gradients(tf.square(n(images)), images)[0])
    for n in networks
  ]
  turns = [[seconds(one_pass) for one_pass in passes] for _ in range(1 + _TURNS)]
  exact, coarse = map(statistics.median, zip(*turns[1:]))  # the first one compiles
  return exact / coarse


if __name__ == "__main__":
  print(_measured(*json.load(sys.stdin)))
