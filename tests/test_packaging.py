"""The Makefile's choice of a Python, and what setup.py installs."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from setuptools import find_packages

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

  def add_python(self, name: str, version: str, has_ensurepip: bool = True) -> None:
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

  def test_unsuitable_versions_give_one_sentence(self) -> None:
    self.add_python("python3", "3.12.1")
    self.add_python("python", "2.7.18")
    self.assert_refused(
      self.make(), "3.9, 3.10 or 3.11", "python3 (3.12.1), python (2.7.18)", "PYTHON="
    )

  def test_no_python_gives_one_sentence(self) -> None:
    self.assert_refused(self.make(), "3.9, 3.10 or 3.11", "found none")

  def test_missing_ensurepip_names_the_package(self) -> None:
    self.add_python("python3", "3.11.2", has_ensurepip=False)
    self.assert_refused(
      self.make(), "python3 (3.11.2)", "apt-get install python3.11-venv"
    )


class PackageTest(unittest.TestCase):
  def test_every_module_is_installed(self) -> None:
    packages = set(find_packages(str(ROOT), include=["dat_tf", "dat_tf.*"]))
    folders = {
      ".".join(path.parent.relative_to(ROOT).parts)
      for path in (ROOT / "dat_tf").rglob("*.py")
    }
    self.assertEqual(folders, packages, "a folder lacks its __init__.py")

  def test_every_file_beside_the_modules_is_installed(self) -> None:
    text = (ROOT / "setup.py").read_text()
    others = {"dat_tf.reporting": ["page.css", "page.html"]}
    self.assertIn('package_data={"dat_tf.reporting": ["page.html", "page.css"]}', text)
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "dat_tf").rglob("*")):
      if path.is_file() and path.suffix not in (".py", ".pyc"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        found.setdefault(package, []).append(path.name)
    self.assertEqual(found, others)

  def test_python_versions_agree(self) -> None:
    self.assertIn('python_requires=">=3.9,<3.12"', (ROOT / "setup.py").read_text())
    served = re.findall(r"3\.(\d+)\.\*", (ROOT / "Makefile").read_text())
    self.assertEqual(served, ["9", "10", "11"])


if __name__ == "__main__":
  unittest.main()
