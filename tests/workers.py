"""Runs a function of a test in several real worker processes.

    def _ranks(offset):  # at the top level of the test's file
      return Cluster.from_environment().index + offset

    results = run_workers(_ranks, 2, 10)  # [10, 11]

Each process imports the test's file and starts TensorFlow anew, which takes seconds: a
function should do many checks in one go.
"""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import sys
import tempfile
from typing import Any, Callable
from unittest import mock

from dat_tf.cluster import Cluster
from dat_tf.launch import launch


def run_workers(
  function: Callable[..., Any], num_workers: int, *args: Any
) -> list[Any]:
  """Calls `function(*args)` in every worker of a cluster on this host.

  Args:
    function: defined at the top level of a file.
    num_workers: at least 1.
    *args: picklable.

  Returns:
    What it returned in each worker, by index; picklable.

  Raises:
    RuntimeError: a worker failed. Its text has all that the workers wrote.
  """
  with tempfile.TemporaryDirectory() as directory:
    with open(os.path.join(directory, "request"), "wb") as file:
      pickle.dump((function.__code__.co_filename, function.__name__, args), file)
    output = io.BytesIO()
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
      outcome = launch([sys.executable, __file__, directory], num_workers, output)
    if outcome.exit_code:
      raise RuntimeError(f"{output.getvalue().decode()}\n{outcome.message}")
    results = []
    for index in range(num_workers):
      with open(os.path.join(directory, str(index)), "rb") as file:
        results.append(pickle.load(file))
    return results


def _answer(directory: str) -> None:
  """Does in a worker what the `request` file in `directory` asks for."""
  with open(os.path.join(directory, "request"), "rb") as file:
    filename, name, args = pickle.load(file)
  spec = importlib.util.spec_from_file_location("worker_functions", filename)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  result = getattr(module, name)(*args)
  index = Cluster.from_environment().index
  with open(os.path.join(directory, str(index)), "wb") as file:
    pickle.dump(result, file)


if __name__ == "__main__":
  _answer(sys.argv[1])
