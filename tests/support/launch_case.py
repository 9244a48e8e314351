"""Workers of the launcher that are small scripts without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import unittest

from programs import ROOT

from dat_tf import launch as launch_lib

HEAD = """
import json, os, signal, subprocess, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]

def wait():
  # Python handles a signal that comes just before a sleep only after it: short ones.
  for _ in range(1500):
    time.sleep(0.02)
"""


class ScriptTest(unittest.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.directory = directory.name

  def path(self, name):
    return os.path.join(self.directory, name)

  def script(self, text):
    path = self.path("script.py")
    with open(path, "w") as file:
      file.write(HEAD + text)
    return path

  @contextlib.contextmanager
  def assert_closed_unwritten(self):
    """Yields the path of a FIFO that somebody opens, and ends without writing to it."""
    path = self.path("fifo")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path
    os.set_blocking(reader, True)
    self.assertEqual(os.read(reader, 100), b"")  # when nobody has it open any more
    os.close(reader)

  def launch(self, text, num_workers, *args, output=None):
    output = output or io.BytesIO()
    command = [sys.executable, self.script(text), *args]
    outcome = launch_lib.launch(command, num_workers, output)
    return outcome, output.getvalue()

  def start(self, *argv):
    command = [sys.executable, "-m", "dat_tf.launch", *argv]
    environ = {**os.environ, "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen(
      command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    self.addCleanup(process.kill)
    return process
