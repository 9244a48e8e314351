"""Which Python, TensorFlow and Keras go together, and what is said of others."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from importlib import metadata
from typing import Optional
from unittest import mock

from dat_tf.base import stack
from dat_tf.base.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLASSIC = {"tensorflow": "2.15.1", "keras": "2.15.0", "tensorflow-addons": "0.23.0"}
MODERN = {"tensorflow": "2.21.0", "keras": "3.15.1", "tf_keras": "2.21.0"}
NIGHTLY = {"tf-nightly": "2.23.0.dev20261026", "tf_keras-nightly": "2.23.0.dev20261026"}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
  """Runs Python in the project with these words."""
  return subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    capture_output=True,
    text=True,
  )


class PrepareTest(unittest.TestCase):
  """`prepare` beside made-up packages."""

  def setUp(self) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    patch = mock.patch.dict(os.environ, environment, clear=True)
    patch.start()
    self.addCleanup(patch.stop)
    self.addCleanup(setattr, sys, "excepthook", sys.excepthook)

  def prepare(self, installed: dict[str, str], python: str = "3.11.7") -> Optional[str]:
    """Returns what is then in TF_USE_LEGACY_KERAS."""

    def version(name: str) -> str:
      if name in installed:
        return installed[name]
      raise metadata.PackageNotFoundError(name)

    with mock.patch.object(metadata, "version", version):
      stack.prepare(tuple(map(int, python.split("."))))
    return os.environ.get("TF_USE_LEGACY_KERAS")

  def assert_refused(
    self, installed: dict[str, str], *words: str, python: str = "3.11.7"
  ) -> None:
    with self.assertRaises(ImportError) as caught:
      self.prepare(installed, python)
    self.assertNotIn("\n", str(caught.exception))
    for word in words:
      self.assertIn(word, str(caught.exception))

  def test_classic_has_keras_2_already(self) -> None:
    self.assertIsNone(self.prepare(CLASSIC))

  def test_classic_would_look_for_tf_keras_in_vain(self) -> None:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    self.assertIsNone(self.prepare(CLASSIC))

  def test_modern_asks_for_keras_2(self) -> None:
    self.assertEqual(self.prepare(MODERN, "3.13.0"), "1")

  def test_what_the_user_has_set_stays(self) -> None:
    os.environ["TF_USE_LEGACY_KERAS"] = "True"
    self.assertEqual(self.prepare(MODERN), "True")

  def test_other_names_of_tensorflow(self) -> None:
    self.assertIsNone(self.prepare({"tensorflow-cpu": "2.15.0"}))
    self.assertIsNone(self.prepare({}))  # built from source, perhaps
    self.assertEqual(self.prepare(NIGHTLY), "1")

  def test_pythons(self) -> None:
    for python in ("3.8.18", "3.14.0", "4.0.0"):
      self.assert_refused(CLASSIC, "3.9 to 3.13", python, "install", python=python)
    for python in ("3.9.0", "3.13.9"):
      self.prepare(CLASSIC, python)

  def test_tensorflows_between_the_stacks(self) -> None:
    for version in ("2.14.1", "2.16.2", "2.17.1"):
      installed = {"tensorflow": version, "tf_keras": version}
      self.assert_refused(installed, version, "2.15 and 2.18 to 2.21", "pip install .")

  def test_tf_keras_2_18_on_later_pythons(self) -> None:
    installed = {"tensorflow": "2.18.1", "tf_keras": "2.18.0"}
    self.assertEqual(self.prepare(installed, "3.11.7"), "1")
    for python in ("3.12.1", "3.13.0"):
      advice = 'pip install "tensorflow>=2.19'
      self.assert_refused(installed, "2.18.0", python, advice, python=python)

  def test_addons_beside_a_modern_tensorflow(self) -> None:
    self.assert_refused(
      {**MODERN, "tensorflow-addons": "0.23.0"},
      "0.23.0",
      "2.21.0",
      "pip uninstall tensorflow-addons",
    )

  def test_tf_keras_missing_or_of_another_minor_version(self) -> None:
    advice = 'pip install "tf_keras==2.21.*"'
    self.assert_refused({"tensorflow": "2.21.0"}, "there is none", advice)
    self.assert_refused({**MODERN, "tf_keras": "2.20.1"}, "2.20.1", "2.21.0", advice)


class ProgramsTest(unittest.TestCase):
  """The same from outside: one line and exit code 2, or an ImportError to catch."""

  def assert_one_line(self, process: subprocess.CompletedProcess, *words: str) -> None:
    self.assertEqual(process.returncode, 2, process.stderr)
    self.assertEqual(len(process.stderr.splitlines()), 1, process.stderr)
    for word in words:
      self.assertIn(word, process.stderr)

  def test_an_unsuitable_python_is_one_line_in_every_program(self) -> None:
    for program in (
      "import runpy; runpy.run_path('run_dat.py', run_name='__main__')",
      "import runpy; runpy.run_module('dat_tf.launch', run_name='__main__')",
      "import dat_tf",
    ):
      code = f"import sys; sys.version_info = (3, 14, 0, 'final', 0); {program}"
      self.assert_one_line(run("-c", code), "3.9 to 3.13", "3.14.0")

  def test_a_real_old_python(self) -> None:
    old = os.path.expanduser("~/.pyenv/versions/3.8.18/bin/python")
    old = old if os.path.exists(old) else shutil.which("python3.8") or ""
    if not old:
      self.skipTest("Python 3.8 is not here")
    process = subprocess.run(
      [old, "run_dat.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    self.assert_one_line(process, "3.9 to 3.13", "3.8.")

  def test_a_library_can_catch_it(self) -> None:
    code = """
import sys
sys.version_info = (3, 14, 0, "final", 0)
try:
  import dat_tf
except ImportError as error:
  print("caught", error)
"""
    process = run("-c", code)
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn("caught DAT-TF needs Python 3.9 to 3.13", process.stdout)

  def test_other_errors_keep_their_traceback(self) -> None:
    code = """
import sys
from dat_tf.base.stack import UnsuitableStack
UnsuitableStack("never raised")
1 / 0
"""
    process = run("-c", code)
    self.assertEqual(process.returncode, 1)
    self.assertIn("Traceback", process.stderr)
    self.assertIn("ZeroDivisionError", process.stderr)

  def test_version(self) -> None:
    process = run("run_dat.py", "--version")
    self.assertEqual(process.returncode, 0, process.stderr)
    python = ".".join(map(str, sys.version_info[:3]))
    versions = stack.versions()
    for word in (f"Python {python}", *versions.values()):
      self.assertIn(word, process.stdout)
    self.assertEqual(len(process.stdout.splitlines()), 1)

  def test_versions_are_those_that_run(self) -> None:
    code = """
import dat_tf
import tensorflow as tf
from dat_tf.compat import keras
print(tf.__version__, keras.layers.Layer.__module__.split(".")[0])
"""
    process = run("-c", code)
    self.assertEqual(process.returncode, 0, process.stderr)
    tensorflow, keras = process.stdout.split()
    self.assertEqual(stack.versions()["tensorflow"], tensorflow)
    is_classic = tensorflow.startswith("2.15.")
    self.assertEqual(keras, "keras" if is_classic else "tf_keras")
    self.assertEqual(stack.versions()["keras"], metadata.version(keras))


class Keras3Test(unittest.TestCase):
  """TensorFlow imported before this package, where `tf.keras` would be Keras 3."""

  def setUp(self) -> None:
    if stack.versions()["tensorflow"].startswith("2.15."):
      self.skipTest("TensorFlow 2.15 has no Keras 3")
    os.environ.pop("TF_USE_LEGACY_KERAS", None)  # `prepare` has set it for this process
    self.addCleanup(os.environ.setdefault, "TF_USE_LEGACY_KERAS", "1")

  def test_it_is_refused_once_it_is_in_use(self) -> None:
    process = run(
      "-c",
      "import tensorflow as tf; tf.keras.layers; import dat_tf, dat_tf.data;"
      "print('data needs no Keras'); import dat_tf.adversarial_model",
    )
    self.assertEqual(process.stdout, "data needs no Keras\n")
    self.assertEqual(process.returncode, 2, process.stderr)
    last = process.stderr.splitlines()[-1]
    self.assertIn('write "import dat_tf" above the first import of tensorflow', last)
    self.assertNotIn("Traceback", process.stderr)

  def test_importing_tensorflow_first_is_fine(self) -> None:
    process = run(
      "-c",
      "import tensorflow as tf; import dat_tf.adversarial_model;"
      "print(tf.keras.layers.Layer.__module__)",
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertIn("tf_keras", process.stdout)

  def test_a_user_who_insists_on_keras_3_is_told(self) -> None:
    process = run("-c", "import dat_tf.adversarial_model", TF_USE_LEGACY_KERAS="0")
    self.assertEqual(process.returncode, 2, process.stderr)
    self.assertIn("unset TF_USE_LEGACY_KERAS", process.stderr.splitlines()[-1])


class WorkersTest(unittest.TestCase):
  def test_the_same_everywhere(self) -> None:
    stack.check_same([stack.to_text()] * 3)

  def test_a_worker_on_another_stack(self) -> None:
    first = {"dat_tf": "0.1.0", "tensorflow": "2.15.1", "keras": "2.15.0"}
    second = {"dat_tf": "0.1.0", "tensorflow": "2.21.0", "keras": "2.21.0"}
    texts = [json.dumps(versions) for versions in (first, first, second)]
    with self.assertRaises(UserError) as caught:
      stack.check_same(texts)
    for word in ("Worker 2", "TensorFlow 2.21.0", "TensorFlow 2.15.1", "install"):
      self.assertIn(word, str(caught.exception))

  def test_a_worker_with_another_version_of_the_package(self) -> None:
    first = json.loads(stack.to_text())
    texts = [json.dumps(first), json.dumps({**first, "dat_tf": "0.0.9"})]
    with self.assertRaisesRegex(UserError, "Worker 1 runs on DAT-TF 0.0.9"):
      stack.check_same(texts)

  def test_a_worker_with_another_code_of_the_same_version(self) -> None:
    with tempfile.TemporaryDirectory() as folder:
      package = pathlib.Path(folder, "dat_tf")
      package.joinpath("objectives").mkdir(parents=True)
      module = package.joinpath("objectives", "at.py")
      texts = []
      with mock.patch.object(stack, "_PACKAGE", package):
        for code in ("loss = 1", "loss = 1", "loss = 2"):
          module.write_text(code)
          package.joinpath("notes.txt").write_text(str(len(texts)))
          texts.append(stack.to_text())
        stack.check_same(texts[:2])
        with self.assertRaisesRegex(UserError, "Worker 2 runs on DAT-TF's code .*same"):
          stack.check_same(texts)
        module.rename(package / "objectives" / "a.py")
        with self.assertRaisesRegex(UserError, "Worker 1 runs on DAT-TF's code"):
          stack.check_same([texts[2], stack.to_text()])


class CommitTest(unittest.TestCase):
  def test_of_a_clone(self) -> None:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
      self.skipTest("this is no clone")
    commit = subprocess.check_output(
      ["git", "rev-parse", "HEAD"], cwd=ROOT, text=True
    ).strip()
    named = re.fullmatch(r"([0-9a-f]{12,})(-dirty)?", stack.versions()["commit"])
    self.assertTrue(commit.startswith(named[1]))

  def test_of_what_was_built_from_one(self) -> None:
    with tempfile.TemporaryDirectory() as folder:
      package = pathlib.Path(folder, "dat_tf")
      package.mkdir()
      with mock.patch.object(stack, "_PACKAGE", package):
        self.assertEqual(stack.versions()["commit"], "unknown")
        package.joinpath("COMMIT").write_text("0123abcd\n")
        self.assertEqual(stack.versions()["commit"], "0123abcd")


if __name__ == "__main__":
  unittest.main()
