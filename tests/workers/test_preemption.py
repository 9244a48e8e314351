"""What a process does when it is told to end while it trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import tensorflow as tf

from dat_tf.workers import preemption


def wait_for(condition):
  deadline = time.monotonic() + 10
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.01)
  return condition()


class AwaitedTest(tf.test.TestCase):
  def test_a_signal_is_taken_note_of(self):
    for number in (signal.SIGTERM, signal.SIGUSR1):
      before, threads = signal.getsignal(number), threading.active_count()
      with (
        self.assertRaises(preemption.Preempted),
        preemption.awaited(60.0, 0) as is_told_to_end,
      ):
        self.assertFalse(is_told_to_end())
        os.kill(os.getpid(), number)
        self.assertTrue(wait_for(is_told_to_end))
        raise preemption.Preempted
      # Nothing is left that would end this process later.
      self.assertTrue(wait_for(lambda most=threads: threading.active_count() <= most))
      self.assertEqual(signal.getsignal(number), before)

  def test_other_signals_are_not(self):
    previous = signal.signal(signal.SIGUSR2, lambda *_: None)
    self.addCleanup(signal.signal, signal.SIGUSR2, previous)
    with preemption.awaited(60.0, 0) as is_told_to_end:
      os.kill(os.getpid(), signal.SIGUSR2)
      time.sleep(0.1)
      self.assertFalse(is_told_to_end())

  def run_program(self, body):
    program = f"""
import os, signal, time
from dat_tf.workers import preemption
with preemption.awaited(0.2, 3) as is_told_to_end:
  os.kill(os.getpid(), signal.SIGUSR1)
  {body}
print("after it")
"""
    return subprocess.run(
      [sys.executable, "-c", program],
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )

  def test_nobody_waits_for_ever(self):
    run = self.run_program("time.sleep(30)")
    self.assertEqual(run.returncode, 143, run.stderr)
    self.assertEqual(run.stdout, "")
    self.assertRegex(run.stderr, r"\AWorker 3 ends: .* 0\.2 s of --grace")

  def test_a_signal_that_nobody_acts_upon_ends_the_process(self):
    run = self.run_program("time.sleep(0.1)")
    self.assertEqual((run.returncode, run.stdout), (-signal.SIGTERM, ""))


if __name__ == "__main__":
  tf.test.main()
