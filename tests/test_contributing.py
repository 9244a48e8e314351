"""What CONTRIBUTING says of adding a part is enough: parts are added by it alone.

Each is added to a copy of the project, in at most so many files as CONTRIBUTING says.
There a run uses it, and the tests that know all parts are still green.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import made_up
import pytest
from program_case import write_digits
from programs import ROOT

# They know all parts of all kinds.
EVERYWHERE = ["tests/config", "tests/test_coverage.py", "tests/test_layers.py"]


@pytest.mark.long
class ContributingTest(unittest.TestCase):
  def setUp(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.clone = self.folder / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(self.clone)], check=True)
    # Where the package is installed from its folder, this one goes before it.
    self.environment = {**os.environ, "PYTHONPATH": str(self.clone)}

  def run_python(self, *words):
    return subprocess.run(
      [sys.executable, *words],
      cwd=self.clone,
      env=self.environment,
      capture_output=True,
      text=True,
    )

  def run_dat(self, *words):
    return self.run_python("run_dat.py", f"--model_dir={self.folder / 'run'}", *words)

  def pytest(self, *words):
    done = self.run_python("-m", "pytest", "-q", "-m", "not long", *words)
    self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-1000:])

  def add(self, kind, part, files, table=None):
    """Adds a part in this number of files, and runs the tests that must know it.

    Args:
      kind: as CONTRIBUTING calls it.
      part: what is added.
      files: at most so many, as CONTRIBUTING says too; a row of the results, which
        takes long to measure, is not among them.
      table: the tests of all parts of its kind, of which those in its name are run.
    """
    recipes = (ROOT / "CONTRIBUTING.md").read_text()
    self.assertIn(f"**{kind}** ({files} ", recipes)
    self.assertLessEqual(len(part.files), files)
    part.add_to(self.clone)
    own = [name for name in part.files if name.startswith("tests/")]
    self.assertNotEqual(own, [])
    self.pytest(*own, *EVERYWHERE)
    if table:
      name = pathlib.Path(part.files[0]).stem
      self.pytest(table, "-k", f"{name} and not test_session")

  def digits(self):
    write_digits(str(self.folder / "data"))
    data = [f"--{kind}_data={self.folder}/data/{kind}-*" for kind in ("train", "test")]
    return [*data, "--global_batch_size=32", "--epochs=1", "--mode=train"]

  def trained(self, *words):
    """The settings of a run that trained."""
    done = self.run_dat(*self.digits(), *words)
    self.assertEqual(done.returncode, 0, done.stderr)
    return (self.folder / "run/config.flags").read_text()

  def test_an_attack_of_training(self):
    self.add("A training attack", made_up.TRAINING_ATTACK, 4)
    help_text = " ".join(self.run_dat("--help").stdout.split())
    self.assertIn("dotted (one step on part of the pixels)", help_text)
    self.assertIn("Range: (0, 1]. (default: '1/2')", help_text)
    refused = self.run_dat(*self.digits(), "--share_of_pixels=0.1")
    self.assertEqual(refused.returncode, 2)
    self.assertIn("plays no part with --attack=pgd", refused.stderr)
    self.assertIn("--attack=dotted", refused.stderr)
    settings = self.trained("--attack=dotted", "--share_of_pixels=0.1")
    self.assertIn("--share_of_pixels=0.1", settings)

  def test_an_objective(self):
    self.add("An objective", made_up.OBJECTIVE, 4)
    refused = self.run_dat(*self.digits(), "--focus=3")
    self.assertIn("--focus plays no part with --objective=at", refused.stderr)
    self.assertIn("--focus=3", self.trained("--objective=focal", "--focus=3"))

  def test_an_attack_of_evaluation(self):
    conformance = "tests/attacks/test_conformance.py"
    self.add("An attack of evaluation", made_up.EVALUATION_ATTACK, 4, conformance)
    self.trained("--mode=train_and_evaluate", "--attacks=shortening")
    figures = json.loads((self.folder / "run/results.json").read_text())
    self.assertEqual([*figures["robust_accuracy"]], ["shortening"])

  def test_a_flag(self):
    self.add("A flag", made_up.FLAG, 2)
    self.assertIn("--rate_factor=0.5", self.trained("--rate_factor=1/2"))

  def test_a_quantizer(self):
    self.add("A quantizer", made_up.QUANTIZER, 3)
    whole = ["--all_reduce=two_sided", "--quantizer=whole"]
    refused = self.run_dat(*self.digits(), *whole, "--bits=4")
    self.assertIn("--quantizer=whole takes --bits=8", refused.stderr)
    self.assertIn("--quantizer=whole", self.trained(*whole))

  def test_a_model(self):
    self.add("A model", made_up.MODEL, 3, "tests/models/test_view.py")
    self.assertIn("perceptron", " ".join(self.run_dat("--help").stdout.split()))
    self.assertIn("--model=perceptron", self.trained("--model=perceptron"))


if __name__ == "__main__":
  unittest.main()
