"""Whole runs whose directory is damaged, in use, taken away, full or read-only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from program_case import ROOT, STEPS, ProgramCase, contents, results, run_all, run_dat

from dat_tf.data import writing


@pytest.mark.long
class LostWorkTest(ProgramCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    fast = {"mode": "train", "pictures": 0, "attack": "none", "attack_steps": None}
    cls.flags = {**cls.flags, **fast}
    cls.trained = cls.folder / "trained"
    first = run_dat({**cls.flags, "epochs": 2, "model_dir": cls.trained})
    if first.returncode:
      raise AssertionError(first.stderr)
    larger = np.zeros((8, 12, 12, 1), "u1")
    examples = [writing.image_example(image, 1) for image in larger]
    writing.write_shards(examples, str(cls.folder / "larger_data"), "test", 1)
    probabilities = f"{__name__}:probabilities"
    runs = {
      "damaged": {"epochs": 3},
      "none_whole": {"epochs": 3},
      "overwrite": {"epochs": 1, "overwrite": True, "seed": 1},
      "garbage_results": {"epochs": 3},
      "held": {"epochs": 3},
      "larger": {
        "mode": "evaluate",
        "test_data": cls.folder / "larger_data" / "test-*",
      },
      "probabilities": {"model": probabilities, "overwrite": True},
    }
    for name, flags in runs.items():
      shutil.copytree(cls.trained, cls.folder / name)
      runs[name] = {**cls.flags, **flags, "model_dir": cls.folder / name}
    os.truncate(cls.folder / "damaged/checkpoints/epoch-2.data-00000-of-00001", 5000)
    for epoch in (1, 2):
      (cls.folder / f"none_whole/checkpoints/epoch-{epoch}.index").unlink()
    (cls.folder / "garbage_results/results.json").write_text('{"epochs": ')
    owner = {"host": "elsewhere", "pid": 7, "since": "noon"}
    (cls.folder / "held/lock").write_text(json.dumps(owner))
    cls.before = {name: contents(cls.folder / name) for name in runs}
    path = os.pathsep.join(
      [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
    )
    with mock.patch.dict(os.environ, PYTHONPATH=path):
      cls.runs = run_all(runs)

  def test_the_checkpoint_before_a_damaged_one_is_used(self):
    run = self.runs["damaged"]
    self.assert_good(run)
    self.assertRegex(
      run.stdout, r"\AWarning: \S*/epoch-2\.data-\S* is damaged .*epoch-1 .*\n\Z"
    )
    self.assertStartsWith(run.stderr, f"training: {STEPS}/{3 * STEPS} ")
    self.assertNotIn("lock", os.listdir(self.folder / "damaged"))
    self.assertEqual(results(self.folder / "damaged")["epochs"], 3)

  def test_nothing_begins_anew_over_what_is_there(self):
    for name, *words in (
      ("none_whole", "epoch-2.index is missing", "--overwrite"),
      ("garbage_results", "results.json cannot be read"),
      ("held", "in use by process 7 on elsewhere since noon", "--model_dir"),
      ("larger", "epoch-2 is of another network", "--image_size"),
    ):
      self.assert_mistake(self.runs[name], str(self.folder / name), *words)
      self.assertEqual(contents(self.folder / name), self.before[name])

  def test_a_network_that_ends_in_a_softmax(self):
    self.assert_mistake(
      self.runs["probabilities"], "--model=", "probabilities", "last softmax"
    )

  def test_overwrite_begins_anew(self):
    self.assert_good(self.runs["overwrite"])
    self.assertStartsWith(self.runs["overwrite"].stderr, f"training: 0/{STEPS} ")
    folder = self.folder / "overwrite"
    self.assertEqual(results(folder)["epochs"], 1)
    self.assertNotIn("epoch-2.index", os.listdir(folder / "checkpoints"))
    self.assertNotIn("--overwrite", (folder / "config.flags").read_text())

  def start(self, name, **flags):
    flags = {**self.flags, "epochs": 500, "model_dir": self.folder / name, **flags}
    words = [f"--{key}={value}" for key, value in flags.items() if value is not None]
    process = subprocess.Popen(
      [sys.executable, "run_dat.py", *words],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.kill)
    deadline = time.monotonic() + 240
    while not (self.folder / name / "checkpoints" / "checkpoint").exists():
      self.assertIsNone(process.poll())
      self.assertLess(time.monotonic(), deadline)
      time.sleep(0.1)
    return process

  def test_a_second_run_is_refused_and_a_removed_directory_told(self):
    process = self.start("two")
    second = run_dat({**self.flags, "seed": 3, "model_dir": self.folder / "two"})
    self.assert_mistake(second, f"in use by process {process.pid} on ", " since 20")
    self.assertIsNone(process.poll())
    shutil.rmtree(self.folder / "two", ignore_errors=True)
    _, errors = process.communicate(timeout=240)
    self.assertEqual(process.returncode, 2, errors)
    self.assertRegex(errors.splitlines()[-1], r"\Arun_dat.py: .*lock.* was removed")

  def test_a_full_disc_leaves_the_newest_checkpoint_good(self):
    disc = self.folder / "disc"
    disc.mkdir()
    mounted = subprocess.run(
      ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disc)],
      capture_output=True,
    )
    if mounted.returncode:
      self.skipTest("no file system can be mounted here")
    self.addCleanup(subprocess.run, ["umount", "-l", str(disc)], check=True)
    run = run_dat(
      {**self.flags, "epochs": 40, "checkpoints_to_keep": 40, "model_dir": disc / "run"}
    )
    self.assertEqual(run.returncode, 2, run.stderr)
    last = run.stderr.splitlines()[-1]
    self.assertRegex(last, r"\Arun_dat.py: --model_dir=\S* cannot be written .*space")
    self.assertNotIn("Traceback", run.stderr)
    checkpoints = disc / "run" / "checkpoints"
    whole = [x.stem for x in checkpoints.glob("*.index") if "worker" not in x.stem]
    done = max(int(name.split("-")[1]) for name in whole)
    shutil.copytree(checkpoints, self.folder / "room" / "checkpoints")
    shutil.copy(disc / "run" / "config.flags", self.folder / "room")
    run = run_dat({**self.flags, "epochs": done + 1, "model_dir": self.folder / "room"})
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertRegex(run.stderr, rf"\Atraining: {STEPS * done}/")


def probabilities(image_shape, num_classes):
  layers = tf.keras.layers
  dense = layers.Dense(num_classes, activation="softmax")
  return tf.keras.Sequential([tf.keras.Input(image_shape), layers.Flatten(), dense])


if __name__ == "__main__":
  tf.test.main()
