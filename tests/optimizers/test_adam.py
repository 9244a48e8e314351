"""LAMB's state without TensorFlow Addons: the same bits, the same checkpoints."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Begins with a checkpoint, if there is one; takes 50 steps for each name and saves so.
SCRIPT = """
import sys
engine, restored, *names = sys.argv[1:]
if engine == "own":
  sys.modules["tensorflow_addons"] = None  # importing it fails
import numpy as np
import dat_tf
import tensorflow as tf
from dat_tf import compat
from dat_tf.optimizers import LAMB, WarmupDecay

bases = [base.__module__.split(".")[0] for base in LAMB.__mro__]
assert ("tensorflow_addons" in bases) == (engine == "addons"), bases
assert ("dat_tf.optimizers.adam" in sys.modules) == (engine == "own")
rng = np.random.default_rng(0)
variables = [
  tf.Variable(rng.normal(size=shape).astype("f4"), name=name)
  for name, shape in (("kernel", (20, 30)), ("filters", (3, 3, 2, 4)), ("bias", (7,)))
]
optimizer = LAMB(
  WarmupDecay(0.02, 10, decay="cosine", total_steps=120),
  weight_decay=0.01,
  norm_bounds=(0.5, 3.0),
  global_clipnorm=30.0,
)
compat.make_slots(optimizer, variables)
checkpoint = tf.train.Checkpoint(optimizer=optimizer, variables=variables)
if restored:
  checkpoint.read(restored).assert_consumed()

@tf.function
def step(gradients):
  optimizer.apply_gradients(zip(gradients, variables))

for saved in names:
  for _ in range(50):
    rng = np.random.default_rng(int(optimizer.iterations))
    step([tf.constant(rng.normal(size=v.shape).astype("f4")) for v in variables])
  checkpoint.write(saved)
  slots = [optimizer.get_slot(v, name) for v in variables for name in "mv"]
  np.savez(saved, *(v.numpy() for v in (*variables, *slots)))
print(sorted(optimizer.get_config()))
"""


@unittest.skipUnless(
  importlib.util.find_spec("tensorflow_addons"), "TensorFlow Addons is not installed"
)
class EnginesTest(unittest.TestCase):
  def setUp(self) -> None:
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = folder.name

  def train(self, engine: str, restored: str, *names: str) -> str:
    path = restored and os.path.join(self.folder, restored)
    process = subprocess.run(
      [sys.executable, "-c", SCRIPT, engine, path]
      + [os.path.join(self.folder, name) for name in names],
      cwd=ROOT,
      check=False,
      capture_output=True,
      text=True,
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    return process.stdout

  def state(self, saved: str) -> list[np.ndarray]:
    with np.load(os.path.join(self.folder, f"{saved}.npz")) as arrays:
      return [arrays[name] for name in arrays]

  def assert_same(self, one: str, other: str) -> None:
    for mine, theirs in zip(self.state(one), self.state(other)):
      np.testing.assert_array_equal(mine, theirs)

  def test_both_give_the_same_bits_and_restore_each_others_checkpoints(self) -> None:
    settings = self.train("addons", "", "addons_50", "addons_100")
    self.assertEqual(self.train("own", "", "own_50", "own_100"), settings)
    self.assert_same("addons_50", "own_50")
    self.assertGreater(np.abs(self.state("own_50")[0]).max(), 0)
    self.assert_same("addons_100", "own_100")
    self.train("own", "addons_50", "own_after_addons")
    self.train("addons", "own_50", "addons_after_own")
    self.assert_same("own_after_addons", "addons_100")
    self.assert_same("addons_after_own", "addons_100")
    self.assertTrue(np.any(self.state("own_50")[0] != self.state("own_100")[0]))


if __name__ == "__main__":
  unittest.main()
