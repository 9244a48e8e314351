"""run_dat.py with quantized gradients, early stopping, and workers that differ."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import shutil
import socket

import numpy as np
import pytest
import tensorflow as tf
from program_case import (
  TEST,
  TRAIN,
  ProgramCase,
  digits,
  forget_accuracies,
  logged,
  results,
  run_all,
  run_dat,
)
from sklearn.datasets import load_digits

from dat_tf.data import writing


class QuantizedTest(ProgramCase):
  """Runs whose gradients do not travel in float32, one with averaged weights."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    fast = {**cls.flags, "mode": "train", "pictures": 0, "decay": "constant"}
    feedback = {"all_reduce": "two_sided", "bits": 2, "error_feedback": True}
    feedback["full_precision_below"] = 0
    average = {"weight_average": "exponential", "average_decay": 0.5}
    runs = {
      "feedback": {**fast, **feedback},
      "auto": {**fast, "all_reduce": "auto", "bits": 4, "attack_precision": "auto"},
      "fp16": {
        **fast,
        **average,
        "all_reduce": "fp16",
        "full_precision_names": "logits",
      },
    }
    for name in runs:
      runs[name]["model_dir"] = cls.folder / name
    cls.runs = run_all(runs)
    cls.more = run_dat({**runs["feedback"], "epochs": 2})

  def test_each_trains(self):
    for name, run in self.runs.items():
      self.assert_good(run)
      self.assertRegex(run.stderr, r"epoch 1: 3/3 .*loss=\d")
      # One worker sends nothing.
      self.assertEqual(results(self.folder / name)["bytes_sent_per_step"], 0)

  def test_tensorboard_shows_what_the_reduction_costs(self):
    tags = {tag for tag, _ in logged(self.folder / "feedback", "train")}
    times = {"encode_ms", "exchange_ms", "decode_ms", "reduction_ms"}
    self.assertContainsSubset(
      times | {"quantization_error", "bytes_sent_per_step"}, tags
    )

  def test_what_quantization_lost_is_in_the_checkpoint(self):
    self.assert_good(self.more)
    newest = tf.train.latest_checkpoint(str(self.folder / "feedback/checkpoints"))
    shapes = dict(tf.train.list_variables(newest))
    shapes |= dict(tf.train.list_variables(f"{newest}-worker-0-of-1"))
    lost = [name for name in shapes if name.startswith("residual/")]
    network = [n for n in shapes if n.startswith("classifier/") and "kernel" in n]
    network = [n for n in network if "OPTIMIZER_SLOT" not in n]
    self.assertCountEqual([shapes[n] for n in lost], [shapes[n] for n in network])
    reader = tf.train.load_checkpoint(f"{newest}-worker-0-of-1")
    for name in lost:
      self.assertGreater(np.abs(reader.get_tensor(name)).max(), 0)

  def test_the_average_is_what_is_exported(self):
    folder = self.folder / "fp16"
    reader = tf.train.load_checkpoint(str(folder / "checkpoints"))
    model = tf.keras.models.load_model(str(folder / "export"), compile=False)
    for i, weight in enumerate(model.weights):
      stored = f"average/_averages/{i}/.ATTRIBUTES/VARIABLE_VALUE"
      self.assertAllClose(weight, reader.get_tensor(stored))
    trained = [
      reader.get_tensor(name)
      for name, shape in reader.get_variable_to_shape_map().items()
      if "_averages/" not in name and "OPTIMIZER_SLOT" not in name
      if shape == list(model.layers[-1].kernel.shape)
    ]
    self.assertLen(trained, 1)
    self.assertNotAllClose(trained[0], model.layers[-1].kernel)

  def test_auto_says_in_what_it_attacks(self):
    said = re.search(r"The attack computes in (\w+): .+\.\n", self.runs["auto"].stdout)
    chosen = results(self.folder / "auto")["attack_precision"]
    self.assertEqual(said[1], chosen)

  def test_auto_says_what_it_chose(self):
    figure = r"(\d\S*) ms"
    found = re.search(
      rf"--all_reduce=auto: fp32 {figure}, two_sided {figure} a step; (\S+) it is.\n",
      self.runs["auto"].stdout,
    )
    plain, quantized = float(found[1]), float(found[2])
    self.assertEqual(found[3], "fp32" if plain <= quantized else "two_sided")


class EarlyStoppedTest(ProgramCase):
  """A run that ends by itself, of which the best averaged weights remain."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    data = load_digits()
    others = slice(TRAIN + TEST, TRAIN + TEST + 40)
    images = np.rint(data.images[others, ..., None] * (255 / 16)).astype("u1")
    examples = list(map(writing.image_example, images, data.target[others]))
    writing.write_shards(examples, str(cls.folder / "data"), "validation", 1)
    cls.stopped = cls.folder / "stopped"
    flags = {
      **cls.flags,
      "epochs": 50,  # there are but 41 accuracies
      "validation_data": cls.folder / "data" / "validation-*",
      "evaluate_every": 1,
      "early_stopping": 1,
      "weight_average": "exponential",
      "average_decay": 0.5,
      "pictures": 0,
    }
    cls.first = run_dat({**flags, "model_dir": cls.stopped})
    if cls.first.returncode:
      raise AssertionError(cls.first.stderr)
    cls.runs = {}
    for name, mode in (("again", "train_and_evaluate"), ("evaluate", "evaluate")):
      folder = cls.folder / f"stopped_{name}"
      shutil.copytree(cls.stopped, folder)
      if name == "again":  # as one that was stopped before it wrote what it reached
        (folder / "results.json").unlink()
      else:
        forget_accuracies(folder)
      cls.runs[name] = {**flags, "mode": mode, "model_dir": folder}
    cls.runs = run_all(cls.runs)
    (cls.best,) = (cls.stopped / "best").glob("epoch-*.index")
    cls.best = int(cls.best.stem.removeprefix("epoch-"))

  def test_it_ends_an_epoch_after_the_best(self):
    self.assert_good(self.first)
    shown = re.findall(
      r"^epoch (\d+): .*val_robust_accuracy=(\d\.\d+)", self.first.stderr, re.M
    )
    accuracies = [float(accuracy) for _, accuracy in dict(shown).items()]
    self.assertLen(accuracies, self.best + 1)
    for earlier, later in zip(accuracies, accuracies[1:-1]):
      self.assertGreater(later, earlier)
    self.assertLessEqual(accuracies[-1], accuracies[-2])
    self.assertEqual(results(self.stopped)["epochs"], self.best + 1)

  def test_the_best_averages_are_exported_and_evaluated(self):
    model = tf.keras.models.load_model(str(self.stopped / "export"))
    of_epoch = {
      epoch: tf.train.load_checkpoint(str(self.stopped / f"checkpoints/epoch-{epoch}"))
      for epoch in (self.best, self.best + 1)
    }
    differs = False
    for index, weight in enumerate(model.weights):
      best, last = (
        reader.get_tensor(f"average/_averages/{index}/.ATTRIBUTES/VARIABLE_VALUE")
        for reader in of_epoch.values()
      )
      self.assertAllEqual(weight, best)
      differs |= not np.array_equal(best, last)
    self.assertTrue(differs)
    images, labels = digits()
    logits = model(images[TRAIN:] / np.float32(255), training=False)
    accuracy = np.mean(np.argmax(logits, axis=1) == labels[TRAIN:])
    figures = results(self.stopped)
    self.assertAllClose(accuracy, figures["standard_accuracy"], atol=1e-6)

  def test_the_same_command_again_says_that_it_is_done(self):
    run = self.runs["again"]
    self.assert_good(run)
    self.assertNotIn("epoch", run.stderr)
    done = f"epoch {self.best + 1} is done; a larger --early_stopping adds more.\n"
    self.assertStartsWith(run.stdout, f"{self.folder / 'stopped_again'}: {done}")

  def test_evaluation_by_itself_is_of_the_best(self):
    self.assert_good(self.runs["evaluate"])
    self.assertEqual(results(self.folder / "stopped_evaluate"), results(self.stopped))

  def test_results_that_were_not_written_yet(self):
    lost = {"train_seconds": None, "examples_per_second": None}
    self.assertEqual(
      results(self.folder / "stopped_again"), {**results(self.stopped), **lost}
    )


@pytest.mark.long
class InitializedTest(ProgramCase):
  """Transfer learning: a second run begins with the weights of a first."""

  def kernels(self, name):
    path = str(self.folder / name / "export")
    weights = tf.keras.models.load_model(path, compile=False).get_weights()
    return [weight for weight in weights if weight.ndim > 1]

  def test_only_the_head_is_trained_and_a_restart_goes_on(self):
    flags = {**self.flags, "mode": "train", "pictures": 0}
    self.assert_good(run_dat({**flags, "model_dir": self.folder / "first"}))
    tuned = {
      **flags,
      "model_dir": self.folder / "tuned",
      "initialize_from": self.folder / "first",
      "layer_decay": 0,
    }
    begun = run_dat({**tuned, "attack": "none", "attack_steps": None}, num_workers=2)
    self.assertEqual(begun.returncode, 0, begun.stderr + begun.stdout)
    self.assertIn(f"begins with {self.folder / 'first'}", begun.stdout)
    first, after_one = self.kernels("first"), self.kernels("tuned")
    for a, b in zip(first[:-1], after_one[:-1]):
      self.assertAllEqual(a, b)
    self.assertNotAllClose(first[-1], after_one[-1], atol=1e-4)
    on = run_dat({**tuned, "attack": "none", "attack_steps": None, "epochs": 2})
    self.assertEqual(on.returncode, 0, on.stderr)
    self.assertNotIn("begins with", on.stdout)
    self.assertEqual(results(self.folder / "tuned")["epochs"], 2)
    for a, b in zip(first[:-1], self.kernels("tuned")[:-1]):
      self.assertAllEqual(a, b)
    self.assertNotAllClose(after_one[-1], self.kernels("tuned")[-1], atol=1e-4)


class UnlikeWorkersTest(ProgramCase):
  def test_workers_with_other_flags_are_told_before_the_first_step(self):
    with contextlib.ExitStack() as stack:
      sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
      for listener in sockets:
        listener.bind(("127.0.0.1", 0))
      addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]

    def run(index):
      task = {"type": "worker", "index": index}
      config = {"cluster": {"worker": addresses}, "task": task}
      flags = {**self.flags, "model_dir": self.folder / "run", "seed": index}
      return run_dat(flags, TF_CONFIG=json.dumps(config))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      for finished in pool.map(run, range(2)):
        self.assert_mistake(finished, "Worker 1", "--seed=1", "worker 0", "--seed=0")
    self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
  tf.test.main()
