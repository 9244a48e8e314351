"""A training step of PGD-10 in two loops: the trainer's, and one written by hand.

Both train with clean weight 1 on the same data. The trainer's is what run_dat.py runs:
`AdversarialModel.fit` under MultiWorkerMirroredStrategy, with its figures, checks and
callbacks, fed from TFRecord files. The bare one is a `tf.function` over batches that
lie in memory: no strategy, no figures, no checks.

A loop is a function that takes so many steps and gives the seconds. It leaves out a
first step, which fills the pipeline.
"""

from __future__ import annotations

import time
from typing import Callable, NamedTuple

import numpy as np
import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf.compat import keras, takes_tensors
from dat_tf.data import writing
from dat_tf.models import make_model
from dat_tf.models.view import inference_view
from dat_tf.monitoring import Progress
from dat_tf.optimizers import make_optimizer
from dat_tf.program import training
from dat_tf.program.run import Run

EPSILON, STEP_SIZE, STEPS = 0.1, 0.025, 10

Loop = Callable[[int], float]


class Case(NamedTuple):
  """What is trained.

  Attributes:
    model: name of the network.
    shape: (height, width, channels) of an image.
    batch: images of a step.
    steps: how many a turn takes.
  """

  model: str
  shape: tuple[int, int, int]
  batch: int
  steps: int

  def data(self) -> tuple[np.ndarray, np.ndarray]:
    """Random images, float32 in [0, 1], and labels: 8 batches at least."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(max(self.batch * 8, 1024), *self.shape))
    return images.astype(np.float32), rng.integers(0, 10, size=len(images))


def bare_loop(
  case: Case,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  optimizer: str = "lamb",
  folded: bool = True,
) -> Loop:
  """The loop that is written by hand.

  Args:
    case: the network and the batch.
    images: float32 [N, H, W, C].
    labels: int [N].
    optimizer: name of the rule.
    folded: whether the attack meets the network with batch-norm folded into the layers
      before it, as the trainer's does.
  """
  classifier = make_model(case.model, case.shape, 10)
  rule = make_optimizer(optimizer, 0.001, weight_decay=1e-4)
  cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
  view = inference_view(classifier)
  batches = [
    (tf.constant(images[i : i + case.batch]), tf.constant(labels[i : i + case.batch]))
    for i in range(0, len(images) - case.batch + 1, case.batch)
  ]

  @tf.function
  def step(x: tf.Tensor, y: tf.Tensor) -> None:
    attacked = view() if folded else lambda moved: classifier(moved, training=False)
    moved = x + tf.random.uniform(x.shape, -EPSILON, EPSILON)
    moved = tf.clip_by_value(moved, 0.0, 1.0)
    for _ in range(STEPS):
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(moved)
        loss = tf.reduce_sum(cross_entropy(y, attacked(moved)))
      moved += STEP_SIZE * tf.sign(tape.gradient(loss, moved))
      moved = tf.clip_by_value(
        tf.clip_by_value(moved, x - EPSILON, x + EPSILON), 0.0, 1.0
      )
    with tf.GradientTape() as tape:
      logits = classifier(tf.concat([x, moved], axis=0), training=True)
      losses = cross_entropy(tf.concat([y, y], axis=0), logits)
      loss = 2.0 * tf.reduce_mean(losses)
    variables = classifier.trainable_variables
    rule.apply_gradients(zip(tape.gradient(loss, variables), variables))

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


def write_data(images: np.ndarray, labels: np.ndarray, directory: str) -> None:
  """Writes the TFRecord files that `settings_of_trainer` names."""
  writing.write_shards(
    map(writing.image_example, (255 * images).astype(np.uint8), labels),
    directory,
    "train",
    4,
  )


def settings_of_trainer(
  case: Case, directory: str, *more: str, run: str = "run"
) -> config_lib.Settings:
  """The settings that train on the files of `write_data`.

  Args:
    case: the network and the batch.
    directory: where the files are.
    *more: further flags.
    run: name of the run's own directory there.
  """
  return config_lib.parse(
    [
      "loops",
      f"--model_dir={directory}/{run}",
      "--mode=train",
      f"--train_data={directory}/train-*",
      f"--model={case.model}",
      f"--global_batch_size={case.batch}",
      f"--epsilon={EPSILON}",
      f"--step_size={STEP_SIZE}",
      f"--attack_steps={STEPS}",
      "--learning_rate=0.001",
      "--epochs=1000",
      *more,
    ]
  )


def trainer_loop(run: Run) -> Loop:
  """The trainer's loop."""
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
