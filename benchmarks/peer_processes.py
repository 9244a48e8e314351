"""The peers' environment, and processes in it that take turns with ours."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import common
import tensorflow as tf
import tqdm

from dat_tf.base.errors import UserError

FOLDER = os.path.join(common.ROOT, ".venv-peers")
REQUIREMENTS = (
  "torch==2.13.0",
  "torchattacks==3.5.1",
  "adversarial-robustness-toolbox==1.20.1",
  "foolbox==3.3.4",
  "cleverhans==4.0.0",
)
THREADS = 2  # of ours and of each peer's
_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_peers.py")


class PeerError(Exception):
  """A peer's process ended; the text is the last line that it printed."""


@contextlib.contextmanager
def surviving(name: str) -> Iterator[None]:
  """What goes wrong inside is printed, with the name of whom it goes wrong for."""
  try:
    yield
  except (PeerError, UserError, tf.errors.OpError) as error:
    tqdm.tqdm.write(f"{name} is left out: {error}")


def environment(python: str) -> str:
  """Makes the peers' environment, unless it is there; returns its Python.

  Args:
    python: the interpreter that makes it.

  Raises:
    UserError: it cannot be made.
  """
  made = os.path.join(FOLDER, "requirements.txt")
  interpreter = os.path.join(FOLDER, "bin", "python")
  wanted = "\n".join(REQUIREMENTS) + "\n"
  if os.path.exists(made):
    with open(made, encoding="utf-8") as file:
      if file.read() == wanted:
        return interpreter
  try:
    subprocess.run([python, "-m", "venv", FOLDER], check=True)
    subprocess.run(
      [interpreter, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True
    )
  except (OSError, subprocess.CalledProcessError) as error:
    raise UserError(f"--python={python}: no environment for the peers: {error}.") from (
      None
    )
  # Written last: an installation that was interrupted is begun anew.
  with open(made, "w", encoding="utf-8") as file:
    file.write(wanted)
  return interpreter


class Peer:
  """A process of benchmarks/torch_peers.py, from its start to `close`."""

  def __init__(self, python: str, spec: Mapping[str, Any]):
    """Starts it, and waits until it is ready; raises PeerError if it never is."""
    self._printed = tempfile.TemporaryFile("w+", errors="replace")
    self._process = subprocess.Popen(
      [python, _SCRIPT, json.dumps(spec)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._printed,
      text=True,
    )
    if self._answer() != "ready":
      raise PeerError("it did not start as expected")

  def __call__(self, count: int) -> list[float]:
    """Its answer to `run COUNT`: seconds, and what else it measured."""
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(f"run {count}\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # what it printed says why
    return [float(word) for word in self._answer().split()]

  def _answer(self) -> str:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if line:
      return line.strip()
    code = self._process.wait()
    self._printed.seek(0)
    lines = self._printed.read().strip().splitlines()
    self.close()
    raise PeerError(lines[-1] if lines else f"it ended with code {code}")

  def close(self) -> None:
    self._process.kill()
    self._process.communicate()
    self._printed.close()
