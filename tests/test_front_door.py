"""`import dat_tf as dat`, and the programs that are installed with it."""

from __future__ import annotations

import collections
import importlib
import pathlib
import subprocess
import sys
import unittest

import dat_tf as dat

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*words: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, *words], cwd=ROOT, capture_output=True, text=True
  )


class FrontDoorTest(unittest.TestCase):
  def test_names_are_those_of_the_rooms(self) -> None:
    for room in dat._ROOMS:
      module = importlib.import_module(f"dat_tf.{room}")
      if "." not in room:
        self.assertIs(getattr(dat, room), module)
      for name in module.__all__:
        self.assertIs(getattr(dat, name), getattr(module, name), name)
        self.assertIn(name, dir(dat))

  def test_a_name_has_one_meaning(self) -> None:
    counts = collections.Counter(
      name
      for room in dat._ROOMS
      for name in importlib.import_module(f"dat_tf.{room}").__all__
    )
    self.assertEqual([name for name, count in counts.items() if count > 1], [])

  def test_a_name_that_is_none(self) -> None:
    with self.assertRaisesRegex(AttributeError, "'dat_tf' has no attribute 'PDG'"):
      dat.PDG  # noqa: B018
    self.assertFalse(hasattr(dat, "__wrapped__"))

  def test_tensorflow_is_loaded_when_a_name_is_used(self) -> None:
    code = (
      "import sys, dat_tf as dat; before = 'tensorflow' in sys.modules;"
      "dat.LInfinity(0.1); print(before, 'tensorflow' in sys.modules)"
    )
    self.assertEqual(run("-c", code).stdout.split(), ["False", "True"])

  def test_the_program_is_a_module(self) -> None:
    here, there = run("run_dat.py", "--version"), run("-m", "dat_tf", "--version")
    self.assertIn("TensorFlow", here.stdout)
    self.assertEqual(there.stdout, here.stdout)
    wrong = run("-m", "dat_tf", "--epsilonn=1")
    self.assertEqual(wrong.returncode, 2)
    self.assertRegex(wrong.stderr, r"\Adat-tf: .*epsilonn.*\n\Z")


if __name__ == "__main__":
  unittest.main()
