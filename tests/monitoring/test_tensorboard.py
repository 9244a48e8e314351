"""TensorBoard itself, in this process, and in a browser, shows what runs write."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import tempfile
import time
import unittest
import urllib.request

import browser
import numpy as np
import tensorflow as tf
from tensorboard import program
from tensorboard.util import tb_logging

from dat_tf import config as config_lib
from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import PGD, LInfinity
from dat_tf.monitoring import AttackedImages, Scalars, Summary, log_evaluation
from dat_tf.optimizers import LAMB

SCALARS = {"loss", "accuracy", "robust_accuracy", "gradient_norm", "learning_rate"}
SCALARS |= {"images_per_second", "bytes_sent_per_step", "reduction_ms"}
SCALARS |= {"trust_ratio/out/kernel"}
HISTOGRAMS = {"trust_ratios", "perturbation/pixels"}
HISTOGRAMS |= {"perturbation/linf_norm", "perturbation/l2_norm"}
PICTURE = "clean_perturbation_adversarial"
FIGURES = {"standard_accuracy": 0.5, "robust_accuracy": {"pgd-20": 0.25, "fgsm": 0.375}}


class Look(tf.keras.callbacks.Callback):
  """Calls a function in the middle of training."""

  def __init__(self, function):
    super().__init__()
    self._function = function

  def on_epoch_begin(self, epoch, logs=None):
    if epoch == 1:
      self._function()


class TensorBoardTest(tf.test.TestCase):
  """Two runs that differ in their learning rate; TensorBoard is there before them."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # The server outlives the test, and would tell that its files have gone.
    tb_logging.get_logger().setLevel(logging.CRITICAL)
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    directory = folder.name
    server = program.TensorBoard()
    server.configure(
      [None, "--logdir", directory, "--port", "0", "--host", "127.0.0.1"]
      + ["--load_fast", "false", "--reload_interval", "1"]
    )
    cls.url = server.launch().rstrip("/")
    cls.train(f"{directory}/slow", "0.01", Look(cls.look))
    cls.train(f"{directory}/fast", "0.05")
    cls.wait_for("fast/logs/summary", "standard_accuracy")

  @classmethod
  def train(cls, model_dir, rate, *callbacks):
    config = config_lib.parse(
      ["", "--mode=train", "--train_data=t", f"--model_dir={model_dir}"]
      + [f"--learning_rate={rate}", "--decay_epochs=1,2", "--decay=step"]
    )
    settings, logs = dataclasses.asdict(config), f"{model_dir}/logs"
    inputs = tf.keras.Input((4, 4, 1))
    logits = tf.keras.layers.Dense(3, name="out")(tf.keras.layers.Flatten()(inputs))
    network = tf.keras.Model(inputs, logits)
    model = AdversarialModel(network, PGD(LInfinity(0.1), 0.05, 1))
    model.compile(optimizer=LAMB(float(rate)))
    rng = np.random.default_rng(0)
    images, labels = rng.random((32, 4, 4, 1), "f4"), rng.integers(0, 3, 32)
    attacked = AttackedImages(
      network, model.attack, images[:4], labels[:4], tf.zeros([4, 2], tf.uint32)
    )
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    model.fit(
      data,
      epochs=2,
      validation_data=data,
      callbacks=[
        Scalars(logs, 2, 8, 1234, attacked.attack),
        Summary(logs, settings, model_dir),
        *callbacks,
      ],
      verbose=0,
    )
    log_evaluation(logs, settings, model_dir, {**FIGURES, "epochs": 2})

  @classmethod
  def look(cls):
    cls.wait_for("slow/logs/train", "loss")
    cls.wait_for("slow/logs/summary", "training/accuracy")
    cls.during_training = cls.hparams()["sessionGroups"]

  @classmethod
  def wait_for(cls, run, tag):
    last = time.monotonic() + 120
    while tag not in cls.get("scalars/tags").get(run, {}):
      if time.monotonic() > last:
        raise AssertionError(f"{run} {tag}: {cls.get('scalars/tags')}")
      time.sleep(0.2)

  @classmethod
  def get(cls, path, **data):
    request = urllib.request.Request(
      f"{cls.url}/data/plugin/{path}",
      json.dumps(data).encode() if data else None,
      {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
      return json.load(response)

  @classmethod
  def hparams(cls):
    """The table of the runs, with all its columns."""
    experiment = cls.get("hparams/experiment", experimentName="")
    columns = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    columns += [{"hparam": info["name"]} for info in experiment["hparamInfos"]]
    return {
      **experiment,
      **cls.get(
        "hparams/session_groups",
        experimentName="",
        allowedStatuses=["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN"],
        colParams=columns,
        startIndex=0,
        sliceSize=10,
      ),
    }

  def test_tags(self):
    scalars = self.get("scalars/tags")
    self.assertEqual(set(scalars["slow/logs/train"]), SCALARS)
    names = {"loss", "accuracy", "robust_accuracy", "examples"}
    self.assertEqual(set(scalars["slow/logs/test"]), names)
    histograms = self.get("histograms/tags")["slow/logs/train"]
    self.assertEqual(set(histograms), HISTOGRAMS)
    self.assertEqual(set(self.get("images/tags")["slow/logs/train"]), {PICTURE})

  def test_a_chart_has_clean_and_robust_accuracy(self):
    layout = self.get("custom_scalars/layout")
    chart = layout["category"][0]["chart"][0]
    self.assertEqual(chart["multiline"]["tag"], ["^accuracy$", "^robust_accuracy$"])
    titles = [category["title"] for category in layout["category"]]
    self.assertEqual(titles, ["Accuracy", "Training", "Communication"])

  def test_runs_compare_by_settings_and_final_figures(self):
    table = self.hparams()
    differing = [x["name"] for x in table["hparamInfos"] if x.get("differs")]
    self.assertEqual(differing, ["learning_rate"])
    groups = {group["name"]: group for group in table["sessionGroups"]}
    self.assertLen(groups, 2)
    for name, group in groups.items():
      rate = 0.01 if name.endswith("slow") else 0.05
      settings = group["hparams"]
      self.assertEqual(settings["learning_rate"], rate)
      self.assertEqual(settings["optimizer"], "lamb")
      self.assertEqual(settings["decay_epochs"], "1,2")
      self.assertIs(settings["error_feedback"], False)
      self.assertNotIn("model_dir", settings)
      figures = {x["name"]["tag"]: x["value"] for x in group["metricValues"]}
      clean = figures.pop("training/accuracy")
      self.assertBetween(figures.pop("training/robust_accuracy"), 0, clean)
      self.assertEqual(
        figures,
        {
          "standard_accuracy": 0.5,
          "robust_accuracy/pgd-20": 0.25,
          "robust_accuracy/fgsm": 0.375,
          "robust_accuracy/lowest": 0.25,
        },
      )
      self.assertEqual(group["sessions"][0]["status"], "STATUS_SUCCESS")

  def test_shows_a_run_while_it_trains(self):
    (group,) = self.during_training
    self.assertEqual(group["hparams"]["learning_rate"], 0.01)
    self.assertEqual(group["sessions"][0]["status"], "STATUS_UNKNOWN")  # no end yet
    figures = {x["name"]["tag"] for x in group["metricValues"]}
    self.assertNotIn("standard_accuracy", figures)

  @unittest.skipIf(browser.MISSING, browser.MISSING or "")
  def test_in_a_browser(self):
    with browser.opened() as driver:
      for tab, expected in (
        ("scalars", ["trust_ratio", "gradient_norm"]),
        ("custom_scalars", ["Clean and robust accuracy", "Communication"]),
        ("histograms", ["perturbation/linf_norm", "trust_ratios"]),
        ("images", [PICTURE]),
        ("hparams", ["learning_rate", "robust_accuracy/lowest", "0.050000"]),
      ):
        driver.get("about:blank")  # what comes after # alone loads no page
        driver.get(f"{self.url}/#{tab}")
        text = browser.wait_for_text(driver, expected)
        for word in expected:
          self.assertIn(word, text)
        self.assertEqual(browser.errors(driver), [])


class EvaluationAloneTest(tf.test.TestCase):
  def test_settings_are_written_once(self):
    directory = self.create_tempdir().full_path
    for _ in range(2):
      log_evaluation(directory, {"norm": "linf"}, "another's model", FIGURES)
    tags = collections.Counter()
    for path in tf.io.gfile.glob(f"{directory}/summary/*"):
      for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        tags.update(value.tag for value in event.summary.value)
    self.assertEqual(tags["_hparams_/session_start_info"], 1)
    self.assertEqual(tags["standard_accuracy"], 2)
    self.assertEqual(tags["robust_accuracy/lowest"], 2)


if __name__ == "__main__":
  tf.test.main()
