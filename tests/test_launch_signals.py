"""What the launcher and its workers do with signals."""

from __future__ import annotations

import signal
import sys
import unittest

from launch_case import ScriptTest

from dat_tf.workers.preemption import PREEMPTED

WAIT = """
print("ready")
wait()
print("finished")
"""


class SignalTest(ScriptTest):
  def start_and_await(self, text, *args, num_workers=2):
    """A launcher whose workers have all written a line."""
    script = self.script(text)
    process = self.start(f"--num_workers={num_workers}", "--", script, *args)
    for _ in range(num_workers):
      self.assertRegex(process.stdout.readline(), rb"\[worker \d\] ready\n")
    return process

  def test_signals_are_passed_on(self):
    for number in (signal.SIGINT, signal.SIGTERM):
      handler = f"""
def save(number, _):
  print("saved after", number)
  sys.exit(0)
signal.signal({int(number)}, save)
"""
      process = self.start_and_await(handler + WAIT)
      process.send_signal(number)
      output, error = process.communicate()
      saved = f"saved after {int(number)}"
      self.assertCountEqual(
        output.decode().splitlines(), [f"[worker 0] {saved}", f"[worker 1] {saved}"]
      )
      self.assertEqual((process.returncode, error), (0, b""))

  def test_workers_that_a_signal_ends(self):
    process = self.start_and_await(WAIT)
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate()
    self.assertEqual((process.returncode, output, error), (143, b"", b""))

  def test_workers_that_have_saved(self):
    """They end one after the other, and none is a failure."""
    handler = f"""
def save(*_):
  time.sleep(0.3 * index)
  sys.exit({PREEMPTED})
signal.signal(signal.SIGUSR1, save)
"""
    process = self.start_and_await(handler + WAIT)
    process.send_signal(signal.SIGUSR1)
    self.assertEqual(process.communicate(), (b"", b""))
    self.assertEqual(process.returncode, PREEMPTED)

  def test_the_grace_after_a_signal(self):
    script = self.script("signal.signal(signal.SIGTERM, lambda *_: None)" + WAIT)
    options = "--num_workers=1", "--grace_seconds=0.2", "--max_restarts=1"
    process = self.start(*options, "--", script)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    self.assertEqual(process.returncode, 143)

  def test_a_second_sigint_kills(self):
    handler = 'signal.signal(signal.SIGINT, lambda *_: print("not yet"))\n'
    process = self.start_and_await(handler + WAIT, num_workers=1)
    process.send_signal(signal.SIGINT)
    self.assertEqual(process.stdout.readline(), b"[worker 0] not yet\n")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    self.assertEqual((process.returncode, output), (130, b""))

  @unittest.skipUnless(sys.platform == "linux", "needs prctl")
  def test_workers_end_with_a_killed_launcher(self):
    script = """
file = open(sys.argv[1], "w")
print("ready")
wait()
file.write("alive")
"""
    with self.assert_closed_unwritten() as fifo:
      process = self.start_and_await(script, fifo)
      process.kill()
    process.communicate()

  def test_workers_end_when_nobody_reads(self):
    process = self.start_and_await(
      "print('ready')\nwhile True: print('spam')", num_workers=1
    )
    process.stdout.close()
    self.assertEqual(process.wait(), -signal.SIGPIPE)
    process.stderr.close()


if __name__ == "__main__":
  unittest.main()
