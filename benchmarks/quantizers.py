"""The quantizer's own cost: quantize and dequantize against a plain copy.

    python benchmarks/quantizers.py --json=docs/results/quantizers.json

Normally distributed float32 values, as many as ResNet-50 has parameters, on one core.
The copy is TensorFlow's, of the same array in the same run: it reads and writes every
value once, in memory that the process already has. Each is measured in turns, in an
order that changes, by the processor's time, so that other programs do not count. A
ratio is the median over the rounds of the time over that of the round's copy.

JSON keys, for N = 8, 4 and 2 bits, buckets of 1,024, scale by the largest:
  quantize_ratio_Nbit    `encode` over copy
  dequantize_ratio_Nbit  `decode` over copy
  payload_ratio_Nbit     bytes of the payload over bytes of the values
  copy_ms                median of the copy, in milliseconds
"""

from __future__ import annotations

import os
import random
import time

import numpy as np
import tqdm
from absl import flags

from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

# TensorFlow counts the cores that it may use when it is imported.
if hasattr(os, "sched_setaffinity"):
  os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

with quiet():
  import tensorflow as tf

  from dat_tf.base import hashing
  from dat_tf.communication.quantizers import BucketQuantizer

import common

_VALUES = flags.DEFINE_integer("values", 25_600_000, "Array size.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 21, "Turns of each.", lower_bound=1)


def main(argv: list[str]) -> None:
  del argv
  size = _VALUES.value
  values = tf.constant(np.random.default_rng(0).standard_normal(size, np.float32))
  keys = hashing.stream_keys(0, 0, 0)
  runs = {"copy": lambda: tf.raw_ops.DeepCopy(x=values)}
  quantizers = {bits: BucketQuantizer(bits) for bits in (8, 4, 2)}
  for bits, quantizer in quantizers.items():
    payload = quantizer.encode(values, keys)
    runs[f"quantize_{bits}"] = lambda q=quantizer: q.encode(values, keys)
    runs[f"dequantize_{bits}"] = lambda q=quantizer, p=payload: q.decode(p, size)
  for run in runs.values():
    run()  # compiles

  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for _ in tqdm.trange(_ROUNDS.value):
    for name in random.sample(list(runs), len(runs)):
      started = time.process_time()
      result = runs[name]()
      seconds[name].append(time.process_time() - started)
      del result  # outside the time that is taken

  rows, figures = [], {"copy_ms": 1e3 * float(np.median(seconds["copy"]))}
  for bits, quantizer in quantizers.items():
    row: dict[str, float] = {"bits": bits}
    for name in ("quantize", "dequantize"):
      ratios = np.array(seconds[f"{name}_{bits}"]) / np.array(seconds["copy"])
      row[f"{name} / copy"] = figures[f"{name}_ratio_{bits}bit"] = np.median(ratios)
      row[f"{name}, lowest"], row[f"{name}, highest"] = ratios.min(), ratios.max()
    row["payload / values"] = quantizer.payload_size(size) / size
    figures[f"payload_ratio_{bits}bit"] = row["payload / values"]
    rows.append(row)
  common.report(rows, figures, f"Copy of {size:,} values: {figures['copy_ms']:.3g} ms")


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  run_script(main)
