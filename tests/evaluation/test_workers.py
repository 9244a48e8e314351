"""Whole evaluations by --attacks, in real processes."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from folder_case import FolderCase

from dat_tf import config as config_lib
from dat_tf.attacks import LInfinity, make_attacks
from dat_tf.data import writing
from dat_tf.evaluation import Evaluator
from dat_tf.objectives import is_certified
from dat_tf.workers.cluster import Cluster
from workers import run_workers

SHAPE, CLASSES, SIZES = (8, 8, 1), 10, (30, 7, 15)
COUNT = sum(SIZES)
ATTACKS = "pgd-5x2", "cw-pgd-5"


def _run(flags):
  from dat_tf.program import modes

  config = config_lib.parse(["run_dat.py", *flags])
  modes.run(config, Cluster.from_environment())


def _interrupted(flags):
  """Ends each worker when it has written its first portion of the second attack."""
  from dat_tf.evaluation.outcomes import Store

  add = Store.add

  def add_and_stop(store, worker, rows):
    add(store, worker, rows)
    if store.name == ATTACKS[1]:
      raise StopIteration

  Store.add = add_and_stop
  try:
    _run(flags)
  except StopIteration:
    pass


class WorkersTest(FolderCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    rng = np.random.default_rng(0)
    cls.images = rng.integers(0, 256, (COUNT, *SHAPE), "u1")
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(1)
    cls.model = tf.keras.Sequential(
      [
        tf.keras.Input(SHAPE),
        layers.Rescaling(2.0, -1.0),
        layers.Conv2D(16, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(CLASSES),
      ]
    )
    cls.model.save(cls.folder / "model.keras")
    logits = cls.model(cls.images / np.float32(255))
    cls.labels = logits.numpy().argmax(axis=1)
    cls.labels[::9] = 3
    first = 0
    for number, size in enumerate(SIZES):
      part = slice(first, first + size)
      examples = map(writing.image_example, cls.images[part], cls.labels[part])
      writing.write_shards(examples, str(cls.folder), f"test{number}", 1)
      first += size
    cls.ids = np.concatenate([i * 2**32 + np.arange(n) for i, n in enumerate(SIZES)])

  def flags(self, name, **more):
    values = {
      "mode": "evaluate",
      "model_dir": self.folder / name,
      "model_path": self.folder / "model.keras",
      "test_data": self.folder / "test*",
      "attacks": ",".join(ATTACKS),
      "epsilon": 0.02,
      "global_batch_size": 6,
      "probe_images": 0,
      **more,
    }
    return [f"--{key}={value}" for key, value in values.items() if value is not None]

  def tables(self, name):
    """{attack: its columns}, of the directory of a run."""
    found = {}
    for attack in ATTACKS:
      with np.load(self.folder / name / "evaluation" / f"{attack}.npz") as file:
        found[attack] = dict(file)
    return found

  def check_same(self, one, other):
    for attack in ATTACKS:
      for column in one[attack]:
        self.assertAllEqual(one[attack][column], other[attack][column])

  def test_two_workers_find_what_the_evaluator_finds_alone(self):
    run_workers(_run, 2, self.flags("two", probe_images=20))
    attacks = {name: make_attacks(name, LInfinity(0.02)).values() for name in ATTACKS}
    model = self.model
    evaluator = Evaluator(lambda x: model(x, training=False), attacks, batch_size=6)
    # As the pipeline has them, to the last bit.
    levels = tf.bitcast(self.images, tf.quint8)
    images = tf.quantization.dequantize(levels, 0.0, 1.0, "MIN_COMBINED").numpy()
    prediction, outcomes = evaluator(images, self.labels, self.ids)
    results = json.loads((self.folder / "two" / "results.json").read_text())
    for attack, table in self.tables("two").items():
      outcome = outcomes[attack]
      self.assertAllEqual(table["example_id"], self.ids)
      self.assertAllEqual(table["label"], self.labels)
      self.assertAllEqual(table["prediction"], prediction)
      self.assertAllEqual(table["norm"], outcome.norm)
      self.assertAllEqual(table["attack"], outcome.attack)
      self.assertAllEqual(table["adversarial_prediction"], outcome.prediction)
      self.assertIn(outcome.broken.sum(), range(10, COUNT))
      self.assertAlmostEqual(
        results["robust_accuracy"][attack], outcome.robust_accuracy
      )
    self.assertAlmostEqual(
      results["standard_accuracy"], np.mean(prediction == self.labels)
    )
    self.assertEqual(
      {key: results[key] for key in ("test_examples", "norm", "epsilon", "warnings")},
      {"test_examples": COUNT, "norm": "linf", "epsilon": 0.02, "warnings": []},
    )
    left = os.listdir(self.folder / "two" / "evaluation")
    self.assertCountEqual(left, ["probes.npz", *(f"{name}.npz" for name in ATTACKS)])
    with np.load(self.folder / "two" / "evaluation" / "probes.npz") as probes:
      self.assertAllEqual(probes["example_id"], self.ids[:20])
    flagfile = self.folder / "two" / "config.flags"
    self.assertEqual(config_lib.parse(["", f"--flagfile={flagfile}"]).epsilon, 0.02)

  def test_a_later_evaluation_keeps_earlier_warnings(self):
    layers = tf.keras.layers
    hidden = tf.keras.Sequential(  # its gradient is 0
      [tf.keras.Input(SHAPE), layers.Rescaling(1e5, -5e4), layers.Activation("sigmoid")]
    )
    hidden.add(layers.Flatten())
    hidden.add(layers.Dense(CLASSES))
    hidden.save(self.folder / "hidden.keras")
    found = []
    for attack, images in (("pgd-2", 20), ("bim-2", 0)):
      more = {"model_path": self.folder / "hidden.keras", "attacks": attack}
      run_workers(_run, 1, self.flags("hidden", **more, probe_images=images))
      results = json.loads((self.folder / "hidden" / "results.json").read_text())
      found.append({warning["check"] for warning in results["warnings"]})
    first, second = found
    self.assertIn("pgd-2_weaker_than_noise", first)
    self.assertContainsSubset(first, second)
    self.assertIn("bim-2_weaker_than_noise", second)

  def test_transfer_attacks_are_made_on_the_source(self):
    layers = tf.keras.layers
    wide = tf.keras.Sequential(  # the same function, of pixels up to 255
      [
        tf.keras.Input(SHAPE),
        layers.Rescaling(1 / 255, name="to_one"),
        *self.model.layers,
      ]
    )
    wide.save(self.folder / "wide.keras")
    other = tf.keras.Sequential(
      [tf.keras.Input(SHAPE), layers.Flatten(), layers.Dense(CLASSES)]
    )
    other.save(self.folder / "other.keras")
    found = {}
    for name, high in (("wide", "255"), ("other", "1")):
      flags = self.flags(
        "transferred",
        attacks="fgsm,transfer-fgsm",
        source_model_path=self.folder / f"{name}.keras",
        source_input_range=f"0,{high}",
      )
      run_workers(_run, 1, flags)
      folder = self.folder / "transferred" / "evaluation"
      for attack in ("fgsm", "transfer-fgsm"):
        with np.load(folder / f"{attack}.npz") as file:
          found[name, attack] = dict(file)
    direct = found["wide", "fgsm"]["adversarial_prediction"]
    self.assertAllEqual(
      found["wide", "transfer-fgsm"]["adversarial_prediction"], direct
    )
    self.assertAllEqual(found["wide", "transfer-fgsm"]["sequence"], ["transfer-fgsm"])
    robust = {
      key: np.mean(rows["adversarial_prediction"] == rows["label"])
      for key, rows in found.items()
    }
    self.assertGreater(robust["other", "transfer-fgsm"], robust["other", "fgsm"])

  def test_other_data_in_files_of_the_same_names_and_sizes(self):
    for shift in (0, 1):
      labels = (self.labels[: SIZES[0]] + shift) % CLASSES
      folder = self.folder / f"shifted{shift}"
      examples = map(writing.image_example, self.images, labels)
      writing.write_shards(examples, str(folder), "test", 1)
    found = []
    for shift in (0, 1):
      more = {"test_data": self.folder / f"shifted{shift}" / "test*", "attacks": "fgsm"}
      run_workers(_run, 1, self.flags("shifted", **more))
      results = json.loads((self.folder / "shifted" / "results.json").read_text())
      found.append(results["standard_accuracy"])
      with np.load(self.folder / "shifted" / "evaluation" / "fgsm.npz") as table:
        self.assertAllEqual(table["label"], (self.labels[: SIZES[0]] + shift) % CLASSES)
    self.assertNotEqual(*found)

  @pytest.mark.long
  def test_one_and_three_workers_find_the_same_also_when_resumed(self):
    run_workers(_run, 1, self.flags("one"))
    run_workers(_interrupted, 3, self.flags("resumed"))
    evaluation = self.folder / "resumed" / "evaluation"
    self.assertCountEqual(
      os.listdir(evaluation),
      [f"{ATTACKS[0]}.npz", *(f"{ATTACKS[1]}.part-{i}.npz" for i in range(3))],
    )
    run_workers(_run, 2, self.flags("resumed"))
    self.check_same(self.tables("one"), self.tables("resumed"))

  @pytest.mark.long
  def test_a_run_of_our_own(self):
    own = {"model_path": None, "train_data": self.folder / "test*", "epochs": 1}
    flags = self.flags("own", **own, mode="train_and_evaluate", evaluation_examples=9)
    run_workers(_run, 2, flags)
    results = json.loads((self.folder / "own" / "results.json").read_text())
    self.assertEqual(results["test_examples"], 9)
    self.assertCountEqual(results["robust_accuracy"], ATTACKS)
    exported = tf.keras.models.load_model(self.folder / "own" / "export", compile=False)
    images = self.images[:9] / np.float32(255)
    for table in self.tables("own").values():
      self.assertAllEqual(table["prediction"], exported(images).numpy().argmax(axis=1))
    run_workers(
      _run, 1, self.flags("own", **own, attacks="fgsm", evaluation_examples=9)
    )
    again = json.loads((self.folder / "own" / "results.json").read_text())
    robust = again.pop("robust_accuracy")
    self.assertCountEqual(robust, [*ATTACKS, "fgsm"])
    self.assertEqual(robust, {**results.pop("robust_accuracy"), "fgsm": robust["fgsm"]})
    self.assertEqual(again, results)
    run_workers(
      _run, 1, self.flags("own", **own, attacks="fgsm", evaluation_examples=12)
    )
    of_twelve = json.loads((self.folder / "own" / "results.json").read_text())
    self.assertEqual(of_twelve["test_examples"], 12)
    self.assertCountEqual(of_twelve["robust_accuracy"], ["fgsm"])
    of_nine = json.loads((self.folder / "own" / "results_9.json").read_text())
    self.assertEqual(of_nine, {**again, "robust_accuracy": robust})
    run_workers(
      _run, 1, self.flags("own", **own, attacks="fgsm", evaluation_examples=9)
    )
    back = json.loads((self.folder / "own" / "results.json").read_text())
    self.assertEqual(back, of_nine)
    # PGD by its last points does not take the place of PGD by any of its points.
    found = []
    for attacks in (None, "pgd-2", None):
      small = {"evaluation_attack_steps": 2, "evaluation_step_size": 1e-6}
      run_workers(_run, 1, self.flags("own", **own, **small, attacks=attacks))
      results = json.loads((self.folder / "own" / "results.json").read_text())
      found.append(results["robust_accuracy"]["pgd-2"])
    self.assertGreater(found[0], found[1])
    self.assertEqual(found[1], found[2])

  @pytest.mark.long
  def test_certified_accuracy_is_that_of_the_same_images(self):
    flags = {
      "model_path": None,
      "train_data": self.folder / "test*",
      "model": "plain_cnn",
      "objective": "ibp",
      "attack": "none",
      "epsilon_growing_epochs": 0.5,
      "epsilon": 1e-4,
      "epochs": 1,
    }
    run_workers(
      _run, 1, self.flags("certified", **flags, mode="train_and_evaluate", attacks=None)
    )
    exported = tf.keras.models.load_model(
      self.folder / "certified" / "export", compile=False
    )
    images = self.images / np.float32(255)
    holds = is_certified(exported, images, self.labels, 1e-4).numpy()
    self.assertNotIn(holds.mean(), (0.0, 1.0))
    for more, count in (
      ({"attacks": None}, COUNT),
      ({"attacks": "fgsm", "evaluation_examples": 9}, 9),
      ({"attacks": "pgd-2", "evaluation_examples": COUNT}, COUNT),
    ):
      run_workers(_run, 1, self.flags("certified", **{**flags, **more}))
      results = json.loads((self.folder / "certified" / "results.json").read_text())
      self.assertEqual(results["test_examples"], count)
      self.assertAlmostEqual(
        results["certified_accuracy"], holds[:count].mean(), places=6
      )
    self.assertCountEqual(results["robust_accuracy"], ["pgd-20", "pgd-2"])

  @pytest.mark.long
  def test_mistakes_are_one_line(self):
    for name, more, pattern in (
      ("a", {"attacks": "pgd-5,autoatack"}, "No attack is called autoatack"),
      ("b", {"num_classes": 12}, "`num_classes=12`"),
      ("c", {"probabilities": True}, "drop `probabilities`"),
      ("e", {"attacks": "transfer-fgsm"}, "`source_model_path`"),
      (
        "f",
        {"source_model_path": "no/model"},
        "`source_model_path`=no/model: there is",
      ),
    ):
      with self.assertRaisesRegex(RuntimeError, f"UserError: .*{pattern}"):
        run_workers(_run, 1, self.flags(name, **more))
      self.assertFalse((self.folder / name).exists(), name)
