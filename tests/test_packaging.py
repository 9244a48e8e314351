"""The Makefile's choice of a Python, and what setup.py installs."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from setuptools import find_packages

from dat_tf.base import stack

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAKE = shutil.which("make")


@unittest.skipUnless(MAKE, "make is not installed")
class PythonChoiceTest(unittest.TestCase):
  """Runs `make -n test` beside made-up interpreters only."""

  def setUp(self) -> None:
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.path = self.folder / "bin"
    self.path.mkdir()
    for name in ("Makefile", "setup.py"):
      shutil.copy(ROOT / name, self.folder)

  def add(self, name: str, script: str) -> None:
    """Puts a command on the PATH that runs `script` in sh."""
    command = self.path / name
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)

  def add_python(self, name: str, version: str, *, has_ensurepip: bool = True) -> None:
    self.add(
      name,
      f"""case "$2" in
      *python_version*) echo {version} ;;
      *ensurepip*) exit {0 if has_ensurepip else 1} ;;
    esac""",
    )

  def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": str(self.path), "MAKEFLAGS": ""}
    environment.pop("PYTHON", None)
    return subprocess.run(
      [str(MAKE), "-n", "test", *arguments],
      cwd=self.folder,
      env=environment,
      capture_output=True,
      text=True,
    )

  def assert_refused(self, made: subprocess.CompletedProcess[str], *words: str) -> None:
    self.assertEqual(made.returncode, 2)
    self.assertEqual(len(made.stderr.splitlines()), 1, made.stderr)
    for word in words:
      self.assertIn(word, made.stderr)

  def test_takes_the_first_that_serves(self) -> None:
    self.add("python3.11", "echo 'shim: no such version' >&2; exit 127")
    self.add_python("python3.10", "3.10.13")
    self.add_python("python3.9", "3.9.18")
    made = self.make()
    self.assertEqual(made.returncode, 0, made.stderr)
    self.assertEqual(made.stderr, "")
    self.assertIn("python3.10 -m venv", made.stdout)

  def test_prefers_the_one_named(self) -> None:
    self.add_python("python3.11", "3.11.7")
    self.add_python("other", "3.9.18")
    self.assertIn("other -m venv", self.make("PYTHON=other").stdout)

  def test_passes_over_one_that_cannot_make_an_environment(self) -> None:
    self.add_python("python3.11", "3.11.2", has_ensurepip=False)
    self.add_python("python3.9", "3.9.18")
    self.assertIn("python3.9 -m venv", self.make().stdout)

  def test_takes_each_that_is_supported(self) -> None:
    for minor in range(9, 14):
      self.add_python("python3", f"3.{minor}.1")
      self.assertIn("python3 -m venv --clear .venv\n", self.make().stdout)

  def test_unsuitable_versions_give_one_sentence(self) -> None:
    self.add_python("python3", "3.14.1")
    self.add_python("python", "2.7.18")
    self.assert_refused(
      self.make(), "3.9 to 3.13", "python3 (3.14.1), python (2.7.18)", "PYTHON="
    )

  def test_no_python_gives_one_sentence(self) -> None:
    self.assert_refused(self.make(), "3.9 to 3.13", "found none")

  def test_each_stack_has_an_environment_of_its_own(self) -> None:
    self.add_python("python3", "3.11.7")
    made = self.make("STACK=modern")
    self.assertIn("python3 -m venv --clear .venv-modern\n", made.stdout)
    self.assertIn(".venv-modern/bin/python -m pytest", made.stdout)
    self.assertNotIn("tests/attacks", made.stdout)

  def test_the_nightly_stack_runs_the_quick_tests(self) -> None:
    self.add_python("python3", "3.11.7")
    self.assertIn(
      "tests/attacks tests/base tests/communication", self.make("STACK=nightly").stdout
    )

  def test_missing_ensurepip_names_the_package(self) -> None:
    self.add_python("python3", "3.11.2", has_ensurepip=False)
    self.assert_refused(
      self.make(), "python3 (3.11.2)", "apt-get install python3.11-venv"
    )


# What is installed beside the modules.
BESIDE = ("py.typed", "reporting/page.css", "reporting/page.html")


class PackageTest(unittest.TestCase):
  def setUp(self) -> None:
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = folder.name

  def test_every_module_is_installed(self) -> None:
    packages = set(find_packages(str(ROOT), include=["dat_tf", "dat_tf.*"]))
    folders = {
      ".".join(path.parent.relative_to(ROOT).parts)
      for path in (ROOT / "dat_tf").rglob("*.py")
    }
    self.assertEqual(folders, packages, "a folder lacks its __init__.py")

  def test_every_file_beside_the_modules_is_installed(self) -> None:
    found = {
      str(path.relative_to(ROOT))
      for path in (ROOT / "dat_tf").rglob("*")
      if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "COMMIT"
    }
    self.assertEqual(found, {f"dat_tf/{name}" for name in BESIDE})

  @pytest.mark.long
  def test_what_is_built_runs_outside_of_the_clone(self) -> None:
    clone = pathlib.Path(self.folder, "clone")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    self.assertEqual(len([*(clone / "dist").iterdir()]), 2)
    for built in (clone / "dist").iterdir():
      target = pathlib.Path(self.folder, built.suffix)
      command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
      command += ["--no-build-isolation", f"--target={target}", str(built)]
      subprocess.run(command, check=True, capture_output=True)
      for name in BESIDE:
        self.assertTrue((target / "dat_tf" / name).is_file(), name)
      for program, words, told in (
        ("dat-tf", ["--version"], "TensorFlow"),
        ("dat-tf", ["--help"], "--epsilon"),
        ("dat-tf-launch", ["--num_workers=2", "--", "dat-tf", "--version"], "worker 1"),
      ):
        environment = {
          **os.environ,
          "PYTHONPATH": str(target),
          "PATH": f"{target / 'bin'}:{os.environ['PATH']}",
        }
        process = subprocess.run(
          [str(target / "bin" / program), *words],
          cwd=self.folder,
          env=environment,
          capture_output=True,
          text=True,
        )
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertIn(told, process.stdout)

  def test_python_versions_agree(self) -> None:
    (_, first), (_, last) = stack.PYTHONS
    requires = f'python_requires=">=3.{first},<3.{last + 1}"'
    self.assertIn(requires, (ROOT / "setup.py").read_text())
    served = re.findall(r"3\.(\d+)\.\*", (ROOT / "Makefile").read_text())
    self.assertEqual(list(map(int, served)), [*range(first, last + 1)])

  def requirements(self, **environment: str) -> dict[str, set[str]]:
    """What each Python from 3.9 to 3.13 installs, without extras."""
    process = subprocess.run(
      [sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={self.folder}"],
      cwd=ROOT,
      env={**os.environ, "DAT_TF_STACK": "", **environment},
      check=False,
      capture_output=True,
      text=True,
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    folder = pathlib.Path(self.folder, "dat_tf.egg-info")
    found = [*map(Requirement, metadata.PathDistribution(folder).requires)]
    return {
      f"3.{minor}": {
        f"{each.name}{each.specifier}"
        for each in found
        if each.marker is None
        or each.marker.evaluate({"python_version": f"3.{minor}", "extra": ""})
      }
      for minor in range(9, 14)
    }

  def test_the_python_decides_the_stack(self) -> None:
    for python, names in self.requirements().items():
      is_classic = python in ("3.9", "3.10", "3.11")
      self.assertEqual("tensorflow<2.16,>=2.15" in names, is_classic, python)
      self.assertEqual("tensorflow-addons==0.23.0" in names, is_classic, python)
      self.assertEqual("tensorflow<2.22,>=2.19" in names, not is_classic, python)
      self.assertEqual("tf_keras<2.22,>=2.19" in names, not is_classic, python)

  def test_a_stack_that_was_chosen_holds_for_each_python(self) -> None:
    for name, tensorflow in (("modern", "<2.22,>=2.19"), ("2.19", "==2.19.*")):
      for python, names in self.requirements(DAT_TF_STACK=name).items():
        of_stack = {each for each in names if each.startswith(("tensorflow", "tf_"))}
        wanted = {f"tensorflow{tensorflow}", f"tf_keras{tensorflow}"}
        datasets = {each for each in of_stack if each.startswith("tensorflow-datasets")}
        self.assertEqual(of_stack - datasets, wanted, python)

  def test_a_stack_that_there_is_not(self) -> None:
    with self.assertRaisesRegex(AssertionError, "DAT_TF_STACK=2.17: choose one of"):
      self.requirements(DAT_TF_STACK="2.17")


if __name__ == "__main__":
  unittest.main()
