"""What programs show when they start, and how they end."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import unittest

from dat_tf.compat import quiet

ROOT = pathlib.Path(__file__).resolve().parents[2]

# As TensorFlow 2.15 writes them.
NOISE = """\
2026-01-01 00:00:00.0: I tensorflow/core/util/port.cc:113] oneDNN custom operations are on.
2026-01-01 00:00:00.0: I external/local_tsl/tsl/cuda/cudart_stub.cc:31] Could not find cuda drivers on your machine
2026-01-01 00:00:00.0: E external/local_xla/xla/stream_executor/cuda/cuda_dnn.cc:9261] Unable to register cuDNN factory: x
2026-01-01 00:00:00.0: E external/local_xla/xla/stream_executor/cuda/cuda_blas.cc:1515] Unable to register cuBLAS factory: x
2026-01-01 00:00:00.0: I tensorflow/core/platform/cpu_feature_guard.cc:182] This TensorFlow binary is optimized
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.
2026-01-01 00:00:00.0: W tensorflow/compiler/tf2tensorrt/utils/py_utils.cc:38] TF-TRT Warning: Could not find TensorRT
2026-01-01 00:00:00.0: W tensorflow/core/grappler/optimizers/data/auto_shard.cc:553] Input of GeneratorDatasetOp::Dataset will not be optimized
"""  # noqa: E501
NEWS = """\
2026-01-01 00:00:00.0: W tensorflow/core/framework/op_kernel.cc:1839] OP_REQUIRES failed
2026-01-01 00:00:00.0: E external/local_xla/xla/stream_executor/cuda: out of memory
UserWarning: the moon is full
a line without an end"""


@contextlib.contextmanager
def stderr_to(file):
  """While it lasts, descriptor 2 is `file`."""
  saved = os.dup(2)
  os.dup2(file.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)


class QuietTest(unittest.TestCase):
  def setUp(self):
    super().setUp()
    self.file = tempfile.TemporaryFile()
    self.addCleanup(self.file.close)

  def shown(self):
    self.file.seek(0)
    return self.file.read().decode()

  def test_only_noise_is_dropped(self):
    mixed = "".join(
      f"{noise}\n{news}\n" for noise, news in zip(NOISE.splitlines(), NEWS.splitlines())
    )
    with stderr_to(self.file), quiet():
      os.write(2, (mixed + NOISE + NEWS).encode())
    expected = "\n".join(NEWS.splitlines()) + "\n" + NEWS
    self.assertEqual(self.shown(), expected)

  def test_nothing_is_shown_before_its_end_and_all_is_after_it(self):
    with stderr_to(self.file):
      with quiet():
        os.write(2, b"inside\n")
        self.assertEqual(self.shown(), "")
      self.assertEqual(self.shown(), "inside\n")
      os.write(2, NOISE.encode())
      self.assertEqual(self.shown(), "inside\n" + NOISE)

  def test_all_is_shown_after_an_exception(self):
    for error in (ValueError, KeyboardInterrupt, SystemExit):
      self.file.truncate(0)
      self.file.seek(0)
      with stderr_to(self.file), self.assertRaises(error), quiet():
        os.write(2, (NOISE + NEWS).encode())
        raise error
      self.assertEqual(self.shown(), NOISE + NEWS)

  def test_the_descriptor_is_restored_and_none_is_left_open(self):
    before = os.listdir("/proc/self/fd")
    with stderr_to(self.file):
      with quiet():
        self.assertNotEqual(os.fstat(2).st_ino, os.fstat(self.file.fileno()).st_ino)
      self.assertEqual(os.fstat(2).st_ino, os.fstat(self.file.fileno()).st_ino)
    self.assertEqual(os.listdir("/proc/self/fd"), before)


class EnvironmentTest(unittest.TestCase):
  def of_import(self, name, **environment):
    """The value of an environment variable once dat_tf is imported."""
    code = f"import dat_tf, os; print(os.environ['{name}'])"
    others = {key: value for key, value in os.environ.items() if key != name}
    return subprocess.run(
      [sys.executable, "-c", code],
      env={**others, "PYTHONPATH": str(ROOT), **environment},
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  def test_what_is_on_unless_the_user_turns_it_off(self):
    for name, on, off in (
      ("TF_ENABLE_ONEDNN_OPTS", "1", "0"),
      ("TF_FORCE_GPU_ALLOW_GROWTH", "true", "false"),
    ):
      self.assertEqual(self.of_import(name), on)
      self.assertEqual(self.of_import(name, **{name: off}), off)


class ScriptTest(unittest.TestCase):
  def run_script(self, *arguments):
    """Runs a script that adds two numbers, with a flag for each way to fail."""
    script = """
      import sys
      from absl import flags
      from dat_tf.base.errors import UserError
      from dat_tf.compat import quiet
      from dat_tf.program.startup import run_script
      ends = ["none", "code", "user", "bug", "key", "s3"]
      end = flags.DEFINE_enum("end", "none", ends, "How.")
      number = flags.DEFINE_integer("number", None, "At least 1.", lower_bound=1,
                                    required=True)
      def main(argv):
        with quiet():
          print("printed", file=sys.stderr)
          if end.value == "user":
            raise UserError("The file\\n  is empty: fill it.")
          if end.value == "bug":
            raise RuntimeError("a defect")
          if end.value == "s3":
            raise ValueError("File system scheme 's3' not implemented (file: 's3://a')")
          if end.value == "key":
            raise KeyboardInterrupt
        print(argv[1:], number.value)
        return 3 if end.value == "code" else None
      run_script(main)
    """
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    path = pathlib.Path(folder.name) / "script.py"
    path.write_text(textwrap.dedent(script))
    return subprocess.run(
      [sys.executable, str(path), *arguments],
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      capture_output=True,
      text=True,
    )

  def test_success(self):
    done = self.run_script("--number=4", "word")
    self.assertEqual(done.returncode, 0)
    self.assertEqual((done.stdout, done.stderr), ("['word'] 4\n", "printed\n"))

  def test_a_code_of_its_own(self):
    self.assertEqual(self.run_script("--number=4", "--end=code").returncode, 3)

  def test_a_users_mistake_is_one_line_and_code_2(self):
    done = self.run_script("--number=4", "--end=user")
    self.assertEqual(done.returncode, 2)
    lines = done.stderr.splitlines()
    self.assertEqual(lines, ["printed", "script.py: The file is empty: fill it."])

  def test_a_file_system_that_is_not_there(self):
    done = self.run_script("--number=4", "--end=s3")
    self.assertEqual(done.returncode, 2)
    self.assertEqual(len(done.stderr.splitlines()), 2)
    self.assertRegex(done.stderr, "no file system s3:// here: .* gs://.*tensorflow-io")

  def test_flagfiles_are_read_as_those_of_run_dat(self):
    with tempfile.NamedTemporaryFile("w", suffix=".flags") as file:
      file.write("--number=3 # three\n")
      file.flush()
      for words in (["--flagfile", file.name], [f"-flagfile={file.name}"]):
        done = self.run_script("--number=4", *words)
        self.assertEqual(done.stdout, "[] 4\n", done.stderr)
      self.assertEqual(self.run_script("--flagfile", file.name).stdout, "[] 3\n")

  def test_wrong_flags_are_one_line_and_code_2(self):
    for arguments, word in (
      ((), "--number"),
      (("--number=0",), "--number"),
      (("--number=4", "--color=red"), "color"),
      (("--number=4", "--end=never"), "--end"),
    ):
      done = self.run_script(*arguments)
      self.assertEqual(done.returncode, 2)
      self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
      self.assertRegex(done.stderr, rf"^script.py: .*{word}")

  def test_a_defect_shows_where_it_is(self):
    done = self.run_script("--number=4", "--end=bug")
    self.assertEqual(done.returncode, 1)
    self.assertIn("Traceback", done.stderr)
    self.assertIn("RuntimeError: a defect", done.stderr)

  def test_an_interruption_is_one_line(self):
    done = self.run_script("--number=4", "--end=key")
    self.assertEqual(done.returncode, 130)
    self.assertEqual(done.stderr.splitlines(), ["printed", "Interrupted."])

  def test_help_lists_the_scripts_flags(self):
    done = self.run_script("--help")
    self.assertIn("--number", done.stdout + done.stderr)
    self.assertNotIn("Traceback", done.stderr)


# Keeps a temporary file, says so, and ends when it is told to.
HOLDER = """
import tempfile
from dat_tf.program.startup import own_temporary_directory
own_temporary_directory()
file = tempfile.NamedTemporaryFile(delete=False)
print(file.name, flush=True)
input()
"""


class OwnTemporaryDirectoryTest(unittest.TestCase):
  def start(self, parent):
    process = subprocess.Popen(
      [sys.executable, "-c", HOLDER],
      cwd=ROOT,
      env={**os.environ, "TMPDIR": parent},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.communicate)
    self.addCleanup(process.kill)
    return process, pathlib.Path(process.stdout.readline().strip())

  def test_what_a_killed_process_left_goes_and_no_more(self):
    with tempfile.TemporaryDirectory() as parent:
      users_own = pathlib.Path(parent, "dat-tf-run1", "checkpoints")
      users_own.mkdir(parents=True)
      killed, left = self.start(parent)
      living, kept = self.start(parent)
      self.assertTrue(left.is_file())  # of a process that lives
      killed.kill()
      killed.wait()
      self.assertTrue(left.is_file())
      ends, own = self.start(parent)
      self.assertFalse(left.parent.exists())
      self.assertTrue(kept.is_file())
      ends.communicate("\n")
      self.assertFalse(own.parent.exists())
      self.assertTrue(kept.is_file())
      living.communicate("\n")
      self.assertEqual(os.listdir(parent), ["dat-tf-run1"])
      self.assertTrue(users_own.is_dir())


class LeaveTest(unittest.TestCase):
  def leave(self, body):
    program = f"""
import tempfile, threading, time
from dat_tf.program.startup import leave, own_temporary_directory
own_temporary_directory()
print(tempfile.gettempdir())
class Slow:
  def __del__(self):
    time.sleep(60)
kept = Slow()
{body}
"""
    process = subprocess.run(
      [sys.executable, "-c", program],
      capture_output=True,
      text=True,
      timeout=40,
      check=False,
    )
    own, *lines = process.stdout.splitlines()
    self.assertFalse(os.path.exists(own))
    return process.returncode, lines, process.stderr

  def test_at_once_with_its_code(self):
    self.assertEqual(self.leave("leave(None)"), (0, [], ""))
    self.assertEqual(self.leave("leave(75)"), (75, [], ""))

  def test_a_text_is_said(self):
    self.assertEqual(self.leave("leave('The end.')"), (1, [], "The end.\n"))

  def test_what_is_being_written_is_waited_for(self):
    body = """
def write():
  time.sleep(0.5)
  print("written")
threading.Thread(target=write).start()
leave(3)
"""
    self.assertEqual(self.leave(body), (3, ["written"], ""))


if __name__ == "__main__":
  unittest.main()
