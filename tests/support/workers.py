"""Runs a function of a test in several real worker processes.

    def _ranks(offset):  # at the top level of the test's file
      return Cluster.from_environment().index + offset

    results = run_workers(_ranks, 2, 10)  # [10, 11]

The processes are forked, as those of `programs`.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing.connection
import multiprocessing.synchronize
import os
import pickle
import sys
import tempfile
import traceback
from typing import Any, Callable

from programs import FORKED, become, leave

from dat_tf.launch import free_addresses, split_cores


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
    code = function.__code__.co_filename, function.__name__, args
    addresses, cores = free_addresses(num_workers), split_cores(num_workers)
    processes = []
    all_done = FORKED.Barrier(num_workers)
    for index in range(num_workers):
      task = {"type": "worker", "index": index}
      tf_config = {"cluster": {"worker": addresses}, "task": task}
      environment = {**os.environ, "TF_CONFIG": json.dumps(tf_config)}
      path = os.path.join(directory, str(index))
      given = path, environment, cores[index], code, all_done
      processes.append(FORKED.Process(target=_answer, args=given, daemon=True))
      processes[-1].start()
    running = {process.sentinel: process for process in processes}
    failed = False
    while running:
      for sentinel in multiprocessing.connection.wait(list(running)):
        process = running.pop(sentinel)
        process.join()
        if process.exitcode and not failed:
          failed = True
          for other in running.values():  # they would wait for it
            other.kill()
    if failed:
      lines = [
        f"[worker {index}] {line}"
        for index, process in enumerate(processes)
        for line in (
          *_read(os.path.join(directory, f"{index}.log"), "r").splitlines(),
          f"ended with exit code {process.exitcode}",
        )
      ]
      raise RuntimeError("\n".join(lines))
    return [
      pickle.loads(_read(os.path.join(directory, str(index)), "rb"))
      for index in range(num_workers)
    ]


def _read(path: str, mode: str) -> Any:
  if not os.path.exists(path):
    return ""
  with open(path, mode) as file:
    return file.read()


def _answer(
  path: str,
  environment: dict[str, str],
  cores: set[int],
  code: tuple[Any, ...],
  all_done: multiprocessing.synchronize.Barrier,
) -> None:
  """Does in a worker what is asked for; its result is left at `path`."""
  become([f"{path}.log"] * 2, environment)
  if cores:
    os.sched_setaffinity(0, cores)
  filename, name, args = code
  try:
    spec = importlib.util.spec_from_file_location("worker_functions", filename)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    result = getattr(module, name)(*args)
    with open(path, "wb") as file:
      pickle.dump(result, file)
    all_done.wait()  # another may still be receiving what this one has sent
  except BaseException:
    traceback.print_exc()
    leave(1)
  leave(0)
