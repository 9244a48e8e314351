"""What is told of a run from outside."""

from __future__ import annotations

import json
import os
import socket
import tempfile

import tensorflow as tf
from program_case import run_dat

from dat_tf.base import files
from dat_tf.base.errors import UserError
from dat_tf.base.run_directory import RunDirectory
from dat_tf.monitoring import Events
from dat_tf.program.status import status


class StatusTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = RunDirectory(tempfile.mkdtemp(dir=self.get_temp_dir()))
    self.events = Events(self.directory.events)

  def test_at_work(self):
    self.events.write_start(0, 0, workers=2)
    self.events.write("save", 1, 23, seconds=0.1, bytes=9, seconds_per_step=0.001)
    self.events.write("start", 1, 23, workers=2, restarts=1, cause="Worker 1 failed")
    owner = {"host": socket.gethostname(), "pid": os.getppid(), "since": "2026-01-01"}
    files.write_text(self.directory.lock, json.dumps(owner))
    told = status(self.directory).splitlines()
    self.assertRegex(told[0], r": process \d+ on \S+ is at work since 20\d\d-")
    self.assertRegex(told[1], r"2 worker\(s\); 1 epoch\(s\), 23 step\(s\) .* 0:00:0")
    self.assertRegex(told[2], r"started 2 times, .* 0:00:0\d ago: worker 1 failed\.")
    self.assertRegex(told[3], r"Goodput: \d+\.\d%\.")
    self.assertLen(told, 4)

  def test_at_its_end(self):
    self.events.write_start(0, 0, workers=1)
    self.events.write_here("failure", cause="a bad record")
    told = status(self.directory).splitlines()
    self.assertEndsWith(told[0], ": nothing runs there.")
    self.assertEqual(told[2:], ["It ended by an error: a bad record"])

  def test_nothing_there(self):
    with self.assertRaisesRegex(UserError, "tells of no training"):
      status(self.directory)
    run = run_dat({"mode": "status", "model_dir": self.directory.path})
    self.assertEqual(run.returncode, 2)
    self.assertLen(run.stderr.splitlines(), 1)


if __name__ == "__main__":
  tf.test.main()
