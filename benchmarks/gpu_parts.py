"""The parts of benchmarks/gpu.py that take TensorFlow, each a process of its own.

    python benchmarks/gpu_parts.py PART SIZES

prints a JSON object a line, as soon as something is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from dat_tf.compat import quiet

with quiet():
  import tensorflow as tf

  from dat_tf import adversarial_model
  from dat_tf.adversarial_model import AdversarialModel
  from dat_tf.attacks import PGD, LInfinity, make_attacks
  from dat_tf.base import hashing
  from dat_tf.base.errors import one_line
  from dat_tf.communication import BucketQuantizer
  from dat_tf.evaluation import Evaluator
  from dat_tf.models import make_model, precision
  from dat_tf.models.view import inference_view
  from dat_tf.optimizers import make_optimizer
  from dat_tf.program.run import opened
  from dat_tf.workers import joined
  from dat_tf.workers.cluster import Cluster

from gpu import Sizes
from loops import (
  EPSILON,
  STEP_SIZE,
  Case,
  settings_of_trainer,
  trainer_loop,
  write_data,
)

# Takes so many steps after a first one; returns their seconds.
Loop = Callable[[int], float]

VIEWS = {
  "tf32": ("folded", "plain"),
  "float32": ("folded",),
  "bfloat16": ("folded",),
  "mixed": ("plain",),
}


def emit(**figures: Any) -> None:
  print(json.dumps(figures), flush=True)


def set_tf32(arithmetic: str) -> None:
  tf.config.experimental.enable_tensor_float_32_execution(arithmetic != "float32")


@contextlib.contextmanager
def case(name: str) -> Iterator[None]:
  """Measures one case of several: its failure is told, and the next ones go on."""
  try:
    yield
  except Exception as error:
    traceback.print_exc()
    emit(**{f"{name}_error": described(error)})
  # The next case has the memory to itself.
  tf.keras.backend.clear_session()
  gc.collect()


def described(error: Exception) -> str:
  return f"{type(error).__name__}: {one_line(error)}"[:500]


@contextlib.contextmanager
def peak(name: str) -> Iterator[None]:
  """Tells the most memory in use at once, beyond what was in use before."""
  if not tf.config.list_physical_devices("GPU"):
    yield
    return
  before = tf.config.experimental.get_memory_info("GPU:0")["current"]
  tf.config.experimental.reset_memory_stats("GPU:0")
  yield
  most = tf.config.experimental.get_memory_info("GPU:0")["peak"]
  emit(**{f"{name}_peak_gb": (most - before) / 1e9})


def started(name: str, make: Callable[[], Loop]) -> tuple[Loop, float]:
  """A loop after its first steps, and the seconds of one."""
  begin = time.perf_counter()
  with peak(name):
    loop = make()
    seconds = loop(1)
  emit(**{f"{name}_start_seconds": time.perf_counter() - begin})
  return loop, seconds


def speeds(
  loops: dict[str, tuple[Loop, float]], batch: int, sizes: Sizes
) -> Iterator[dict[str, list[float]]]:
  """Times the loops in turns; after each, all images a second so far, by loop."""
  found: dict[str, list[float]] = {name: [] for name in loops}
  for turn in range(sizes.turns):
    # Who comes first changes, in case that matters.
    for name in sorted(loops, reverse=bool(turn % 2)):
      loop, seconds = loops[name]
      steps = int(np.clip(sizes.turn_seconds / seconds, 2, 100))
      found[name].append(batch * steps / loop(steps))
    for name, values in found.items():
      emit(**{f"{name}_images_per_second": float(np.median(values))})
    yield found


def plain_view(model: Any, *args: Any, **kwargs: Any) -> Any:
  """A view that is the network as it is; arguments as `attacked_view`'s."""
  del args, kwargs
  return lambda: lambda images: model(images, training=False)


def bare_loop(
  arithmetic: str, view: str, images: np.ndarray, labels: np.ndarray, sizes: Sizes
) -> Callable[[bool], Loop]:
  """The bare loop of benchmarks/loops.py on a view, with XLA or without.

  It waits for the GPU at the end, which otherwise lags behind.
  """
  mixed = "mixed_bfloat16" if arithmetic == "mixed" else "float32"
  cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits

  def make(xla: bool) -> Loop:  # noqa: FBT001
    classifier = make_model(sizes.model, images.shape[1:], 10, precision=mixed)
    optimizer = make_optimizer("lamb", 0.001, weight_decay=1e-4)
    variables = classifier.trainable_variables
    view_of = plain_view(classifier)
    if view == "folded":
      dtype = tf.bfloat16 if arithmetic == "bfloat16" else tf.float32
      view_of = inference_view(classifier, dtype)
    parts = len(images) // sizes.batch
    batches = [*zip(np.split(images, parts), np.split(labels, parts))]
    batches = [(tf.constant(x), tf.constant(y)) for x, y in batches]

    @tf.function(jit_compile=xla or None)
    def differentiated(x: tf.Tensor, y: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
      attacked = view_of()
      moved = x + tf.random.uniform(x.shape, -EPSILON, EPSILON)
      moved = tf.clip_by_value(moved, 0.0, 1.0)
      for _ in range(sizes.attack_steps):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
          tape.watch(moved)
          loss = tf.reduce_sum(cross_entropy(y, attacked(moved)))
        moved += STEP_SIZE * tf.sign(tape.gradient(loss, moved))
        moved = tf.clip_by_value(moved, x - EPSILON, x + EPSILON)
        moved = tf.clip_by_value(moved, 0.0, 1.0)
      with tf.GradientTape() as tape:
        logits = classifier(tf.concat([x, moved], axis=0), training=True)
        losses = cross_entropy(tf.concat([y, y], axis=0), logits)
        loss = 2.0 * tf.reduce_mean(losses)
      return tape.gradient(loss, variables), loss

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
      gradients, loss = differentiated(x, y)
      optimizer.apply_gradients(zip(gradients, variables))
      return loss

    return stepped(lambda index: step(*batches[index % parts]))

  return make


def stepped(step: Callable[[int], tf.Tensor]) -> Loop:
  """A loop of a step, which takes its number and returns the loss."""

  def run(steps: int) -> float:
    step(0).numpy()
    begin = time.perf_counter()
    for index in range(1, steps + 1):
      loss = step(index)
    loss.numpy()
    return time.perf_counter() - begin

  return run


def train(arithmetic: str, sizes: Sizes) -> None:
  """The trainer and the bare loop in turns, with each view, without XLA and with it."""
  set_tf32(arithmetic)
  rng = np.random.default_rng(0)
  shape = (8 * sizes.batch, sizes.image, sizes.image, 3)
  training = Case(sizes.model, shape[1:], sizes.batch, 1)
  images = rng.uniform(size=shape).astype(np.float32)
  labels = rng.integers(0, 10, size=len(images))
  for view in VIEWS[arithmetic]:
    bare = bare_loop(arithmetic, view, images, labels, sizes)
    for xla in (False, True):
      name = f"{arithmetic}_{view}" + ("_xla" if xla else "")
      with case(name), contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        write_data(images, labels, directory)
        config = dataclasses.replace(
          settings_of_trainer(training, directory),
          attack_steps=sizes.attack_steps,
          pictures=0,  # each turn would build a graph for them
          jit_compile=xla,
          precision="mixed_bfloat16" if arithmetic == "mixed" else "float32",
          attack_precision="bfloat16" if arithmetic == "bfloat16" else "float32",
        )
        if view == "plain":
          # The program has no flag for it.
          stack.enter_context(
            mock.patch.object(adversarial_model, "attacked_view", plain_view)
          )

        def trainer(config: Any = config, stack: Any = stack) -> Loop:
          run = stack.enter_context(opened(config, Cluster()))
          return trainer_loop(run)

        ours, theirs = f"trainer_{name}", f"bare_{name}"
        loops = {
          ours: started(ours, trainer),
          theirs: started(theirs, lambda xla=xla, bare=bare: bare(xla)),
        }
        for found in speeds(loops, sizes.batch, sizes):
          ratio = np.median(np.array(found[ours]) / np.array(found[theirs]))
          emit(**{f"trainer_over_bare_{name}": float(ratio)})


def resnet50(sizes: Sizes) -> None:
  """The training step alone, on images in memory."""
  shape = (sizes.deep_batch, sizes.deep_image, sizes.deep_image, 3)
  images = tf.random.uniform(shape)
  labels = tf.random.uniform(shape[:1], maxval=1000, dtype=tf.int32)

  def loop(arithmetic: str, xla: bool) -> Loop:  # noqa: FBT001
    mixed = "mixed_bfloat16" if arithmetic == "mixed" else "float32"
    model = AdversarialModel(
      make_model(sizes.deep_model, shape[1:], 1000, precision=mixed),
      PGD(LInfinity(2 / 255), step_size=2 / 255, steps=4),
      attack_precision="bfloat16" if arithmetic == "bfloat16" else "float32",
      jit_compile=xla,
    )
    model.compile(make_optimizer("lamb", 0.01, weight_decay=1e-4))

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
      return model.train_step((images, labels))["loss"]

    return stepped(lambda index: step(images, labels))

  for xla in (False, True):
    for arithmetic in ("tf32", "bfloat16", "mixed"):
      view = "plain" if arithmetic == "mixed" else "folded"
      name = f"resnet50_{arithmetic}_{view}" + ("_xla" if xla else "")
      with case(name):
        if arithmetic != "tf32" and not precision.is_native():
          raise precision.NoBfloat16Error("there are no instructions for bfloat16")
        loops = {name: started(name, lambda a=arithmetic, x=xla: loop(a, x))}
        list(speeds(loops, sizes.deep_batch, sizes))


def autoattack(sizes: Sizes) -> None:
  """The standard suite, on images none of which it breaks."""
  model = make_model(sizes.model, (sizes.image, sizes.image, 3), 10)
  images = np.random.default_rng(0).uniform(
    size=(sizes.attacked, *model.input_shape[1:])
  )
  # What the images add to the logits stays below this.
  certain = 30.0 * tf.one_hot([0], 10)
  attacks = make_attacks("autoattack", LInfinity(8 / 255))
  evaluator = Evaluator(
    lambda x: tf.tanh(model(x, training=False)) + certain,
    {"suite": attacks},
    batch_size=max(1, sizes.attacked // 2),  # two batches are attacked side by side
  )
  begin, names = time.perf_counter(), iter(attacks)
  times = [begin]

  def advance() -> None:
    times.append(time.perf_counter())
    name = next(names).replace("-", "_")
    emit(**{f"autoattack_{name}_seconds": times[-1] - times[-2]})

  emit(autoattack_images=sizes.attacked)
  with peak("autoattack"):
    _, outcomes = evaluator(
      images, np.zeros(sizes.attacked, np.int64), np.arange(sizes.attacked), advance
    )
  emit(
    autoattack_suite_seconds=time.perf_counter() - begin,
    autoattack_robust_accuracy=outcomes["suite"].robust_accuracy,
  )


def quantizer(sizes: Sizes) -> None:
  """Each direction for each number of bits."""
  values = tf.random.stateless_normal([sizes.values], [0, 0])
  keys = hashing.stream_keys(0, 0, 0)

  def milliseconds(call: Callable[[], tf.Tensor]) -> float:
    def seconds(calls: int) -> float:
      begin = time.perf_counter()
      for _ in range(calls):
        call()
      tf.test.experimental.sync_devices()
      return time.perf_counter() - begin

    seconds(1)  # compiles
    calls = int(np.clip(sizes.turn_seconds / 5 / seconds(1), 1, 100))
    return 1e3 * float(np.median([seconds(calls) / calls for _ in range(5)]))

  emit(
    quantizer_values=sizes.values, quantizer_copy_ms=milliseconds(lambda: values + 1.0)
  )
  for bits in (8, 4, 2):
    each = BucketQuantizer(bits)
    payload = each.encode(values, keys)
    emit(
      **{
        f"quantize_ms_{bits}bit": milliseconds(lambda e=each: e.encode(values, keys)),
        f"dequantize_ms_{bits}bit": milliseconds(
          lambda e=each, p=payload: e.decode(p, sizes.values)
        ),
      }
    )


def all_reduce(sizes: Sizes) -> None:
  """Sums over all GPUs by the strategy of a run; by another one on CPUs."""
  gpus = tf.config.list_physical_devices("GPU")
  if len(gpus) == 1:
    emit(all_reduce_skipped="there is one GPU")
    return
  options = joined.communication_options("nccl" if gpus else "auto", 0, 0.0)
  if gpus:
    strategy = joined.join(Cluster(), options).strategy
  else:
    tf.config.set_logical_device_configuration(
      tf.config.list_physical_devices("CPU")[0],
      [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  replicas, repeats = strategy.num_replicas_in_sync, 10

  def in_replica() -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    values = tf.ones([sizes.values])
    for _ in range(repeats):
      values = context.all_reduce(tf.distribute.ReduceOp.SUM, values, options=options)
    return values[-1]

  @tf.function
  def reduce() -> tf.Tensor:
    return strategy.experimental_local_results(strategy.run(in_replica))[0]

  def milliseconds() -> float:
    begin = time.perf_counter()
    total = float(reduce().numpy())
    seconds = time.perf_counter() - begin
    if total != float(np.float32(replicas) ** repeats):
      raise ValueError(f"the sum over {replicas} replicas, {repeats} times, is {total}")
    return 1e3 * seconds / repeats

  milliseconds()  # builds the graph, and NCCL its rings
  median = float(np.median([milliseconds() for _ in range(5)]))
  sent = 4 * sizes.values * 2 * (replicas - 1) / replicas
  emit(
    all_reduce_ms=median,
    all_reduce_gb_per_second=sent / 1e6 / median,
    all_reduce_values=sizes.values,
    all_reduce_replicas=replicas,
  )


def about(sizes: Sizes) -> None:
  """What is here."""
  del sizes
  gpus = tf.config.list_physical_devices("GPU")
  emit(gpus=len(gpus), tensorflow=tf.__version__)
  for gpu in gpus[:1]:
    details = tf.config.experimental.get_device_details(gpu)
    emit(
      gpu=details.get("device_name"),
      compute_capability=".".join(map(str, details.get("compute_capability", []))),
    )
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
      told = subprocess.check_output([*command, "--format=csv,noheader"], text=True)
      emit(nvidia_smi="; ".join(told.splitlines()))


PARTS: dict[str, Callable[[Sizes], None]] = {
  "about": about,
  "quantizer": quantizer,
  "resnet50": resnet50,
  "autoattack": autoattack,
  "all_reduce": all_reduce,
  **{f"train_{name}": (lambda sizes, name=name: train(name, sizes)) for name in VIEWS},
}


def main() -> None:
  name, sizes = sys.argv[1:]
  try:
    PARTS[name](Sizes(**json.loads(sizes)))
  except Exception as error:
    traceback.print_exc()
    emit(**{f"{name}_error": described(error)})
    sys.exit(1)


if __name__ == "__main__":
  main()
