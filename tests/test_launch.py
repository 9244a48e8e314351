"""The local launcher, with workers that are small scripts without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from unittest import mock

import pytest
from launch_case import ScriptTest
from programs import ROOT

from dat_tf import launch as launch_lib


def test_addresses_differ_and_are_free():
  addresses = launch_lib.free_addresses(50)
  assert len(set(addresses)) == 50
  for address in addresses:
    host, port = address.split(":")
    with socket.socket() as server:
      server.bind((host, int(port)))


@pytest.mark.parametrize(
  "cores, num_workers, expected",
  [
    ([0, 1], 1, [{0, 1}]),
    ([0, 1], 2, [{0}, {1}]),
    ([1, 3, 5, 7], 2, [{1, 3}, {5, 7}]),
    ([0, 1, 2, 3, 4], 2, [{0, 1}, {2, 3, 4}]),
    ([4, 6], 5, [{4}, {6}, {4}, {6}, {4}]),
  ],
)
def test_cores_are_split(cores, num_workers, expected):
  with mock.patch.object(os, "sched_getaffinity", lambda _: set(cores), create=True):
    assert launch_lib.split_cores(num_workers) == expected


class LaunchTest(ScriptTest):
  def test_each_worker_knows_its_cluster_and_cores(self):
    outcome, _ = self.launch(
      """
with open(f"{sys.argv[1]}/{index}", "w") as file:
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  leads_its_session = os.getsid(0) == os.getpid()
  json.dump([json.loads(os.environ["TF_CONFIG"]), cores, leads_its_session], file)
""",
      3,
      self.directory,
    )
    self.assertEqual(outcome, (0, ""))
    seen = []
    for index in range(3):
      with open(self.path(str(index))) as file:
        seen.append(json.load(file))
    addresses = seen[0][0]["cluster"]["worker"]
    self.assertEqual(len(set(addresses)), 3)
    shares = launch_lib.split_cores(3)
    for index, (tf_config, cores, leads_its_session) in enumerate(seen):
      self.assertEqual(tf_config["cluster"], {"worker": addresses})
      self.assertEqual(tf_config["task"], {"type": "worker", "index": index})
      self.assertEqual(set(cores), shares[index])
      self.assertTrue(leads_its_session)

  def test_whole_lines_are_interleaved(self):
    outcome, output = self.launch(
      """
for i in range(200):
  stream = (sys.stdout, sys.stderr)[i % 2]
  stream.write(f"line {i} of {index} ")
  stream.flush()
  stream.write("é" * 50 + "\\n")
  stream.flush()
print("unfinished", end="")
""",
      3,
    )
    self.assertEqual(outcome.exit_code, 0)
    lines = output.decode().split("\n")
    self.assertEqual(lines.pop(), "")
    for index in range(3):
      start, end = f"[worker {index}] ", "é" * 50
      self.assertEqual(
        [line for line in lines if line.startswith(start)],
        [f"{start}line {i} of {index} {end}" for i in range(200)]
        + [f"{start}unfinished"],
      )
    self.assertEqual(len(lines), 3 * 201)

  def test_carriage_returns_end_lines(self):
    _, output = self.launch('sys.stdout.write("a\\rb\\r\\n\\rc\\rd\\n")', 1)
    self.assertEqual(
      output, b"[worker 0] a\r[worker 0] b\r\n[worker 0] c\r[worker 0] d\n"
    )

  def test_on_a_terminal_the_chief_has_one_too_and_redraws_in_place(self):
    class Terminal(io.BytesIO):
      def isatty(self):
        return True

    size = os.terminal_size((100, 30))
    with mock.patch("shutil.get_terminal_size", return_value=size):
      outcome, output = self.launch(
        """
if sys.stderr.isatty():
  print(f"\\r  0 % of {os.get_terminal_size(2).columns}\\r100 %", file=sys.stderr)
else:
  print("no terminal")
""",
        2,
        output=Terminal(),
      )
    self.assertEqual(outcome, (0, ""))
    erase = b"\x1b[K"
    columns = str(100 - len("[worker 0] ")).encode()
    bar = [b"[worker 0]   0 % of " + columns + b"\r", b"[worker 0] 100 %\n"]
    pieces = output.split(erase)[1:]
    self.assertCountEqual(pieces, [*bar, b"[worker 1] no terminal\n", b""])
    self.assertEqual([piece for piece in pieces if piece in bar], bar)

  def test_one_failure_ends_all_and_its_last_lines_are_repeated(self):
    outcome, output = self.launch(
      """
if index == 1:
  for i in range(30):
    print("line", i)
  sys.exit(3)
time.sleep(60)
print("finished")
""",
      3,
    )
    self.assertEqual(outcome.exit_code, 3)
    heading, *lines = outcome.message.split("\n")
    self.assertRegex(heading, "Worker 1 .* exit code 3")
    self.assertEqual(lines, [f"line {i}" for i in range(10, 30)])
    self.assertNotIn(b"finished", output)
    self.assertIn(b"[worker 1] line 0\n", output)

  def test_the_first_failure_is_the_one_reported(self):
    outcome, _ = self.launch(
      """
def fail(*_):
  print("my peer has gone")
  sys.exit(5)
if index == 0:
  signal.signal(signal.SIGTERM, fail)
  open(sys.argv[1], "w").close()
  time.sleep(60)
while not os.path.exists(sys.argv[1]):
  time.sleep(0.01)
print("the cause")
sys.exit(3)
""",
      2,
      self.path("ready"),
    )
    self.assertEqual(outcome.exit_code, 3)
    self.assertTrue(outcome.message.endswith("\nthe cause"), outcome.message)
    self.assertNotIn("peer", outcome.message)

  def test_of_a_users_mistake_the_last_line_alone_is_repeated(self):
    outcome, _ = self.launch(
      'print("noise\\nrun_dat.py: wrong flag.\\n"); sys.exit(2)', 1
    )
    self.assertEqual(outcome.exit_code, 2)
    self.assertEqual(outcome.message.split("\n")[1:], ["run_dat.py: wrong flag."])

  def test_a_worker_ended_by_a_signal(self):
    outcome, _ = self.launch("os.kill(os.getpid(), signal.SIGKILL)", 1)
    self.assertEqual(outcome.exit_code, 137)
    self.assertIn("signal 9", outcome.message)

  def test_a_worker_that_ignores_sigterm_is_killed_after_a_grace(self):
    with mock.patch.object(launch_lib, "_FAILURE_GRACE_SECONDS", 0.5):
      outcome, output = self.launch(
        """
if index == 0:
  signal.signal(signal.SIGTERM, lambda *_: print("asked to end"))
  open(sys.argv[1], "w").close()
  wait()
  print("finished")
while not os.path.exists(sys.argv[1]):
  time.sleep(0.01)
sys.exit(4)
""",
        2,
        self.path("ready"),
      )
    self.assertEqual((outcome.exit_code, output), (4, b"[worker 0] asked to end\n"))

  def test_what_a_worker_leaves_running_ends_with_it(self):
    script = """
command = ["sh", "-c", "sleep 30; echo alive"]
subprocess.Popen(command, stdout=open(sys.argv[1], "w"))
"""
    with self.assert_closed_unwritten() as fifo:
      outcome, _ = self.launch(script, 1, fifo)
    self.assertEqual(outcome, (0, ""))

  def test_signal_handlers_are_put_back(self):
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
    before = [signal.getsignal(number) for number in numbers]
    self.launch("", 1)
    self.assertEqual([signal.getsignal(number) for number in numbers], before)


class CommandLineTest(ScriptTest):
  def run_launcher(self, *argv):
    process = self.start(*argv)
    output, error = process.communicate()
    return process.returncode, output.decode(), error.decode()

  def test_arguments_reach_the_command(self):
    script = self.script("print(sys.argv[1:])")
    code, output, _ = self.run_launcher(
      "--num_workers=1", "--communication=ring", "--", script, "--flag=1", "--", "x y"
    )
    arguments = ["--flag=1", "--", "x y", "--communication=ring"]
    self.assertEqual((code, output), (0, f"[worker 0] {arguments}\n"))

  def test_modules_and_programs(self):
    self.script("print('a module', index)")
    with mock.patch.dict(os.environ, PYTHONPATH=self.directory):
      code, output, _ = self.run_launcher("--num_workers=1", "--", "-m", "script")
    self.assertEqual((code, output), (0, "[worker 0] a module 0\n"))
    code, output, _ = self.run_launcher("--num_workers=1", "--", "echo", "a program")
    self.assertEqual((code, output), (0, "[worker 0] a program\n"))

  def test_exit_code_and_message_of_a_failure(self):
    script = self.script("print('why', file=sys.stderr); sys.exit(7)")
    code, output, error = self.run_launcher("--num_workers=1", "--", script)
    self.assertEqual((code, output), (7, "[worker 0] why\n"))
    self.assertRegex(error, r"\AWorker 0 .* code 7.*\nwhy\n\Z")

  def restarted(self, text, *options):
    """Exit code, output and errors; workers know which `launch` it is, from 1."""
    counted = """
with open(f"{sys.argv[1]}/{index}", "a") as file:
  file.write("x")
  launch = file.tell()
"""
    return self.run_launcher(
      *["--num_workers=2", "--restart_backoff=0.01", *options, "--"],
      self.script(counted + text),
      self.directory,
    )

  def test_all_start_again_after_a_failure(self):
    script = """
if index == 1 and launch < 3:
  print("launch", launch, flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
if launch < 3:
  wait()
"""
    code, output, error = self.restarted(script, "--max_restarts=5")
    self.assertEqual((code, error), (0, ""))
    self.assertEqual(open(self.path("1")).read(), "xxx")
    self.assertIn("\nlaunch 2\nAll workers start again (2 of 5 times) after", output)

  def test_the_last_failure_counts_when_restarts_are_used_up(self):
    script = (
      "if index == 0:\n  print('launch', launch)\n  sys.exit(10 + launch)\nwait()"
    )
    code, _, error = self.restarted(script, "--max_restarts=2")
    self.assertEqual(code, 13)
    self.assertRegex(error, r"\AWorker 0 .* code 13.*\nlaunch 3\n\Z")

  def test_a_mistake_is_not_tried_again(self):
    script = "if index == 0:\n  print('no such flag')\n  sys.exit(2)\nwait()"
    code, output, error = self.restarted(script, "--max_restarts=2")
    self.assertEqual((code, open(self.path("0")).read()), (2, "x"))
    self.assertNotIn("again", output)
    self.assertTrue(error.endswith("no such flag\n"))

  def test_a_signal_ends_the_wait_for_a_restart(self):
    script = self.script("sys.exit(1)")
    options = "--num_workers=1", "--max_restarts=9", "--restart_backoff=600"
    process = self.start(*options, "--", script)
    while b"start again" not in process.stdout.readline():
      pass
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    self.assertEqual((process.returncode, error), (143, b""))

  def test_does_not_load_tensorflow(self):
    program = """
import sys, dat_tf.launch, dat_tf.workers.cluster
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
  "argv, fault",
  [
    ([], "--num_workers"),
    (["--num_workers=2"], "no command"),
    (["--num_workers=2", "--"], "no command"),
    (["--num_workers=0", "--", "echo"], "--num_workers=0"),
    (["--num_workers=-1", "--", "echo"], "--num_workers=-1"),
    (["--num_workers=two", "--", "echo"], "two"),
    (["--num_workers=2", "run_dat.py"], "run_dat.py"),
    (["--num_workers=2", "--communication=pigeon", "--", "echo"], "pigeon"),
    (["--num_workers=2", "--max_restarts=-1", "--", "echo"], "--max_restarts=-1"),
    (["--num_workers=2", "--restart_backoff=nan", "--", "echo"], "backoff=nan"),
    (["--num_workers=2", "--grace_seconds=0", "--", "echo"], "grace_seconds=0"),
    (["--num_workers=2", "--", "/nowhere/run_dat.py"], "/nowhere/run_dat.py"),
    (["--num_workers=2", "--", "/nowhere/program"], "/nowhere/program"),
    (["--num_workers=2", "--", str(ROOT)], "cannot be run"),
  ],
)
def test_a_mistake_is_one_line(argv, fault):
  stderr = io.StringIO()
  with contextlib.redirect_stderr(stderr):
    code = launch_lib.main(["launch.py", *argv])
  assert code == 2
  assert fault in stderr.getvalue()
  assert stderr.getvalue().count("\n") == 1
