"""The lock on a run's directory, taken by processes that live, die and freeze."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock

import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.program import locking

_HOLD = """
import sys, time
from dat_tf.program.locking import Lock
Lock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


class LockTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(tempfile.mkdtemp(dir=self.get_temp_dir()))
    self.directory = str(self.folder / "run")
    self.path = self.folder / "run" / "lock"

  def holder(self):
    """Another process that has the lock."""
    process = subprocess.Popen(
      [sys.executable, "-c", _HOLD, self.directory],
      stdout=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.wait)
    self.addCleanup(process.kill)
    self.addCleanup(process.stdout.close)
    self.assertEqual(process.stdout.readline(), "held\n")
    return process

  def taken(self):
    """Takes the lock; what is printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
      lock = locking.Lock(self.directory)
    self.addCleanup(lock.release)
    return output.getvalue()

  def write(self, **owner):
    self.path.parent.mkdir(exist_ok=True)
    self.path.write_text(json.dumps({"pid": 1, "since": "then", **owner}))

  def test_it_names_its_process_and_goes_with_it(self):
    lock = locking.Lock(self.directory)
    owner = json.loads(self.path.read_text())
    self.assertEqual(owner["host"], socket.gethostname())
    self.assertEqual(owner["pid"], os.getpid())
    self.assertStartsWith(owner["since"], time.strftime("%Y-"))
    lock.check()
    lock.release()
    self.assertEqual(os.listdir(self.folder), [])

  def test_a_directory_that_was_there_stays(self):
    os.makedirs(self.directory)
    locking.Lock(self.directory).release()
    self.assertEqual(os.listdir(self.directory), [])

  def test_a_second_process_is_refused_and_told_who_holds_it(self):
    process = self.holder()
    since = json.loads(self.path.read_text())["since"]
    with self.assertRaisesRegex(
      UserError, rf"process {process.pid} on .* since {re.escape(since)}"
    ):
      locking.Lock(self.directory)
    process.send_signal(signal.SIGSTOP)  # it may go on at any time
    with self.assertRaisesRegex(UserError, f"process {process.pid} "):
      locking.Lock(self.directory)
    process.send_signal(signal.SIGCONT)

  def test_a_killed_process_loses_it(self):
    process = self.holder()
    process.kill()
    process.wait()
    self.assertRegex(
      self.taken(), rf"\AWarning: .* taken over: process {process.pid} on .*\n\Z"
    )
    self.assertEqual(json.loads(self.path.read_text())["pid"], os.getpid())

  def test_another_host_is_dead_once_it_is_silent(self):
    self.write(host="elsewhere", pid=7)
    with self.assertRaisesRegex(UserError, f"process 7 on elsewhere.*{self.path}"):
      locking.Lock(self.directory)
    self.assertEqual(json.loads(self.path.read_text())["host"], "elsewhere")
    long_ago = time.time() - 600
    os.utime(self.path, (long_ago, long_ago))
    self.assertIn("process 7 on elsewhere", self.taken())

  def test_its_owner_is_never_silent(self):
    with mock.patch.object(locking, "_BEAT", 0.05):
      lock = locking.Lock(self.directory)
      self.addCleanup(lock.release)
      os.utime(self.path, (1, 1))
      for _ in range(200):
        if self.path.stat().st_mtime > 1:
          break
        time.sleep(0.05)
    self.assertLess(time.time() - self.path.stat().st_mtime, 60)

  def test_garbage_is_nobodys(self):
    os.makedirs(self.directory)
    for text in (b"", b"{", b"\xff", b"[]", b'{"pid": "x"}'):
      self.path.write_bytes(text)
      lock = locking.Lock(self.directory)
      lock.check()
      lock.release()

  def test_a_lock_that_is_lost_is_noticed(self):
    lock = locking.Lock(self.directory)
    self.addCleanup(lock.release)
    tf.io.gfile.rmtree(self.directory)
    with self.assertRaisesRegex(UserError, "is gone or another's"):
      lock.check()
    self.write(host="elsewhere")
    with self.assertRaisesRegex(UserError, "is gone or another's"):
      lock.check()
    lock.release()
    self.assertEqual(json.loads(self.path.read_text())["host"], "elsewhere")

  def test_where_the_kernel_cannot_lock_the_file_decides(self):
    refuse = mock.patch.object(fcntl, "flock", side_effect=OSError(38, "no locks"))
    with refuse:
      process = self.holder()
      with self.assertRaisesRegex(UserError, f"process {process.pid} "):
        locking.Lock(self.directory)
      process.kill()
      process.wait()
      self.assertIn(f"process {process.pid} ", self.taken())

  def test_an_object_store(self):
    self.directory = "ram://test_locking/run"
    lock = locking.Lock(self.directory)
    pid = os.getpid()
    with mock.patch.object(os, "getpid", return_value=pid + 1):
      with self.assertRaisesRegex(UserError, f"process {pid} "):
        locking.Lock(self.directory)
    lock.check()
    lock.release()
    self.assertFalse(tf.io.gfile.exists(lock.path))

  def test_a_directory_that_cannot_be_made(self):
    (self.folder / "file").touch()
    with self.assertRaisesRegex(UserError, "cannot be written"):
      locking.Lock(str(self.folder / "file" / "run"))


if __name__ == "__main__":
  tf.test.main()
