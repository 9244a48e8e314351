"""The guide: its examples run, and the names in it are those of the code."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import tempfile
import unittest

import numpy as np
import tensorflow as tf
from absl import flags

from dat_tf import config as config_lib
from dat_tf.config import declaring
from dat_tf.objectives import Batch
from workers import run_workers

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "dat_tf" / "program"
GUIDE = (ROOT / "docs" / "GUIDE.md").read_text(encoding="utf-8")
TRAINING = "model, figures = "  # in each example that trains
# Of the launcher and of pip, not of run_dat.py.
OTHER_FLAGS = {"flagfile", "help", "num_workers", "source", "output_dir", "host"}
OTHER_FLAGS |= {"skip_bad_images"}  # of tfrecords/


def _network():
  layers = tf.keras.layers
  return tf.keras.Sequential(
    [tf.keras.Input((6, 6, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)]
  )


def _run_examples():
  """Runs all examples, one after the other; returns what they left on this worker."""
  # The network is attacked as it is drawn, and some draws see one class everywhere.
  tf.keras.utils.set_random_seed(0)
  rng = np.random.default_rng(0)
  names = {
    "images": rng.uniform(size=(128, 6, 6, 1)).astype("f4"),
    "labels": rng.integers(0, 3, size=128),
    "make_network": _network,
  }
  runs = []
  folder = tempfile.TemporaryDirectory()
  os.chdir(folder.name)
  for block in re.finditer(r"^```python\n(.*?)^```", GUIDE, re.M | re.S):
    # Blank lines before it: a traceback then shows the guide's line numbers.
    code = "\n" * GUIDE.count("\n", 0, block.start(1)) + block[1]
    exec(compile(code, "docs/GUIDE.md", "exec"), names)
    if TRAINING in block[1]:
      weights = [v.numpy() for v in names["model"].classifier.trainable_variables]
      runs.append({"weights": weights, "figures": names["figures"]})

  written = tf.data.TFRecordDataset(tf.io.gfile.glob("data/mine/test-*-of-00004"))
  outcome = names["outcomes"]["apgd"]
  images, labels = tf.constant(names["images"]), tf.constant(names["labels"])
  classifier = _network()
  brighter, darker = lambda f, x, *rest: x + 0.1, lambda f, x, *rest: x - 0.1
  batch = Batch(images, labels, weights=None, keys=None, is_labeled=None)
  worse = names["WorseOf"](brighter, darker)(classifier, images, labels, keys=None)
  pairing = names["LogitPairing"]()(classifier, batch, images[::-1])
  return {
    "runs": runs,
    "labels": names["labels"],
    "worse": classifier(worse).numpy(),
    "shifted": [classifier(images + shift).numpy() for shift in (0.1, -0.1)],
    "pairing": [tensor.numpy() for tensor in pairing],
    "records": sum(1 for _ in written),
    "right": np.mean(names["predictions"] == names["labels"]),
    "robust": outcome.robust_accuracy,
    "farthest": np.abs(outcome.images - names["images"]).max(),
    "bytes": names["all_reduce"].bytes_sent([tf.Variable(tf.zeros([20, 100]))], 2),
  }


def _cross_entropy(logits, labels):
  return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), labels]


class ExamplesTest(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workers = run_workers(_run_examples, 2)

  def test_each_trains_two_workers_alike(self):
    first, second = (worker["runs"] for worker in self.workers)
    self.assertLen(first, GUIDE.count(TRAINING))
    for mine, theirs in zip(first, second):
      self.assertEqual(mine["figures"], theirs["figures"])
      self.assertEqual(mine["figures"]["examples"], 128)
      self.assertEqual(
        set(mine["figures"]), {"loss", "accuracy", "robust_accuracy", "examples"}
      )
      for a, b in zip(mine["weights"], theirs["weights"]):
        self.assertTrue(np.all(np.isfinite(a)))
        self.assertAllEqual(a, b)

  def test_arrays_become_records(self):
    self.assertEqual(self.workers[0]["records"], 128)

  def test_arrays_are_attacked(self):
    worker = self.workers[0]
    self.assertBetween(worker["robust"], 0.0, worker["right"] - 0.05)
    self.assertAllClose(worker["farthest"], 0.1)

  def test_the_attack_is_the_worse_of_two_for_each_example(self):
    worker = self.workers[0]
    losses = [_cross_entropy(x, worker["labels"]) for x in worker["shifted"]]
    self.assertAllClose(
      _cross_entropy(worker["worse"], worker["labels"]), np.max(losses, 0), atol=1e-5
    )
    self.assertTrue(0 < np.sum(losses[0] > losses[1]) < len(losses[0]))

  def test_the_objective_is_that_of_numpy(self):
    worker = self.workers[0]
    losses, clean, attacked = worker["pairing"]
    expected = _cross_entropy(attacked, worker["labels"])
    expected += ((clean - attacked) ** 2).mean(axis=1)
    self.assertAllClose(losses, expected, atol=1e-5)

  def test_the_quantizer_sends_half_of_the_ring_s_bytes(self):
    self.assertEqual(self.workers[0]["bytes"], 2 * 2000)


class NamesTest(unittest.TestCase):
  def test_flags_exist(self):
    values = flags.FlagValues()
    declaring.define_flags(config_lib.Settings, values)
    named = set(re.findall(r"--(\w+)", GUIDE)) - OTHER_FLAGS
    self.assertGreater(len(named), 20)
    self.assertEqual(named - set(values), set())

  def test_what_a_later_run_may_change(self):
    listed = re.search(r"may change\*\*(.*?)`MAY_CHANGE`", GUIDE, re.S)[1]
    self.assertEqual(set(re.findall(r"`--(\w+)`", listed)), config_lib.MAY_CHANGE)

  def test_every_key_of_the_results_is_explained(self):
    written = {
      key.value
      for name in ("training.py", "evaluating.py")
      for node in ast.walk(ast.parse((PROGRAM / name).read_text("utf-8")))
      if isinstance(node, ast.Dict)
      and re.search("standard_accuracy|certified_accuracy", ast.unparse(node))
      for key in node.keys
      if key is not None
    }
    table = GUIDE[GUIDE.index("| key |") : GUIDE.index("**Modes")]
    self.assertEqual(set(re.findall(r"^\| `(\w+)`", table, re.M)), written)

  def test_paths_exist(self):
    for path in re.findall(r"`(dat_tf/\S+?|tfrecords/)`", GUIDE):
      self.assertTrue((ROOT / path).exists(), path)

  def test_lines_are_short(self):
    for line in GUIDE.splitlines():
      self.assertLessEqual(len(line), 88, line)


if __name__ == "__main__":
  unittest.main()
