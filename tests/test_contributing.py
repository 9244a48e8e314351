"""What CONTRIBUTING says of adding a part is enough: an attack is added by it."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import textwrap
import unittest

import pytest
from program_case import write_digits
from programs import ROOT

CLASS = '''
"""A made-up attack: the sign of the gradient, on part of the pixels."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.base import hashing
from dat_tf.objectives.losses import cross_entropy, input_gradient


@dataclasses.dataclass(frozen=True)
class Dotted:
  """One step on a random share of the pixels; arguments as `Attack`'s."""

  ball: norms.Ball
  share: float

  def __call__(self, classifier, images, labels, keys, loss=cross_entropy):
    gradient = input_gradient(classifier, images, labels, loss)
    dots = hashing.uniform(keys, images.shape[1:]) < self.share
    gradient = tf.where(dots, gradient, 0.0)
    return norms.ascend(self.ball, images, images, gradient, self.ball.epsilon)
'''
RECORD = """
  TrainingAttack(
    "dotted", "one step on part of the pixels", ("share_of_pixels",), _dotted, steps=1
  ),
"""
FACTORY = """
def _dotted(settings: Settings, trained: Trained) -> Any:
  from dat_tf.attacks.dotted import Dotted

  return Dotted(make_ball(settings), settings.share_of_pixels)


"""
FIELD = """
  share_of_pixels: float = number(
    "1/2", "Part of the pixels that dotted moves.", above=0, upper=1
  )
"""


@pytest.mark.long
class MadeUpAttackTest(unittest.TestCase):
  def setUp(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.clone = self.folder / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(self.clone)], check=True)
    (self.clone / "dat_tf/attacks/dotted.py").write_text(CLASS.lstrip())
    path = self.clone / "dat_tf/config/attacks.py"
    text = path.read_text()
    for before, added in (
      ("\ndef _one_step(", FACTORY),
      ("\n)\n\n\ndef training_attack(", RECORD.rstrip()),
      ("\n  attack_in_training_mode: bool", FIELD.rstrip()),
    ):
      self.assertEqual(text.count(before), 1, before)
      text = text.replace(before, f"{added}{before}")
    path.write_text(text)

  def run_dat(self, *words):
    return subprocess.run(
      [sys.executable, "run_dat.py", f"--model_dir={self.folder / 'run'}", *words],
      cwd=self.clone,
      capture_output=True,
      text=True,
    )

  def test_by_these_steps_alone(self):
    changed = subprocess.check_output(
      ["git", "status", "--porcelain"], cwd=self.clone, text=True
    )
    self.assertEqual(len(changed.splitlines()), 2)  # and a test, a flagfile, a result
    help_text = " ".join(self.run_dat("--help").stdout.split())
    self.assertIn("dotted (one step on part of the pixels)", help_text)
    self.assertIn("Range: (0, 1]. (default: '1/2')", help_text)
    write_digits(str(self.folder / "data"))
    data = [f"--{kind}_data={self.folder}/data/{kind}-*" for kind in ("train", "test")]
    data += ["--global_batch_size=32", "--epochs=1", "--mode=train"]
    refused = self.run_dat(*data, "--share_of_pixels=0.1")
    self.assertEqual(refused.returncode, 2)
    self.assertIn("plays no part with --attack=pgd", refused.stderr)
    self.assertIn("--attack=dotted", refused.stderr)
    done = self.run_dat(*data, "--attack=dotted", "--share_of_pixels=0.1")
    self.assertEqual(done.returncode, 0, done.stderr)
    settings = (self.folder / "run/config.flags").read_text()
    self.assertIn("--share_of_pixels=0.1", settings)
    code = """
      from dat_tf import config
      pairs = 0
      for objective in config.OBJECTIVES:
        words = ["", "--model_dir=m", "--train_data=a", "--test_data=b"]
        try:
          config.parse([*words, "--attack=dotted", f"--objective={objective}"])
        except config.settings.UserError:
          continue
        pairs += 1
      print(pairs)
    """
    pairs = subprocess.check_output(
      [sys.executable, "-c", textwrap.dedent(code)], cwd=self.clone, text=True
    )
    self.assertEqual(int(pairs), 4)  # at, trades, mart, alp


if __name__ == "__main__":
  unittest.main()
