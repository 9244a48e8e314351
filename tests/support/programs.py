"""Runs a program of the project in a process of its own.

The process is forked from one that has imported TensorFlow, but not used it: that
import alone takes seconds. What a program prints while it imports is not seen.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence

from dat_tf.base import stack

ROOT = pathlib.Path(__file__).resolve().parents[2]
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["dat_tf.program.evaluating", "dat_tf.program.training"])


def run_program(
  words: Sequence[str], environment: Mapping[str, str], timeout: float = 300.0
) -> subprocess.CompletedProcess:
  """Runs a program in the project's root, as `subprocess.run` would.

  Args:
    words: the program's path there, and its arguments.
    environment: its environment variables.
    timeout: seconds.

  Returns:
    Its exit code, `stdout` and `stderr`.

  Raises:
    subprocess.TimeoutExpired: it did not end in time, and was killed.
  """
  with tempfile.TemporaryDirectory() as directory:
    outputs = [os.path.join(directory, name) for name in ("stdout", "stderr")]
    process = FORKED.Process(
      target=_run, args=(outputs, list(words), dict(environment)), daemon=True
    )
    process.start()
    process.join(timeout)
    if process.is_alive():
      process.kill()
      process.join()
      raise subprocess.TimeoutExpired(words, timeout)
    texts = [pathlib.Path(path).read_text("utf-8") for path in outputs]
    return subprocess.CompletedProcess(words, process.exitcode, *texts)


def become(outputs: Sequence[str], environment: Mapping[str, str]) -> None:
  """Gives this process files for stdout and stderr, and environment variables."""
  for descriptor, path in zip((1, 2), outputs):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
  os.environ.clear()
  os.environ.update(environment)


def leave(code: int) -> None:
  """Ends this process without what multiprocessing would do at its end."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _run(outputs: list[str], words: list[str], environment: dict[str, str]) -> None:
  become(outputs, environment)
  stack.prepare()  # as the import of the package, which was before
  os.chdir(ROOT)
  also = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
  sys.path[:0] = [str((ROOT / words[0]).parent), *also]
  sys.argv = words
  code: object = 0
  try:
    runpy.run_path(words[0], run_name="__main__")
  except SystemExit as end:
    code = end.code
    if not isinstance(code, (int, type(None))):
      print(code, file=sys.stderr)
      code = 1
  except BaseException:
    traceback.print_exc()
    code = 1
  atexit._run_exitfuncs()
  leave(int(code or 0))
