"""A run of the version before the redesign goes on with this one."""

from __future__ import annotations

import pathlib
import shutil

import tensorflow as tf
from program_case import STEPS, ProgramCase, results, run_dat
from programs import ROOT

HERE = pathlib.Path(__file__).resolve().parent / "before_redesign"


class EarlierVersionTest(ProgramCase):
  def test_its_settings_and_checkpoint_serve(self):
    model_dir = self.folder / "run"
    shutil.copytree(HERE, model_dir)
    flags = {
      "flagfile": HERE / "config.flags",
      **{name: self.flags[name] for name in ("train_data", "test_data")},
      "model_dir": model_dir,
      "epochs": 2,
    }
    run = run_dat(flags, PYTHONPATH=str(ROOT / "tests" / "support"))
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertRegex(run.stdout, "Warning: .*epoch-1 is of an earlier version")
    # From its checkpoint, of one epoch.
    self.assertStartsWith(run.stderr, f"training: {STEPS}/{2 * STEPS} ")
    self.assertEqual(results(model_dir)["epochs"], 2)
    self.assertEqual(results(model_dir)["test_examples"], 41)


if __name__ == "__main__":
  tf.test.main()
