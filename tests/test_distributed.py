"""Tests of training on two and three real workers: processes that talk over gRPC."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import tempfile
import time

import numpy as np
import pytest
import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import PGD, LInfinity
from dat_tf.data import writing
from dat_tf.models import batch_norm, make_model
from dat_tf.objectives import CleanTraining
from dat_tf.optimizers import LAMB
from dat_tf.program import evaluating, training
from dat_tf.program.checkpoint_files import Position
from dat_tf.program.checkpointing import Checkpoints
from dat_tf.program.run import opened
from dat_tf.workers import joined
from dat_tf.workers.cluster import Cluster
from workers import run_workers

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, BATCH, CLIP_NORM = 5, 64, 0.05


def _workers():
  options = joined.communication_options("ring", 0, 60)
  return joined.join(Cluster.from_environment(), options)


def _network_without_batch_norm():
  layers = tf.keras.layers
  return tf.keras.Sequential(
    [
      tf.keras.Input((8, 8, 1)),
      layers.Conv2D(8, 3, activation="relu"),
      layers.Flatten(),
      layers.Dense(10),
    ]
  )


def _train_on_the_same_images(worker, num_workers, strategy):
  """Five steps of 64 images; each worker takes its part of each global batch."""
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(STEPS * BATCH, 8, 8, 1)).astype("f4")
  labels = rng.integers(0, 10, size=STEPS * BATCH)
  tf.keras.utils.set_random_seed(0)
  with strategy.scope():
    model = AdversarialModel(
      _network_without_batch_norm(), PGD(LInfinity(0.1), 0.025, 5), seed=3
    )
    model.compile(optimizer=LAMB(0.01, weight_decay=1e-4))
  part = BATCH // num_workers
  data = {
    "image": images,
    "label": labels,
    "weight": np.ones(len(images), "f4"),
    "example_id": np.arange(len(images)),
    "epoch": np.zeros(len(images), "i8"),
  }
  chosen = np.arange(len(images)).reshape(STEPS, num_workers, part)[:, worker].ravel()
  dataset = tf.data.Dataset.from_tensor_slices(
    {name: values[chosen] for name, values in data.items()}
  ).batch(part)
  distributed = strategy.distribute_datasets_from_function(lambda context: dataset)
  logs = model.fit(distributed, steps_per_epoch=STEPS, verbose=0).history
  return model.classifier.get_weights(), logs


def _train_with_batch_norm(worker, strategy):
  """Statistics differ between workers until they are averaged; stop on one worker."""
  tf.keras.utils.set_random_seed(worker)  # the chief's initial weights must win
  with strategy.scope():
    model = AdversarialModel(
      make_model("small_cnn", (8, 8, 1), 10), PGD(LInfinity(0.1), 0.05, 2)
    )
    model.compile(optimizer=tf.keras.optimizers.legacy.SGD(0.1))
  rng = np.random.default_rng(worker)
  images = rng.uniform(size=(48, 8, 8, 1)).astype("f4")
  labels = rng.integers(0, 10, size=48)
  dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16).repeat()
  before, after = [], []

  def own_statistics():
    locals_ = map(strategy.experimental_local_results, statistics)
    return [local[0].numpy() for local in locals_]

  class Watch(tf.keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
      if batch == 2:
        before.append(own_statistics())

    def on_epoch_end(self, epoch, logs=None):
      after.append(own_statistics())

  class StopInTheMiddle(tf.keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
      self.model.stop_training = True

  class LowerTheRate(tf.keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
      self.model.optimizer.learning_rate.assign(0.05 if worker == 0 else 0.7)

  statistics = batch_norm.statistics(model.classifier)
  callbacks = [Watch(), LowerTheRate()] + ([StopInTheMiddle()] if worker == 1 else [])
  distributed = strategy.distribute_datasets_from_function(lambda context: dataset)
  history = model.fit(
    distributed, epochs=4, steps_per_epoch=3, callbacks=callbacks, verbose=0
  )
  with tempfile.TemporaryDirectory() as directory:
    tracked = {"classifier": model.classifier}
    copies = {"classifier": tf.keras.models.clone_model(model.classifier)}
    checkpoints = Checkpoints(
      directory, tracked, copies if worker == 0 else None, worker=worker
    )
    checkpoints.save(Position(1))
    checkpoints.finish()
    files = sorted(os.listdir(directory))
  return {
    "before": before[0],
    "after": after[0],
    "weights": [v.numpy() for v in model.classifier.trainable_variables],
    "epochs": len(history.history["loss"]),
    "learning_rate": float(model.optimizer.learning_rate.numpy()),
    "files": files,
  }


def _pixels(worker):
  """Of the second worker far brighter: its gradient is far longer."""
  rng = np.random.default_rng(worker)
  scale = (0.01, 1.0)[worker]
  return scale * rng.uniform(size=(6, 4)).astype("f4"), rng.integers(0, 3, size=6)


def _clipped_step(worker, strategy):
  """One step of a linear network of zeros."""
  layers = tf.keras.layers
  with strategy.scope():
    model = AdversarialModel(
      tf.keras.Sequential(
        [
          tf.keras.Input((2, 2, 1)),
          layers.Flatten(),
          layers.Dense(3, use_bias=False, kernel_initializer="zeros"),
        ]
      ),
      attack=None,
      objective=CleanTraining(),
      clip_norm=CLIP_NORM,
    )
    model.compile(optimizer=tf.keras.optimizers.legacy.SGD(1.0))
  pixels, labels = _pixels(worker)
  data = tf.data.Dataset.from_tensors((pixels.reshape(6, 2, 2, 1), labels))
  distributed = strategy.distribute_datasets_from_function(lambda context: data)
  model.fit(distributed, steps_per_epoch=1, verbose=0)
  return model.classifier.get_weights()[0]


def _run_example(strategy):
  """The README's ten lines, with the strategy of this test."""
  code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
  code = code.replace("tf.distribute.MultiWorkerMirroredStrategy()", "strategy")
  rng = np.random.default_rng(0)
  names = {
    "strategy": strategy,
    "make_network": _network_without_batch_norm,
    "images": rng.uniform(size=(256, 8, 8, 1)).astype("f4"),
    "labels": rng.integers(0, 10, size=256),
  }
  exec(compile(code, "README.md", "exec"), names)
  return [v.numpy() for v in names["model"].classifier.trainable_variables]


def _in_two_workers():
  workers = _workers()
  cluster, strategy = workers.cluster, workers.strategy
  return {
    "same_images": _train_on_the_same_images(cluster.index, 2, strategy),
    "once_more": _train_on_the_same_images(cluster.index, 2, strategy),
    "batch_norm": _train_with_batch_norm(cluster.index, strategy),
    "example": _run_example(strategy),
    "clipped": _clipped_step(cluster.index, strategy),
  }


def _run_on_records(*flags):
  """A whole run, as run_dat.py does it; returns what this worker is left with."""
  cluster = Cluster.from_environment()
  flags = [flag.replace("WORKER", str(cluster.index)) for flag in flags]
  config = config_lib.parse(["run_dat.py", *flags])
  with opened(config, cluster) as run:
    training.train(run, run.trainee)
    evaluating.evaluate(run, run.trainee)
    model, test = run.trainee.model, run.inputs.test
    return {
      "steps": run.inputs.train.steps,
      "weights": [v.numpy() for v in model.classifier.trainable_variables],
      "figures": model.evaluate(
        run.distribute(run.inputs.evaluation_batches(test)),
        steps=test.steps,
        return_dict=True,
        verbose=0,
      ),
    }


def _write(directory, name, sizes):
  """One TFRecord file of digits for each size; some hold far more than others."""
  rng = np.random.default_rng(len(sizes))
  for number, size in enumerate(sizes):
    examples = [
      writing.image_example(rng.integers(0, 256, size=(8, 8, 1), dtype="u1"), label)
      for label in rng.integers(0, 10, size=size)
    ]
    writing.write_shards(examples, directory, f"{name}{number}", 1)


class TwoWorkersTest(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workers = run_workers(_in_two_workers, 2)

  def test_both_workers_have_the_same_weights_bit_for_bit(self):
    for first, second in (
      [worker["same_images"][0] for worker in self.workers],
      [worker["batch_norm"]["weights"] for worker in self.workers],
      [worker["example"] for worker in self.workers],
    ):
      for mine, theirs in zip(first, second):
        self.assertAllEqual(mine, theirs)

  def test_two_workers_train_as_one_with_twice_the_batch(self):
    strategy = tf.distribute.get_strategy()
    weights, logs = _train_on_the_same_images(0, 1, strategy)
    start = np.concatenate([w.ravel() for w in self.initial_weights()])
    one = np.concatenate([w.ravel() for w in weights])
    for worker in self.workers:
      two_weights, two_logs = worker["same_images"]
      two = np.concatenate([w.ravel() for w in two_weights])
      # Sums over 64 images are taken in another order, and a convolution's last bits
      # depend on the batch size: five steps of LAMB, whose first steps divide by the
      # gradient's own size, make some 1e-6 of it. The weights themselves moved 0.05.
      self.assertGreater(np.abs(one - start).max(), 0.02)
      self.assertAllClose(two, one, rtol=0, atol=2e-5)
      self.assertAllClose(two_logs["loss"], logs["loss"], rtol=1e-5)
      self.assertAllClose(two_logs["robust_accuracy"], logs["robust_accuracy"])

  def test_one_seed_gives_the_same_weights_bit_for_bit(self):
    weights, again = self.workers[0]["same_images"][0], self.workers[0]["once_more"][0]
    for first, second in zip(weights, again):
      self.assertAllEqual(first, second)

  def initial_weights(self):
    tf.keras.utils.set_random_seed(0)
    return _network_without_batch_norm().get_weights()

  def test_batch_statistics_are_averaged_at_the_end_of_an_epoch(self):
    first, second = (worker["batch_norm"] for worker in self.workers)
    self.assertTrue(
      any(np.any(a != b) for a, b in zip(first["before"], second["before"]))
    )
    for a, b, mean in zip(first["before"], second["before"], first["after"]):
      self.assertAllClose(mean, (a + b) / 2, atol=1e-7)
    for mine, theirs in zip(first["after"], second["after"]):
      self.assertAllEqual(mine, theirs)

  def test_each_worker_clips_its_own_gradient_before_they_are_averaged(self):
    gradients = []
    for pixels, labels in map(_pixels, range(2)):
      error = 1 / 3 - np.eye(3)[labels]  # all logits are 0
      gradients.append(pixels.astype("f8").T @ error / len(labels))
    first, second = map(np.linalg.norm, gradients)
    self.assertLess(first, CLIP_NORM)
    self.assertGreater(second, 2 * CLIP_NORM)
    expected = -(gradients[0] + gradients[1] * CLIP_NORM / second) / 2
    for worker in self.workers:
      self.assertAllClose(worker["clipped"], expected, rtol=1e-5, atol=1e-8)

  def test_what_one_worker_decides_holds_for_both(self):
    for worker in self.workers:
      # Worker 1 asked to stop in the first epoch; the chief lowered the rate to 0.05.
      self.assertEqual(worker["batch_norm"]["epochs"], 1)
      self.assertAllClose(worker["batch_norm"]["learning_rate"], 0.05)

  def test_only_the_chief_leaves_a_checkpoint(self):
    chief, other = (worker["batch_norm"]["files"] for worker in self.workers)
    self.assertIn("epoch-1.index", chief)
    self.assertEqual(other, [])


def _freeze_one():
  """Worker 1 stands still for longer than TensorFlow's own heartbeat would bear."""
  workers = _workers()
  workers.wait()
  index = workers.cluster.index
  if index:
    pid = os.getpid()
    subprocess.Popen(["sh", "-c", f"kill -STOP {pid}; sleep 15; kill -CONT {pid}"])
    time.sleep(1)
  return workers.largest(index)


@pytest.mark.long
class SilenceTest(tf.test.TestCase):
  def test_a_worker_may_be_silent_for_a_while(self):
    self.assertEqual(run_workers(_freeze_one, 2), [1, 1])


@pytest.mark.long
class RecordsTest(tf.test.TestCase):
  def test_unequal_shards_train_and_each_test_image_counts_once(self):
    directory = self.get_temp_dir()
    _write(directory, "train", [5, 40, 7])
    _write(directory, "test", [3, 20])
    # A worker's own files: the pattern is another one on each.
    flags = [
      f"--model_dir={directory}/run",
      f"--train_data={directory}/trainWORKER-*",
      "--data_is_local",
      f"--test_data={directory}/test*",
      f"--validation_data={directory}/test*",
      "--evaluate_every=1",
      "--early_stopping=1",
      "--global_batch_size=12",
      "--epochs=1",
      "--attack_steps=1",
      "--evaluation_attack_steps=3",
      "--epsilon=0.1",
      "--learning_rate=0.001",
      "--pictures=2",
    ]
    two = run_workers(_run_on_records, 2, *flags)
    # The larger has 40 images, in batches of 6.
    self.assertEqual([worker["steps"] for worker in two], [7, 7])
    # Nothing is left to train: three workers evaluate what the two have trained.
    three = run_workers(_run_on_records, 3, *flags)
    for worker in (*two, *three):
      self.assertEqual(worker["figures"]["examples"], 23)
      for name, value in two[0]["figures"].items():
        self.assertAllClose(worker["figures"][name], value, atol=1e-6)
      for mine, theirs in zip(worker["weights"], two[0]["weights"]):
        self.assertAllEqual(mine, theirs)
