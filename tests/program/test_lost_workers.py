"""Workers started by hand, of which one is lost: the other ends and names it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from program_case import ROOT, ProgramCase, run_dat

from dat_tf.launch import free_addresses


class LostWorkerTest(ProgramCase):
  def start(self, flags, index, addresses):
    task = {"type": "worker", "index": index}
    config = {"cluster": {"worker": addresses}, "task": task}
    words = [f"--{name}={value}" for name, value in flags.items()]
    process = subprocess.Popen(
      [sys.executable, "run_dat.py", *words],
      cwd=ROOT,
      env={**os.environ, "TF_CONFIG": json.dumps(config), "TF_CPP_MIN_LOG_LEVEL": "3"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    self.addCleanup(process.communicate)
    self.addCleanup(process.kill)
    return process

  def lose(self, flags, number, place):
    """The last line of worker 0 after worker 1 got a signal at some place."""
    addresses = free_addresses(2)
    first, second = (self.start(flags, index, addresses) for index in (0, 1))
    seen = ""
    while place not in seen:
      self.assertTrue(character := first.stdout.read(1), seen)
      seen += character
    time.sleep(1.0)  # into its steps
    second.send_signal(number)
    out, _ = first.communicate(timeout=200)
    self.assertEqual(first.returncode, 1, out)
    self.assertNotIn("Traceback", out)
    line = out.strip().splitlines()[-1]
    self.assertIn(f"Worker 0 ends because worker 1 ({addresses[1]}) ", line)
    return line

  def test_killed_in_training(self):
    flags = {**self.flags, "model_dir": self.folder / "a", "epochs": 10_000}
    self.lose(flags, signal.SIGKILL, "training: ")

  @pytest.mark.long
  def test_killed_in_evaluation(self):
    flags = {**self.flags, "model_dir": self.folder / "b"}
    self.assert_good(run_dat({**flags, "mode": "train"}))
    # Of restarts without end: far longer than the test takes.
    flags |= {"mode": "evaluate", "attacks": "pgd-1000x1000"}
    line = self.lose(flags, signal.SIGKILL, "evaluating: ")
    # Clean accuracy, with collectives, may not be done by then.
    self.assertRegex(line, r" (has ended|was lost): see")

  @pytest.mark.long
  def test_frozen_in_evaluation(self):
    flags = {**self.flags, "model_dir": self.folder / "c"}
    self.assert_good(run_dat({**flags, "mode": "train"}))
    flags |= {"mode": "evaluate", "attacks": "pgd-1000x1000"}
    self.lose(flags, signal.SIGSTOP, "evaluating: ")
