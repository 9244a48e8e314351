"""Which tensors should travel in float32: what small ones lose when quantized.

    python benchmarks/full_precision.py --json=docs/results/full_precision.json

Tensors are quantized in the order in which they are packed, so that a bucket may hold
the end of one and the beginning of the next, and a small tensor may share the scale of
a larger neighbour. Layer-wise optimizers give each layer a step of its own length:
what counts is the error relative to each tensor's own norm.

The gradient is that of the objective (PGD with 3 steps) on 128 real digits, after 30
steps of training. Vectors always travel in float32; `below` is the size under which
other tensors do too.

JSON keys, for each NETWORK, N = 8, 4 and 2 bits and threshold T:
  NETWORK_Nbit_below_T_worst   largest relative l2 error of a tensor
  NETWORK_Nbit_below_T_whole   relative l2 error of the gradient
  NETWORK_Nbit_below_T_bytes   payload over that of float32
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tqdm
from absl import flags
from sklearn.datasets import load_digits

from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf.adversarial_model import AdversarialModel
  from dat_tf.attacks import PGD, LInfinity
  from dat_tf.base import hashing
  from dat_tf.communication import BucketQuantizer, FullPrecision
  from dat_tf.models import make_model
  from dat_tf.optimizers import make_optimizer

import common

_DRAWS = flags.DEFINE_integer("draws", 5, "Random roundings averaged.", lower_bound=1)

NETWORKS = ("small_cnn", "preact_resnet18")
THRESHOLDS = (0, 256, 1024, 4096, 16384)
BATCH = 128


class _Keep:
  """An all-reduce that remembers the gradient of the last step."""

  def __call__(self, tensors: Any, names: Any, step: Any) -> Any:
    self.names, self.gradients = names[:-1], [x.numpy() for x in tensors[:-1]]
    return tensors, {}


def gradient_of(
  network: str, images: np.ndarray, labels: np.ndarray, steps: int
) -> _Keep:
  """Trains for some steps and returns the last gradient."""
  tf.keras.utils.set_random_seed(0)
  kept = _Keep()
  model = AdversarialModel(
    make_model(network, images.shape[1:], 10),
    PGD(LInfinity(0.1), step_size=0.05, steps=3),
    all_reduce=kept,
  )
  model.compile(optimizer=make_optimizer("lamb", 0.01), run_eagerly=True)
  data = tf.data.Dataset.from_tensor_slices((images, labels)).repeat()
  model.fit(data.batch(BATCH), steps_per_epoch=steps, epochs=1, verbose=0)
  return kept


def errors(kept: _Keep, bits: int, below: int) -> tuple[float, float, float]:
  """The worst tensor's relative error, the whole gradient's, and the bytes ratio."""
  rule, quantizer = FullPrecision(below), BucketQuantizer(bits)
  narrow = [
    gradient
    for name, gradient in reversed(list(zip(kept.names, kept.gradients)))
    if not rule(name, tf.TensorShape(gradient.shape))
  ]
  total = sum(gradient.size for gradient in kept.gradients)
  flat = np.concatenate([gradient.ravel() for gradient in narrow])
  squares = np.zeros(len(narrow))
  for draw in range(_DRAWS.value):
    payload = quantizer.encode(tf.constant(flat), hashing.stream_keys(0, draw))
    lost = quantizer.decode(payload, flat.size).numpy() - flat
    ends = np.cumsum([gradient.size for gradient in narrow])[:-1]
    squares += [np.sum(part**2) for part in np.split(lost, ends)]
  squares /= _DRAWS.value
  norms = np.array([np.sum(gradient**2) for gradient in narrow])
  whole = sum(np.sum(gradient**2) for gradient in kept.gradients)
  sent = quantizer.payload_size(flat.size) + total - flat.size
  return np.sqrt((squares / norms).max()), np.sqrt(squares.sum() / whole), sent / total


def main(argv: list[str]) -> None:
  del argv
  digits = load_digits()
  images = (digits.images[..., None] / 16).astype("f4")
  rows, figures = [], {}
  for network in tqdm.tqdm(NETWORKS):
    steps, resized = 30, images
    if network != "small_cnn":
      steps, resized = 2, np.repeat(tf.image.resize(images, [32, 32]), 3, axis=-1)
      resized = np.clip(resized, 0, 1)
    kept = gradient_of(network, resized, digits.target, steps)
    for bits in (8, 4, 2):
      for below in THRESHOLDS:
        worst, whole, sent = errors(kept, bits, below)
        key = f"{network}_{bits}bit_below_{below}"
        figures |= {f"{key}_worst": worst, f"{key}_whole": whole, f"{key}_bytes": sent}
        rows.append(
          {
            "network": network,
            "bits": bits,
            "below": below,
            "worst tensor": worst,
            "whole": whole,
            "bytes / fp32": sent,
          }
        )
  common.report(rows, figures)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  run_script(main)
