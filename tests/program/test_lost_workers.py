"""Workers started by hand, of which one is lost: the other ends and names it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf
from program_case import ROOT, ProgramCase, run_dat

from dat_tf.launch import free_addresses
from dat_tf.program.checkpoint_files import START, present
from dat_tf.workers.preemption import PREEMPTED


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

  def launch(self, flags, *options):
    words = [f"--{name}={value}" for name, value in flags.items()]
    launcher = subprocess.Popen(
      [sys.executable, "-m", "dat_tf.launch", "--num_workers=2", *options]
      + ["--", "run_dat.py", *words],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    self.addCleanup(launcher.communicate)
    self.addCleanup(launcher.kill)
    return launcher

  def children(self, launcher):
    children = f"/proc/{launcher.pid}/task/{launcher.pid}/children"
    return [int(pid) for pid in pathlib.Path(children).read_text().split()]

  def await_epoch(self, launcher, model_dir, epoch):
    # That very checkpoint may be gone before it is seen.
    checkpoints = str(model_dir / "checkpoints")
    while max(present(checkpoints), default=START).epochs < epoch:
      self.assertIsNone(launcher.poll())
      time.sleep(0.01)

  def assert_same_checkpoints(self, first, second, name):
    weights = [
      tf.train.load_checkpoint(str(self.folder / folder / "checkpoints" / name))
      for folder in (first, second)
    ]
    names = [x for x in weights[0].get_variable_to_shape_map() if "CHECKPOINT" not in x]
    self.assertGreater(len(names), 10)
    for name in names:
      self.assertAllEqual(*(each.get_tensor(name) for each in weights), msg=name)

  @pytest.mark.long
  def test_started_again_by_the_launcher(self):
    """The weights are those of a run without a failure, bit for bit."""
    flags = {**self.flags, "mode": "train", "epochs": 30, "checkpoint_steps": 2}
    whole = run_dat({**flags, "model_dir": self.folder / "whole"}, 2)
    self.assertEqual(whole.returncode, 0, whole.stderr)
    flags["model_dir"] = again = self.folder / "again"
    launcher = self.launch(flags, "--max_restarts=2")
    for epoch in (5, 15):
      self.await_epoch(launcher, again, epoch)
      os.kill(self.children(launcher)[-1], signal.SIGKILL)
    out, _ = launcher.communicate(timeout=200)
    self.assertEqual(launcher.returncode, 0, out)
    self.assertIn("All workers start again (2 of 2 times)", out)
    self.assert_same_checkpoints("whole", "again", "epoch-30")

  @pytest.mark.long
  def test_told_to_end(self):
    """All save after the same step; the same command ends as a run left in peace."""
    # Steps long enough for the run not to be over when it ends.
    flags = {**self.flags, "mode": "train", "epochs": 100, "attack_steps": 30}
    self.assert_good(run_dat({**flags, "model_dir": self.folder / "peace"}, 2))
    flags["model_dir"] = model_dir = self.folder / "told"
    for number in (signal.SIGTERM, signal.SIGUSR1):
      launcher = self.launch(flags, "--max_restarts=3")
      first = max(present(str(model_dir / "checkpoints")), default=START).epochs
      self.await_epoch(launcher, model_dir, first + 10)
      if number == signal.SIGTERM:
        launcher.send_signal(number)
      else:
        os.kill(self.children(launcher)[1], number)  # one worker alone
      out, _ = launcher.communicate(timeout=60)
      self.assertEqual(launcher.returncode, PREEMPTED, out)
      self.assertIn("told: saved, since a worker was told to end. The same", out)
      self.assertNotIn("again", out)
    out, _ = self.launch(flags).communicate(timeout=200)
    self.assert_same_checkpoints("peace", "told", "epoch-100")

  @pytest.mark.long
  def test_frozen_in_evaluation(self):
    flags = {**self.flags, "model_dir": self.folder / "c"}
    self.assert_good(run_dat({**flags, "mode": "train"}))
    flags |= {"mode": "evaluate", "attacks": "pgd-1000x1000"}
    self.lose(flags, signal.SIGSTOP, "evaluating: ")
