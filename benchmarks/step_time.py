"""The trainer's speed against a bare loop: what Keras, metrics and pipeline cost.

    python benchmarks/step_time.py --json=docs/results/step_time.json

Both train with PGD-10, clean weight 1 and LAMB, in one process, in turns. The trainer
is what run_dat.py runs: `AdversarialModel.fit` under MultiWorkerMirroredStrategy, with
its figures, checks and callbacks, fed from TFRecord files. The bare loop is a
hand-written `tf.function` over batches that lie in memory: no strategy, no figures, no
checks.

A round times each for the same number of steps, without the first, which fills the
pipeline. The ratio is the median over the rounds of bare time / trainer time.

JSON keys:
  trainer_over_bare        images/s of the trainer over the bare loop's,
                           PreActResNet-18, 32 x 32 x 3, batch 32
  trainer_over_bare_small  the same for the small CNN, 28 x 28 x 1, batch 128
  lowest_ratio*, highest_ratio*   of the rounds: how noisy the machine was
  *_images_per_second             medians, trainer and bare
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from typing import Callable

import numpy as np
import tqdm
from absl import flags

from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf import config as config_lib
  from dat_tf.compat import keras, takes_tensors
  from dat_tf.data import writing
  from dat_tf.models import make_model
  from dat_tf.monitoring import Progress
  from dat_tf.optimizers import make_optimizer
  from dat_tf.program import training
  from dat_tf.program.run import Run, opened
  from dat_tf.workers.cluster import Cluster

import common

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each.", lower_bound=1)

CASES = {
  # suffix of the JSON key: model, image shape, batch, steps a round
  "": ("preact_resnet18", (32, 32, 3), 32, 3),
  "_small": ("small_cnn", (28, 28, 1), 128, 20),
}
EPSILON, STEP_SIZE, STEPS = 0.1, 0.025, 10


def bare_loop(
  model: str, images: np.ndarray, labels: np.ndarray, batch: int
) -> Callable[[int], float]:
  """Builds the bare loop; what it returns takes so many steps and gives the seconds."""
  classifier = make_model(model, images.shape[1:], 10)
  optimizer = make_optimizer("lamb", 0.001, weight_decay=1e-4)
  cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
  batches = [
    (tf.constant(images[i : i + batch]), tf.constant(labels[i : i + batch]))
    for i in range(0, len(images) - batch + 1, batch)
  ]

  @tf.function
  def step(x: tf.Tensor, y: tf.Tensor) -> None:
    moved = x + tf.random.uniform(x.shape, -EPSILON, EPSILON)
    moved = tf.clip_by_value(moved, 0.0, 1.0)
    for _ in range(STEPS):
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(moved)
        loss = tf.reduce_sum(cross_entropy(y, classifier(moved, training=False)))
      moved += STEP_SIZE * tf.sign(tape.gradient(loss, moved))
      moved = tf.clip_by_value(
        tf.clip_by_value(moved, x - EPSILON, x + EPSILON), 0.0, 1.0
      )
    with tf.GradientTape() as tape:
      logits = classifier(tf.concat([x, moved], axis=0), training=True)
      losses = cross_entropy(tf.concat([y, y], axis=0), logits)
      loss = 2.0 * tf.reduce_mean(losses)
    variables = classifier.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

  def run(steps: int) -> float:
    for index in range(steps + 1):
      if index == 1:
        started = time.perf_counter()
      step(*batches[index % len(batches)])
    return time.perf_counter() - started

  return run


@takes_tensors
class _Timer(keras.callbacks.Callback):
  """Seconds from the end of an epoch's first step to the end of its last."""

  def on_train_batch_end(self, batch: int, logs: object = None) -> None:
    now = time.perf_counter()
    if batch == 0:
      self.started = now
    self.seconds = now - self.started


def settings_of_trainer(
  model: str, images: np.ndarray, labels: np.ndarray, batch: int, directory: str
) -> config_lib.Settings:
  """Writes the images; the settings that train on them."""
  writing.write_shards(
    map(writing.image_example, (255 * images).astype(np.uint8), labels),
    directory,
    "train",
    4,
  )
  return config_lib.parse(
    [
      "step_time",
      f"--model_dir={directory}/run",
      "--mode=train",
      f"--train_data={directory}/train-*",
      f"--model={model}",
      f"--global_batch_size={batch}",
      f"--epsilon={EPSILON}",
      f"--step_size={STEP_SIZE}",
      f"--attack_steps={STEPS}",
      "--learning_rate=0.001",
      "--epochs=1000",
    ]
  )


def trainer_loop(run: Run) -> Callable[[int], float]:
  """What it returns takes so many steps of the trainer and gives the seconds."""
  trainee = run.trainee
  assert trainee is not None
  timer = _Timer()
  assert run.inputs.train is not None
  progress = Progress(1000 * run.inputs.train.steps)
  epoch = 0

  def steps_of_fit(steps: int) -> float:
    nonlocal epoch
    trainee.model.fit(
      run.distribute(run.inputs.training_batches(epoch)),
      initial_epoch=epoch,
      epochs=epoch + 1,
      steps_per_epoch=steps + 1,
      # TensorBoard's are for one training each.
      callbacks=[timer, *training.watchers(run, trainee), progress],
      verbose=0,
    )
    epoch += 1
    return timer.seconds

  return steps_of_fit


def main(argv: list[str]) -> None:
  del argv
  rng = np.random.default_rng(0)
  rows, figures = [], {}
  for suffix, (model, shape, batch, steps) in CASES.items():
    images = rng.uniform(size=(max(batch * 8, 1024), *shape)).astype(np.float32)
    labels = rng.integers(0, 10, size=len(images))
    with contextlib.ExitStack() as stack:
      directory = stack.enter_context(tempfile.TemporaryDirectory())
      config = settings_of_trainer(model, images, labels, batch, directory)
      loops = {
        "trainer": trainer_loop(stack.enter_context(opened(config, Cluster()))),
        "bare": bare_loop(model, images, labels, batch),
      }
      for loop in loops.values():
        loop(1)  # builds the graph
      speeds: dict[str, list[float]] = {name: [] for name in loops}
      for turn in tqdm.trange(_ROUNDS.value, desc=model):
        # Who comes first changes, in case that matters.
        for name in sorted(loops, reverse=bool(turn % 2)):
          speeds[name].append(batch * steps / loops[name](steps))
    ratios = np.array(speeds["trainer"]) / np.array(speeds["bare"])
    figures[f"trainer_over_bare{suffix}"] = float(np.median(ratios))
    figures[f"lowest_ratio{suffix}"] = float(ratios.min())
    figures[f"highest_ratio{suffix}"] = float(ratios.max())
    for name, values in speeds.items():
      figures[f"{name}{suffix}_images_per_second"] = float(np.median(values))
    rows.append(
      {
        "network": model,
        "batch": batch,
        "trainer, images/s": np.median(speeds["trainer"]),
        "bare, images/s": np.median(speeds["bare"]),
        "trainer / bare": np.median(ratios),
        "lowest": ratios.min(),
        "highest": ratios.max(),
      }
    )
  common.report(rows, figures)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  run_script(main)
