"""A run that begins on one stack and goes on on the other, both ways.

Needs an environment of each: make install; make install STACK=modern.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest

import numpy as np
import pytest
import tensorflow as tf
from folder_case import FolderCase
from partly_labeled import write_digits
from program_case import results
from programs import ROOT

from dat_tf.base import stack

# Restores a run as its own program does, and keeps every value that was restored, as
# the run's first replica has it.
RESTORE = """
import sys
import unittest
import numpy as np
from dat_tf import config as config_lib
from dat_tf.workers.cluster import Cluster
from dat_tf.compat import local_value
from dat_tf.program.run import opened

path, *flags = sys.argv[1:]
cluster = Cluster.from_environment()
with opened(config_lib.parse(["run_dat.py", *flags]), cluster) as run:
  assert run.trainee.restored() == (1, 0)
model = run.trainee.model
optimizer, classifier = model.optimizer, model.classifier
values = {f"weight{i}": v for i, v in enumerate(classifier.weights)}
for i, variable in enumerate(classifier.trainable_variables):
  for name in ("m", "v"):
    values[f"{name}{i}"] = optimizer.get_slot(variable, name)
values["iterations"] = optimizer.iterations
arrays = {name: local_value(v).numpy() for name, v in values.items()}
residuals = model.all_reduce.residual
arrays.update({f"residual{i}": local_value(v).numpy() for i, v in enumerate(residuals)})
if cluster.is_chief:
  np.savez(path, **arrays)
"""
KERAS_3 = """
import os, sys
os.environ.pop("TF_USE_LEGACY_KERAS", None)
import keras
network = keras.Sequential([
  keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, activation="relu"),
  keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(10),
])
network.export(sys.argv[1], verbose=False)
"""


def _interpreters() -> dict[str, str]:
  """The Python of each stack's environment, this process's own among them."""
  found = {}
  for folder in (".venv", ".venv-modern"):
    python = ROOT / folder / "bin" / "python"
    if python.exists():
      command = [
        str(python),
        "-c",
        "from dat_tf.base import stack; print(stack.to_text())",
      ]
      text = subprocess.check_output(command, cwd=ROOT, text=True)
      is_classic = json.loads(text)["tensorflow"].startswith("2.15.")
      found["classic" if is_classic else "modern"] = str(python)
  is_classic = stack.versions()["tensorflow"].startswith("2.15.")
  found["classic" if is_classic else "modern"] = sys.executable
  return found


@pytest.mark.long
class BetweenStacksTest(FolderCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.pythons = _interpreters()
    if len(cls.pythons) < 2:
      raise unittest.SkipTest("one stack is missing: make install STACK=modern")
    write_digits(str(cls.folder / "data"))

  def run_python(self, name, *words):
    environment = {
      key: value
      for key, value in os.environ.items()
      if key not in ("TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL")
    }
    process = subprocess.run(
      [self.pythons[name], *map(str, words)],
      cwd=ROOT,
      env=environment,
      check=False,
      capture_output=True,
      text=True,
      timeout=300,
    )
    self.assertEqual(process.returncode, 0, process.stdout + process.stderr)
    return process.stdout

  def flags(self, model_dir, **more):
    flags = {
      "model_dir": model_dir,
      "train_data": self.folder / "data" / "labeled-*",
      "test_data": self.folder / "data" / "test-*",
      "global_batch_size": 32,
      "epsilon": 0.1,
      "attack_steps": 2,
      "evaluation_attack_steps": 2,
      "epochs": 1,
      "all_reduce": "two_sided",
      "bits": 4,
      "error_feedback": True,
      "decay": "constant",
      "probe_images": 4,
      **more,
    }
    return [f"--{name}={value}" for name, value in flags.items()]

  def on_two_workers(self, name, *words):
    launcher = ["-m", "dat_tf.launch", "--num_workers=2", "--"]
    return self.run_python(name, *launcher, *words)

  def go_on(self, first, second):
    """Trains on one stack, goes on on the other; returns what both restored."""
    run = self.folder / f"run_{first}"
    self.on_two_workers(first, "run_dat.py", *self.flags(run))
    self.assertIn("trained_with", results(run))
    script = self.folder / "restore.py"
    script.write_text(RESTORE)
    restored = []
    for name in (first, second):
      path = self.folder / f"{first}_{name}.npz"
      environment = ["env", f"PYTHONPATH={ROOT}", self.pythons[name]]
      self.on_two_workers(name, *environment, script, path, *self.flags(run))
      with np.load(path) as arrays:
        restored.append(dict(arrays))
    # Each reads what the other has left: outcomes of an attack, figures, settings.
    evaluate = {"mode": "evaluate", "attacks": "pgd-3,fgsm"}
    self.run_python(
      second, "run_dat.py", *self.flags(run, **{**evaluate, "attacks": "pgd-3"})
    )
    outcomes = (run / "evaluation" / "pgd-3.npz").read_bytes()
    self.run_python(first, "run_dat.py", *self.flags(run, **evaluate))
    self.assertEqual((run / "evaluation" / "pgd-3.npz").read_bytes(), outcomes)
    self.assertContainsSubset({"pgd-3", "fgsm"}, results(run)["robust_accuracy"])
    more = self.flags(run, epochs=2, mode="train_and_evaluate")
    self.on_two_workers(second, "run_dat.py", *more)
    figures = results(run)
    versions = [
      figures[key]["tensorflow"] for key in ("trained_with", "evaluated_with")
    ]
    for version in versions:
      self.assertEqual(version.startswith("2.15."), second == "classic", versions)
    self.assertEqual(figures["epochs"], 2)
    # The first evaluates what the second has exported, and reports on it.
    other = self.flags(
      self.folder / f"export_{first}",
      mode="evaluate",
      model_path=run / "export",
      attacks="pgd-3",
    )
    self.run_python(first, "run_dat.py", *other)
    exported = results(self.folder / f"export_{first}")
    self.assertAlmostEqual(
      exported["standard_accuracy"], figures["standard_accuracy"], places=6
    )
    self.run_python(
      first, "run_dat.py", f"--model_dir={run}", "--mode=report", f"--runs={run}"
    )
    page = (run / "report.html").read_text()
    self.assertIn(versions[0], page)
    # Pseudo-labels of one are learned from by the other.
    labels = self.folder / f"pseudo_{first}"
    data = {"unlabeled_data": self.folder / "data" / "unlabeled-*"}
    self.run_python(
      first,
      "run_dat.py",
      *self.flags(run, mode="pseudo_label", pseudo_label_dir=labels, epochs=2, **data),
    )
    student = self.flags(
      self.folder / f"student_{first}", unlabeled_data=labels / "unlabeled-*"
    )
    self.run_python(second, "run_dat.py", *student)
    return restored

  def assert_same(self, restored):
    one, other = restored
    self.assertEqual(one.keys(), other.keys())
    self.assertGreater(len([name for name in one if name.startswith("residual")]), 0)
    self.assertTrue(any(one[name].any() for name in one if name.startswith("residual")))
    for name in one:
      self.assertAllEqual(one[name], other[name], msg=name)

  def test_from_classic_to_modern(self):
    self.assert_same(self.go_on("classic", "modern"))

  def test_from_modern_to_classic(self):
    self.assert_same(self.go_on("modern", "classic"))

  def test_what_keras_3_exports_is_evaluated_on_both(self):
    script = self.folder / "keras_3.py"
    script.write_text(KERAS_3)
    exported = self.folder / "keras_3"
    self.run_python("modern", script, exported)
    found = []
    for name in ("classic", "modern"):
      model_dir = self.folder / f"of_keras_3_{name}"
      flags = {"mode": "evaluate", "model_path": exported, "attacks": "pgd-3,fab-t"}
      self.run_python(name, "run_dat.py", *self.flags(model_dir, **flags))
      found.append(results(model_dir))
    for key in ("standard_accuracy", "robust_accuracy"):
      self.assertAllClose(found[0][key], found[1][key], atol=0.05)


if __name__ == "__main__":
  tf.test.main()
