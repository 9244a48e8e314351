"""A run whose data and directory are in no file system of this host."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from dat_tf.data import writing

ROOT = str(pathlib.Path(__file__).resolve().parents[2])
STORE = "ram://test_object_store"  # TensorFlow's own; it ends with the process


def _run():
  """In a process of its own: writes records, trains twice, evaluates and exports."""
  from dat_tf.__main__ import main

  examples = [
    writing.image_example(tf.fill([8, 8, 1], tf.cast(20 * k, tf.uint8)).numpy(), k % 10)
    for k in range(12)
  ]
  writing.write_shards(examples, f"{STORE}/data", "train", 3)

  def run(**flags):
    words = {
      "train_data": f"{STORE}/data/train-*",
      "test_data": f"{STORE}/data/train-*",
      "model_dir": f"{STORE}/run",
      "global_batch_size": 4,
      "attack_steps": 1,
      "evaluation_attack_steps": 1,
      "pictures": 0,
      "probe_images": 0,
      **flags,
    }
    main(["run_dat.py", *(f"--{name}={value}" for name, value in words.items())])

  run(epochs=1, mode="train")
  run(epochs=2)
  run(epochs=2, mode="pseudo_label", unlabeled_data=f"{STORE}/data/train-*",
      pseudo_label_dir=f"{STORE}/labels")  # fmt: skip
  with tf.io.gfile.GFile(f"{STORE}/run/results.json") as file:
    results = json.load(file)
  with tf.io.gfile.GFile(f"{STORE}/run/report.html") as file:
    page = file.read()
  model = tf.keras.models.load_model(f"{STORE}/run/export", compile=False)
  left = {
    "results": results,
    "logits": model.output_shape,
    "curves": 'id="plot-training_loss"' in page,
    "run": sorted(name.rstrip("/") for name in tf.io.gfile.listdir(f"{STORE}/run")),
    "labels": sorted(tf.io.gfile.listdir(f"{STORE}/labels")),
  }
  print(json.dumps(left))


@pytest.mark.long
class ObjectStoreTest(tf.test.TestCase):
  def test_everything_works_there(self):
    done = subprocess.run(
      [sys.executable, __file__, "run"],
      cwd=self.get_temp_dir(),
      env={**os.environ, "PYTHONPATH": ROOT, "TF_CPP_MIN_LOG_LEVEL": "1"},
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    left = json.loads(done.stdout.splitlines()[-1])
    self.assertEqual(left["results"]["epochs"], 2)
    self.assertEqual(left["results"]["test_examples"], 12)
    self.assertEqual(left["logits"], [None, 10])
    names = ["checkpoints", "config.flags", "events.jsonl", "export", "logs"]
    names += ["report", "report.html", "results.json"]
    self.assertEqual(left["run"], names)
    self.assertTrue(left["curves"])
    shards = [f"train-0000{k}-of-00003" for k in range(3)]
    self.assertEqual(left["labels"], ["pseudo_labels.json", *shards])
    self.assertEmpty(os.listdir(self.get_temp_dir()))


if __name__ == "__main__":
  if sys.argv[1:] == ["run"]:
    _run()
  else:
    tf.test.main()
