"""run_dat.py from end to end, on one worker, in processes of its own."""

from __future__ import annotations

import os
import pathlib
import shutil
import struct

import numpy as np
import tensorflow as tf
from program_case import (
  BATCH,
  STEPS,
  TEST,
  TRAIN,
  ProgramCase,
  contents,
  digits,
  forget_accuracies,
  logged,
  results,
  run_all,
  run_dat,
)

from dat_tf import config as config_lib
from dat_tf.base import stack
from dat_tf.data import writing
from dat_tf.monitoring import read_events


class TrainedTest(ProgramCase):
  """One short run, and what can be done with what it wrote."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.trained = cls.folder / "trained"
    watched = {"evaluate_every": 1, "log_every": 2, "pictures": 2}
    cls.first = run_dat({**cls.flags, **watched, "model_dir": cls.trained})
    if cls.first.returncode:
      raise AssertionError(cls.first.stderr)
    runs = {
      "again": {**watched},
      "more": {"mode": "train", "epochs": 2, "pictures": 0, "profile_steps": "2,3"},
      "changed": {"epsilon": 0.2},
      "evaluate": {"mode": "evaluate"},
      "export": {"mode": "export", "export_formats": "keras,serving"},
      "diverging": {
        "epochs": 3,
        "pictures": 0,
        "learning_rate": "1e30",
        "mode": "train",
      },
    }
    for name, flags in runs.items():
      shutil.copytree(cls.trained, cls.folder / name)
      runs[name] = {**cls.flags, **flags, "model_dir": cls.folder / name}
    flagfile = cls.folder / "evaluate" / "config.flags"
    forget_accuracies(cls.folder / "evaluate")
    shutil.rmtree(cls.folder / "export" / "export")
    # The saved flagfile serves as well as the flags it was made of.
    runs["evaluate"] = {
      "flagfile": flagfile,
      "mode": "evaluate",
      "model_dir": flagfile.parent,
      "probe_images": 20,
    }
    # As if the first run had had this rate.
    flagfile = cls.folder / "diverging" / "config.flags"
    old = flagfile.read_text()
    flagfile.write_text(
      old.replace("--learning_rate=0.01\n", "--learning_rate=1e+30\n")
    )
    cls.runs = run_all(runs)

  def test_the_terminal_shows_progress_and_nothing_else(self):
    self.assert_good(self.first)
    report = self.trained / "report.html"
    self.assertEqual(self.first.stdout, f"{report}: what was measured, to look at.\n")
    shown = self.first.stderr
    self.assertRegex(shown, r"epoch 1: 3/3 .*loss=\d.*accuracy=0.*robust_accuracy=0")
    self.assertRegex(shown, r"epoch 1: 3/3 .*val_accuracy=0.*val_robust_accuracy=0")
    self.assertRegex(shown, r"evaluating: 2/2 .*loss=\d.*accuracy=0.*robust_accuracy=0")

  def test_the_directory_holds_what_it_should(self):
    self.assertCountEqual(
      os.listdir(self.trained),
      ["config.flags", "checkpoints", "export", "logs", "results.json"]
      + ["report", "report.html", "events.jsonl"],
    )
    events = read_events(str(self.trained / "events.jsonl"))
    names = ["start", "first_step", "save", "trained"]
    self.assertEqual([event["event"] for event in events], names)
    self.assertEqual([event["step"] for event in events], [0, 1, STEPS, STEPS])
    size = sum(
      x.stat().st_size for x in (self.trained / "checkpoints").glob("epoch-1*")
    )
    self.assertEqual(events[2]["bytes"], size)
    self.assertBetween(events[2]["seconds_per_step"], 1e-6, 60.0)
    page = (self.trained / "report.html").read_text()
    self.assertIn(f"{100 * results(self.trained)['standard_accuracy']:.1f} %", page)
    flagfile = self.trained / "config.flags"
    config = config_lib.parse(["", f"--flagfile={flagfile}"])
    self.assertEqual((config.epsilon, config.attack_steps), (0.1, 1))
    newest = tf.train.latest_checkpoint(str(self.trained / "checkpoints"))
    self.assertEqual(os.path.basename(newest), "epoch-1")

  def test_results_keep_the_contract(self):
    figures = results(self.trained)
    expected = {
      "epochs": 1,
      "global_batch_size": BATCH,
      "num_workers": 1,
      "bytes_sent_per_step": 0,
      "test_examples": TEST,
    }
    self.assertEqual({name: figures[name] for name in expected}, expected)
    self.assertEqual(set(figures["robust_accuracy"]), {"pgd-2"})
    for accuracy in (figures["standard_accuracy"], figures["robust_accuracy"]["pgd-2"]):
      self.assertIsInstance(accuracy, float)
      # A whole number of the test images.
      self.assertAllClose(accuracy * TEST, round(accuracy * TEST), atol=1e-4)
      self.assertBetween(accuracy, 0.0, 1.0)
    for name in ("trained_with", "evaluated_with"):
      self.assertEqual(figures[name], stack.versions())
    page = (self.trained / "report.html").read_text()
    for version in stack.versions().values():
      self.assertIn(version, page)
    for name in ("train_seconds", "examples_per_second"):
      self.assertIsInstance(figures[name], float)
      self.assertGreater(figures[name], 0)

  def test_the_export_has_the_accuracy_that_was_measured(self):
    images, labels = digits()
    figures = results(self.trained)
    # The second one was made anew from the checkpoint.
    for folder in (self.trained, self.folder / "export"):
      model = tf.keras.models.load_model(str(folder / "export"))
      logits = model(images[TRAIN:] / np.float32(255), training=False)
      accuracy = np.mean(np.argmax(logits, axis=1) == labels[TRAIN:])
      self.assertAllClose(accuracy, figures["standard_accuracy"], atol=1e-6)
      self.assertEqual(model.count_params(), figures["parameters"])
    self.assert_good(self.runs["export"])
    images = images[TRAIN:].astype("f4") / 255
    logits = model(images, training=False)
    keras = tf.keras.models.load_model(str(self.folder / "export" / "export.keras"))
    self.assertAllClose(keras(images, training=False), logits, atol=1e-4)
    serving = tf.saved_model.load(str(self.folder / "export" / "serving"))
    served = serving.signatures["serving_default"](image=tf.constant(images))
    self.assertAllClose(served["logits"], logits, atol=1e-4)
    self.assertAllClose(served["probabilities"], tf.nn.softmax(logits), atol=1e-4)

  def test_tensorboards_logs(self):
    tags = {name: logged(self.trained, name) for name in ("train", "test")}
    for tag in (
      "loss",
      "robust_accuracy",
      "learning_rate",
      "trust_ratio/logits/kernel",
    ):
      self.assertIn((tag, 2), tags["train"])
    self.assertIn(("clean_perturbation_adversarial", STEPS), tags["train"])
    for tag in ("accuracy", "robust_accuracy"):
      self.assertIn((tag, STEPS), tags["test"])

  def test_the_same_command_again_trains_no_more(self):
    run = self.runs["again"]
    self.assert_good(run)
    self.assertNotIn("epoch", run.stderr)
    again = self.folder / "again"
    self.assertEqual(results(again), results(self.trained))
    checkpoints = contents(self.trained / "checkpoints")
    self.assertEqual(contents(again / "checkpoints"), checkpoints)

  def test_more_epochs_continue_from_the_checkpoint(self):
    run = self.runs["more"]
    self.assert_good(run)
    self.assertStartsWith(run.stderr, f"training: {STEPS}/{2 * STEPS} ")
    self.assertIn(f"epoch 2: {2 * STEPS}/{2 * STEPS} ", run.stderr)
    self.assertNotIn("epoch 1", run.stderr)
    more = self.folder / "more"
    self.assertEqual(results(more)["epochs"], 2)
    newest = tf.train.load_checkpoint(str(more / "checkpoints"))
    steps = newest.get_tensor("optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE")
    self.assertEqual(steps, 2 * STEPS)
    self.assertIn("--epochs=2\n", (more / "config.flags").read_text())
    self.assertNotEmpty(list((more / "logs").rglob("*.xplane.pb")))

  def test_a_changed_flag_is_refused(self):
    run = self.runs["changed"]
    self.assert_mistake(run, "--epsilon=0.1", "--epsilon=0.2", "--model_dir")
    self.assertEqual(contents(self.folder / "changed"), contents(self.trained))

  def test_evaluation_by_itself_gives_the_same_accuracies(self):
    self.assert_good(self.runs["evaluate"])
    self.assertNotRegex(self.runs["evaluate"].stderr, "training|epoch")
    found = results(self.folder / "evaluate")
    self.assertEqual(found.pop("probed_images"), 20)
    unprobed = {"warnings": [], "probed_images": 0}
    self.assertEqual({**found, **unprobed}, results(self.trained))

  def test_evaluation_probes_whether_its_attack_can_be_trusted(self):
    with np.load(self.folder / "evaluate" / "evaluation" / "probes.npz") as probes:
      self.assertLen(probes["example_id"], 20)
    page = (self.folder / "evaluate" / "report.html").read_text()
    for section in ("Attack strength", "Images"):
      self.assertIn(f">{section}</h2>", page)
    for warning in results(self.folder / "evaluate")["warnings"]:
      self.assertIn(warning["message"], self.runs["evaluate"].stdout)

  def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(self):
    # The fourth step is the first with the large rate; the fifth meets its weights.
    diverging = self.folder / "diverging"
    newest = str(diverging / "checkpoints" / "epoch-1")
    self.assert_mistake(
      self.runs["diverging"], "not finite at step 5:", "--learning_rate", newest
    )
    self.assertEqual(results(diverging), results(self.trained))
    for name in ("checkpoints", "export"):
      self.assertEqual(contents(diverging / name), contents(self.trained / name))


def payload_start(path, number):
  """Where the data of a TFRecord file's record begins, by the file's framing."""
  start = 0
  for _ in range(number):
    (length,) = struct.unpack_from("<Q", path.read_bytes(), start)
    start += 8 + 4 + length + 4
  return start + 8 + 4


class MistakesTest(ProgramCase):
  """Runs in new directories, most of which a user's mistake ends."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    lacking = tf.train.Example.FromString(cls.examples[40])
    del lacking.features.feature["label"]
    eleventh = writing.image_example(digits()[0][5], 10)
    cls.bad = {
      "lacking": cls.write("lacking", 40, lacking.SerializeToString()),
      "label": cls.write("label", 5, eleventh),
      "corrupt": cls.write("corrupt", 50, cls.examples[50]),
    }
    damaged = bytearray(cls.bad["corrupt"].read_bytes())
    damaged[payload_start(cls.bad["corrupt"], 50) + 30] ^= 1
    cls.bad["corrupt"].write_bytes(damaged)
    clean = {"attack": "none", "attack_steps": None, "pictures": 0, "mode": "train"}
    runs = {
      "clean": {**clean, "test_data": None, "optimizer": "sgd"},
      "nothing": {"train_data": cls.folder / "nothing-*"},
      # The parts of a batch are training's alone.
      "no_checkpoint": {"mode": "evaluate", "accumulation": 5},
      # Found while it trains, or while the pictures for TensorBoard are read.
      "lacking": {**clean, "train_data": cls.bad["lacking"]},
      "corrupt": {**clean, "train_data": cls.bad["corrupt"]},
      "label": {**clean, "train_data": cls.bad["label"], "pictures": 8},
      "parts": {"accumulation": 5},
      "no_bounds": {
        **clean,
        "objective": "ibp",
        "epsilon_growing_epochs": 0.5,
        "model": "wide_resnet28_10_swish",
      },
    }
    for name, flags in runs.items():
      runs[name] = {**cls.flags, "model_dir": cls.folder / name, **flags}
    cls.runs = run_all(runs)

  @classmethod
  def write(cls, name, number, example):
    """A file of 64 records, of which that number is `example`."""
    examples = cls.examples[:64]
    examples[number] = example
    folder = cls.folder / "bad"
    return pathlib.Path(writing.write_shards(examples, str(folder), name, 1)[0])

  def test_clean_training(self):
    run = self.runs["clean"]
    self.assert_good(run)
    self.assertRegex(run.stderr, r"epoch 1: 3/3 .*loss=\d.*accuracy=0")
    self.assertNotIn("robust", run.stderr)
    written = results(self.folder / "clean")
    self.assertIsNone(written["standard_accuracy"])
    self.assertEqual(written["robust_accuracy"], {})
    self.assertEqual(written["epochs"], 1)

  def test_wrong_flags_and_tf_config_stop_the_run_before_tensorflow_starts(self):
    (self.folder / "tensorflow.py").write_text("raise SystemExit('TensorFlow starts')")
    flags = {**self.flags, "model_dir": self.folder / "new"}
    without_tensorflow = {"PYTHONPATH": str(self.folder)}
    self.assertIn("TensorFlow starts", run_dat(flags, **without_tensorflow).stderr)
    missing = str(self.folder / "missing.flags")
    for name, value, *words in (
      ("epsilom", 1, "epsilom"),
      ("epsilon", -1, "--epsilon", "(0, inf)"),
      ("warmup_epochs", 2, "--warmup_epochs=2", "--epochs=1"),
      ("flagfile", missing, missing),
    ):
      self.assert_mistake(run_dat({**flags, name: value}, **without_tensorflow), *words)
    run = run_dat(flags, TF_CONFIG="{'cluster': 1}", **without_tensorflow)
    self.assert_mistake(run, "TF_CONFIG is not JSON")

  def test_a_pattern_that_matches_nothing(self):
    self.assert_mistake(self.runs["nothing"], str(self.folder / "nothing-*"))

  def test_no_checkpoint_to_evaluate(self):
    directory = self.folder / "no_checkpoint"
    self.assert_mistake(self.runs["no_checkpoint"], str(directory), "--mode=train")
    self.assertFalse(directory.exists())

  def test_what_the_network_or_the_batch_does_not_allow(self):
    for name, words in (
      ("parts", ("--accumulation=5", f"{BATCH} images")),
      ("no_bounds", ("no bounds for the layer", "plain_cnn")),
    ):
      self.assert_mistake(self.runs[name], *words)
      self.assertFalse((self.folder / name).exists())

  def test_a_record_that_lacks_a_feature(self):
    run = self.runs["lacking"]
    self.assert_mistake(run, f"{self.bad['lacking']}: record 40 ", "lacks 'label'")

  def test_a_record_that_fails_its_checksum(self):
    run = self.runs["corrupt"]
    self.assert_mistake(run, f"{self.bad['corrupt']}: record 50 ", "checksum")

  def test_a_label_outside_the_models_classes(self):
    run = self.runs["label"]
    self.assert_mistake(
      run, f"{self.bad['label']}: record 5 ", "label 10", "--num_classes"
    )
