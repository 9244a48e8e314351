"""benchmarks/gpu.py: its small form, and parts that do not come to their end."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402

# Where the processor has no bfloat16 instructions, these say so.
BFLOAT16 = ("bfloat16", "mixed")


class OutcomeTest(unittest.TestCase):
  def outcome(self, program: str, seconds: float = 60.0) -> dict:
    command = [sys.executable, "-c", program]
    found = gpu.outcome("one", command, seconds, os.environ)
    self.assertGreater(found.pop("one_seconds"), -1)
    return found

  def test_what_was_measured(self):
    program = """if True:
      import json
      print(json.dumps({"a": 1}))
      print("a line of something else")
      print(json.dumps({"a": 2, "b": 3}))
    """
    self.assertEqual(self.outcome(program), {"a": 2, "b": 3})

  def test_a_signal(self):
    program = """if True:
      import os, signal, sys
      print('{"a": 1}', flush=True)
      print("the last words", file=sys.stderr, flush=True)
      print('{"b": 1', flush=True)
      os.kill(os.getpid(), signal.SIGILL)
    """
    self.assertEqual(
      self.outcome(program), {"a": 1, "one_error": "killed by SIGILL: the last words"}
    )

  def test_an_exception(self):
    found = self.outcome("raise MemoryError('no more')")
    self.assertEqual(found, {"one_error": "exit code 1: MemoryError: no more"})

  def test_what_the_part_says_itself(self):
    found = self.outcome("""print('{"one_error": "so"}'); raise SystemExit(1)""")
    self.assertEqual(found, {"one_error": "so"})

  def test_the_end_of_its_time(self):
    program = """if True:
      import subprocess, sys, time
      # It holds the pipe open: the test would wait for it.
      subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
      print('{"a": 1}', flush=True)
      time.sleep(600)
    """
    started = time.monotonic()
    found = self.outcome(program, seconds=5.0)
    self.assertEqual(found, {"a": 1, "one_error": "was not done after 5 s"})
    self.assertLess(time.monotonic() - started, 300)


class ProgramTest(unittest.TestCase):
  def figures(self, *words: str) -> dict:
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory, "gpu.json")
      command = [sys.executable, "benchmarks/gpu.py", "--tiny", f"--json={path}"]
      subprocess.run([*command, *words], cwd=ROOT, check=True, capture_output=True)
      return json.loads(path.read_text())

  def test_no_time(self):
    found = self.figures("--minutes=0", "--parts=about,torch")
    self.assertEqual(found["about_skipped"], "the 0 minutes were over")
    self.assertEqual(found["torch_skipped"], "the 0 minutes were over")

  @pytest.mark.long
  def test_all_parts(self):
    found = self.figures("--minutes=60")
    errors = {key: value for key, value in found.items() if key.endswith("_error")}
    for key, value in errors.items():
      self.assertTrue(any(name in key for name in BFLOAT16), errors)
      self.assertIn("no instructions for bfloat16", value)
    for case in ("tf32_folded", "tf32_plain", "float32_folded"):
      for name in (case, f"{case}_xla"):
        for loop in ("trainer", "bare"):
          self.assertGreater(found[f"{loop}_{name}_images_per_second"], 0)
        self.assertGreater(found[f"trainer_over_bare_{name}"], 0)
    self.assertGreater(found["resnet50_tf32_folded_xla_images_per_second"], 0)
    self.assertEqual(found["autoattack_robust_accuracy"], 1.0)
    self.assertGreater(found["autoattack_suite_seconds"], 0)
    for name in ("apgd_ce", "apgd_t", "fab_t", "square"):
      self.assertGreater(found[f"autoattack_{name}_seconds"], 0)
    for bits in (8, 4, 2):
      self.assertGreater(found[f"quantize_ms_{bits}bit"], 0)
      self.assertGreater(found[f"dequantize_ms_{bits}bit"], 0)
    self.assertEqual(found["all_reduce_replicas"], 2)
    self.assertGreater(found["all_reduce_gb_per_second"], 0)


if __name__ == "__main__":
  unittest.main()
