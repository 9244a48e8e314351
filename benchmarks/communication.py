"""The all-reduces against TensorFlow's own, on networks of several rates.

    python benchmarks/communication.py --step --json=docs/results/communication.json

Workers on this host average a gradient with the shapes of a real network's. For each
rate they are started once, each in a network namespace whose link has that rate in
either direction (benchmarks/network.py; needs root and the package iproute2), or on
plain loopback. There all methods take turns. A turn begins at a barrier. Its time is
the slowest worker's, its bytes are the mean of what the workers' interfaces sent until
all had ended, headers and acknowledgements included; on loopback one interface counts
for all workers and for other programs.

TensorFlow's own float32 all-reduce sends the gradient in one piece; fp32 is ours, in
packs. A ratio is the median over the rounds of a method's figure over TensorFlow's (or
over fp32's, where that is said) in the same round; all other figures are medians over
the rounds. The parts encode, wire and decode
are what the all-reduce tells of itself, the mean over the workers. They overlap, so
that they add up to more than the whole, and include waiting for a core or for others.

With --step the training step is timed too, by the same rules: FGSM on PreActResNet-18,
32 x 32 x 3, 4 images a worker.

JSON keys, for each METHOD, which is tensorflow, fp32, fp16, or at N = 8, 4 and 2 bits
Nbit (two-sided) or Nbit_one_sided, and for each RATE as --rates has it:
  bytes_ratio_METHOD         bytes sent over TensorFlow's, at the first rate
  megabytes_METHOD           the bytes that a worker sends in that reduction, over 10^6
  time_ratio_METHOD_RATE     time of a reduction over TensorFlow's
  over_fp32_METHOD_RATE      the same over fp32's
  milliseconds_METHOD_RATE   time of a reduction
  encode_METHOD_RATE, wire_METHOD_RATE, decode_METHOD_RATE   its parts, in milliseconds
  step_ratio_METHOD_RATE     time of a training step over TensorFlow's
  step_milliseconds_METHOD_RATE   time of a training step
  network, workers           whose gradient, and M
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tqdm
from absl import flags

from dat_tf.compat import quiet
from dat_tf.launch import launch
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf.adversarial_model import AdversarialModel
  from dat_tf.attacks import PGD, LInfinity
  from dat_tf.communication import (
    AllReduce,
    BucketQuantizer,
    MeanAllReduce,
    QuantizedAllReduce,
  )
  from dat_tf.models import make_model
  from dat_tf.optimizers import make_optimizer
  from dat_tf.workers import cluster as cluster_lib
  from dat_tf.workers import joined

import common
import network


class TensorFlowAllReduce:
  """The mean as tf.distribute takes it when nothing is asked of it."""

  def __call__(
    self, tensors: list[tf.Tensor], names: list[str], step: tf.Tensor
  ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, list(tensors)), {}


def quantized(bits: int, *, two_sided: bool) -> Callable[..., AllReduce]:
  return lambda options: QuantizedAllReduce(
    BucketQuantizer(bits), options, two_sided=two_sided
  )


METHODS: dict[str, Callable[..., Any]] = {
  "tensorflow": lambda options: TensorFlowAllReduce(),
  "fp32": MeanAllReduce,
  "fp16": lambda options: MeanAllReduce(options, dtype=tf.float16),
  **{f"{bits}bit": quantized(bits, two_sided=True) for bits in (8, 4, 2)},
  **{f"{bits}bit_one_sided": quantized(bits, two_sided=False) for bits in (8, 4)},
}
NETWORKS = {  # image shape and classes
  "ResNet50": ((224, 224, 3), 1000),
  "preact_resnet18": ((32, 32, 3), 10),
  "small_cnn": ((28, 28, 1), 10),
}
# What the quantizing all-reduces tell of themselves, by the names used here.
PARTS = {"encode": "encode_ms", "wire": "exchange_ms", "decode": "decode_ms"}
FIGURES = ("milliseconds", "bytes", *PARTS)
IMAGES = 4

_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers", 4, "M, processes on this host.", lower_bound=2, upper_bound=254
)
_RATES = flags.DEFINE_list(
  "rates",
  ["200mbit", "1gbit", "10gbit", network.LOOPBACK],
  "Rates of the workers' links, such as 200mbit, or loopback for the host's own.",
)
_NETWORK = flags.DEFINE_enum(
  "network", "ResNet50", list(NETWORKS), "Whose gradient: 25.6, 11.2 or 0.3 M values."
)
_METHODS = flags.DEFINE_multi_enum(
  "method",
  list(METHODS),
  list(METHODS),
  "What is compared with TensorFlow and fp32; may be given several times.",
)
_BYTES_PER_PACK = flags.DEFINE_integer(
  "bytes_per_pack", 0, "Pack size; 0: each method's default.", lower_bound=0
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
_STEP = flags.DEFINE_boolean("step", False, "Whether the training step is timed too.")
_SAMPLES = flags.DEFINE_string(
  "samples", None, "Directory for a worker's figures; set for the workers."
)

flags.register_validator("rates", bool, "name at least one")

# Makes one call on all workers; returns what the all-reduce tells.
Run = Callable[[], dict[str, tf.Tensor]]


def reductions(
  strategy: tf.distribute.Strategy, all_reduces: list[AllReduce]
) -> list[Run]:
  """The bare reduction of the gradient, by each method."""
  shape, classes = NETWORKS[_NETWORK.value]
  weights = make_model(_NETWORK.value, shape, classes).trainable_variables
  names = [weight.name for weight in weights]
  gradient = [tf.random.normal(weight.shape) for weight in weights]

  def reduction(all_reduce: AllReduce) -> Run:
    @tf.function
    def reduce(gradient: list[tf.Tensor], step: tf.Tensor) -> Any:
      def in_replica() -> Any:
        # Only what is made here has a device, which tf.distribute asks for.
        return all_reduce([tf.identity(x) for x in gradient], names, step)

      return strategy.run(in_replica)

    return lambda: reduce(gradient, tf.constant(0))[1]

  return [reduction(all_reduce) for all_reduce in all_reduces]


def training_steps(
  strategy: tf.distribute.Strategy, all_reduces: list[AllReduce]
) -> list[Run]:
  """The training step, with each method."""
  epsilon = 8 / 255
  shape, classes = NETWORKS["preact_resnet18"]
  images = tf.random.uniform([IMAGES, *shape])
  labels = tf.random.uniform([IMAGES], maxval=classes, dtype=tf.int32)
  with strategy.scope():
    model = AdversarialModel(
      make_model("preact_resnet18", shape, classes),
      PGD(LInfinity(epsilon), step_size=1.25 * epsilon, steps=1),
    )
    model.compile(make_optimizer("lamb", 0.001, weight_decay=1e-4))

  def training_step(all_reduce: AllReduce) -> Run:
    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> Any:
      model.all_reduce = all_reduce  # while the graph is built
      return strategy.run(model.train_step, args=((images, labels),))

    return lambda: step(images, labels)

  return [training_step(all_reduce) for all_reduce in all_reduces]


def work(directory: str, rate: str) -> None:
  """A worker's part: times all methods in turns and writes what it measured."""
  tf.get_logger().setLevel("ERROR")  # it takes the methods' graphs for one built anew
  cluster = cluster_lib.Cluster.from_environment()
  options = joined.communication_options("auto", _BYTES_PER_PACK.value, 0.0)
  workers = joined.join(cluster, options)
  strategy = workers.strategy
  tf.random.set_seed(cluster.index)
  all_reduces = [METHODS[name](options) for name in methods()]
  runs = [reductions(strategy, all_reduces)]
  if _STEP.value:
    runs.append(training_steps(strategy, all_reduces))
  # The first round builds the graphs.
  samples = np.zeros([1 + _ROUNDS.value, len(runs), len(all_reduces), len(FIGURES)])

  turns = list(np.ndindex(*samples.shape[:-1]))
  for turn in tqdm.tqdm(turns, desc=rate, disable=not cluster.is_chief):
    run = runs[turn[1]][turn[2]]
    workers.wait()
    sent, started = network.bytes_sent(), time.perf_counter()
    told = run()
    seconds = time.perf_counter() - started
    workers.wait()
    parts = [float(told.get(name, 0.0)) for name in PARTS.values()]
    samples[turn] = [1e3 * seconds, network.bytes_sent() - sent, *parts]
  np.save(f"{directory}/{cluster.index}.npy", samples[1:])


def methods() -> list[str]:
  """Those that are compared with, and those that were asked for."""
  return [name for name in METHODS if name in ("tensorflow", "fp32", *_METHODS.value)]


def measured(rate: str) -> np.ndarray:
  """Has workers measure at a rate: [rounds, kinds of runs, methods, FIGURES]."""
  workers = _NUM_WORKERS.value
  with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
    command = [sys.executable, __file__, *sys.argv[1:]]
    command += [f"--rates={rate}", f"--samples={directory}"]
    if rate != network.LOOPBACK:
      namespaces = stack.enter_context(network.links(workers, rate))
      command = network.inside(namespaces, command)
    outcome = launch(command, workers, sys.stderr.buffer)
    if outcome.exit_code:
      if outcome.message:
        print(outcome.message, file=sys.stderr)
      sys.exit(outcome.exit_code)
    samples = np.stack([np.load(f"{directory}/{i}.npy") for i in range(workers)])
  values = samples.mean(axis=0)
  values[..., 0] = samples[..., 0].max(axis=0)
  if rate == network.LOOPBACK:
    values[..., 1] /= workers  # its counter counts for all
  return values


def described(rate: str, values: np.ndarray) -> tuple[list[dict], dict[str, float]]:
  """The table's rows and the figures by key, of what was measured at a rate."""
  rows, figures = [], {}
  medians = np.median(values, axis=0)
  ratios = np.median(values[..., :2] / values[:, :, :1, :2], axis=0)
  over_fp32 = np.median(values[..., 0] / values[:, :, 1:2, 0], axis=0)
  for index, method in enumerate(methods()):
    whole, sent, *parts = medians[0, index]
    time_ratio, bytes_ratio = ratios[0, index]
    here = f"{method}_{rate}"
    figures[f"megabytes_{method}"] = sent / 1e6
    figures[f"bytes_ratio_{method}"] = bytes_ratio
    figures[f"milliseconds_{here}"] = whole
    figures[f"time_ratio_{here}"] = time_ratio
    figures[f"over_fp32_{here}"] = over_fp32[0, index]
    row = {"rate": rate, "M": _NUM_WORKERS.value, "method": method}
    row.update({"MB sent": sent / 1e6, "MB / TF": bytes_ratio, "ms": whole})
    for name, part in zip(PARTS, parts):
      row[f"{name}, ms"] = part or None
      if part:
        figures[f"{name}_{here}"] = part
    row.update({"ms / TF": time_ratio, "ms / fp32": over_fp32[0, index]})
    if _STEP.value:
      step, ratio = medians[1, index, 0], ratios[1, index, 0]
      figures[f"step_milliseconds_{here}"] = step
      figures[f"step_ratio_{here}"] = ratio
      row.update({"step, ms": step, "step / TF": ratio})
    rows.append(row)
  return rows, figures


def main(argv: list[str]) -> None:
  del argv
  if _SAMPLES.value:
    return work(_SAMPLES.value, _RATES.value[0])
  for rate in _RATES.value:
    network.check(rate)
  rows: list[dict[str, Any]] = []
  figures: dict[str, Any] = {"workers": _NUM_WORKERS.value, "network": _NETWORK.value}
  for rate in _RATES.value:
    more_rows, more_figures = described(rate, measured(rate))
    rows += more_rows
    figures.update({**more_figures, **figures})  # the first rate's bytes stay
  common.report(rows, figures)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  run_script(main)
