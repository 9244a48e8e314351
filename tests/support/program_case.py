"""run_dat.py in processes of its own, on a few digits."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import subprocess
import sys

import numpy as np
import tensorflow as tf
from folder_case import FolderCase
from programs import ROOT, run_program
from sklearn.datasets import load_digits

from dat_tf.data import writing

TRAIN, TEST, BATCH = 96, 41, 32  # 3 steps an epoch, and a last test batch of 9
STEPS = TRAIN // BATCH

_PROGRESS = re.compile(r"(training|evaluating|epoch \d+): \d+/\d+ steps \[")
# TensorFlow's own word on the operation that met a bad record, and on the pipeline's
# tuning, which that may interrupt.
_OPERATION = re.compile(
  r" W tensorflow/\S+ (OP_REQUIRES failed |Optimization loop failed: CANCELLED)"
)


def digits():
  """Images uint8 [n, 8, 8, 1] and labels, those to train on first."""
  data = load_digits()
  images = np.rint(data.images[: TRAIN + TEST, ..., None] * (255 / 16)).astype("u1")
  return images, data.target[: TRAIN + TEST]


def write_digits(folder):
  images, labels = digits()
  examples = list(map(writing.image_example, images, labels))
  writing.write_shards(examples[:TRAIN], folder, "train", 2)
  writing.write_shards(examples[TRAIN:], folder, "test", 3)
  return examples


def run_dat(flags, num_workers=1, **environment):
  """One run of the program; `flags` as a dictionary, in which None leaves one out."""
  inherited = {
    name: value
    for name, value in os.environ.items()
    if name not in ("TF_CONFIG", "TF_CPP_MIN_LOG_LEVEL")
  }
  # Another PYTHONPATH asks for an interpreter that has imported nothing yet.
  is_fresh = "PYTHONPATH" in environment
  environment = {**inherited, **environment}
  words = [f"--{name}={value}" for name, value in flags.items() if value is not None]
  if num_workers == 1 and not is_fresh:
    return run_program(["run_dat.py", *words], environment)
  launcher = ["-m", "dat_tf.launch", f"--num_workers={num_workers}", "--"]
  return subprocess.run(
    [sys.executable, *(launcher if num_workers > 1 else []), "run_dat.py", *words],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


def run_all(runs):
  """{name: finished run} of {name: flags}, two at a time."""
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return dict(zip(runs, pool.map(run_dat, runs.values())))


def results(model_dir):
  return json.loads((model_dir / "results.json").read_text())


def forget_accuracies(model_dir):
  figures = {**results(model_dir), "standard_accuracy": None, "robust_accuracy": {}}
  (model_dir / "results.json").write_text(json.dumps(figures))


def logged(model_dir, name):
  """{(tag, step)} of what TensorBoard shows."""
  found = set()
  for path in (model_dir / "logs" / name).iterdir():
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
      event = tf.compat.v1.Event.FromString(record)
      found |= {(value.tag, event.step) for value in event.summary.value}
  return found


def contents(folder):
  """{path: bytes} of all files below a folder."""
  files = (path for path in folder.rglob("*") if path.is_file())
  return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class ProgramCase(FolderCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.examples = write_digits(str(cls.folder / "data"))
    cls.flags = {
      "train_data": cls.folder / "data" / "train-*",
      "test_data": cls.folder / "data" / "test-*",
      "global_batch_size": BATCH,
      "probe_images": 0,
      "epochs": 1,
      "epsilon": 0.1,
      "attack_steps": 1,
      "evaluation_attack_steps": 2,
      "decay": "constant",
    }

  def assert_good(self, run):
    """It succeeded, and nothing but its progress is on stderr."""
    self.assertEqual(run.returncode, 0, run.stderr)
    for line in run.stderr.splitlines():
      self.assertRegex(line, _PROGRESS)

  def assert_mistake(self, run, *words):
    """It ended as a user's mistake does; `words` are in its one line."""
    self.assertEqual(run.returncode, 2, run.stderr)
    self.assertEqual(run.stdout, "")
    lines = [
      line
      for line in run.stderr.splitlines()
      if not _PROGRESS.match(line) and not _OPERATION.search(line)
    ]
    self.assertLen(lines, 1, run.stderr)
    self.assertStartsWith(lines[0], "run_dat.py: ")
    for word in words:
      self.assertIn(word, lines[0])
