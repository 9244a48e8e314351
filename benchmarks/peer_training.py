"""Our side of the race to an accuracy: the part `train` of peers.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import common
import loops
import numpy as np
import peer_processes

from dat_tf.base.errors import UserError
from dat_tf.models import precision

EPSILON, TEST_STEP_SIZE, TEST_STEPS = 0.1, 0.0125, 20
BATCH, LONGEST = 128, 10  # the peer's batch, and its most epochs
_PART_OF_EPOCH = 0.25  # what the peer trains between two evaluations
_TRIAL = 3  # steps in which it is seen which of the peer's forms is the fastest
_FORMS = ("torch", "torch_bfloat16")


def ours(data: str, flagfile: str, workers: int, directory: str) -> tuple[float, float]:
  """Seconds of the command that trains, and the robust accuracy behind it.

  Raises:
    UserError: one of the commands failed.
  """
  start = ["-m", "dat_tf.launch", f"--num_workers={workers}", "--", "run_dat.py"]
  path = os.path.join(directory, "run")
  command = [
    sys.executable,
    *(start if workers > 1 else ["run_dat.py"]),
    f"--flagfile=flags/{flagfile}.flags",
    f"--model_dir={path}",
    f"--evaluation_attack_steps={TEST_STEPS}",
    f"--evaluation_step_size={TEST_STEP_SIZE}",
    *common.records(data),
  ]

  def run(mode: str) -> float:
    started = time.perf_counter()
    code = subprocess.call([*command, f"--mode={mode}"], cwd=common.ROOT)
    if code:
      raise UserError(f"--mode={mode} with {flagfile}.flags ended with code {code}")
    return time.perf_counter() - started

  seconds = run("train")
  run("evaluate")
  with open(os.path.join(path, "results.json"), encoding="utf-8") as file:
    return seconds, json.load(file)["robust_accuracy"][f"pgd-{TEST_STEPS}"]


def fastest_form(python: str, spec: dict[str, Any], directory: str) -> str:
  """In which arithmetic a peer's attack is the fastest on this machine."""
  if not precision.is_native():
    return _FORMS[0]  # what is emulated is slower
  case = loops.Case(spec["network"], spec["shape"], BATCH, _TRIAL)
  images, labels = case.data()
  data = os.path.join(directory, "trial.npz")
  np.savez(data, images=images, labels=labels)
  seconds = {}
  for form in _FORMS:
    with peer_processes.surviving(form):
      more = {"step_size": loops.STEP_SIZE, "steps": loops.STEPS, "data": data}
      peer = peer_processes.Peer(
        python, {**spec, **more, "part": "step", "entrant": form}
      )
      seconds[form] = peer(_TRIAL)[0]
      peer.close()
  return min(seconds, key=seconds.get, default=_FORMS[0])


def theirs(
  python: str, data: str, target: float, directory: str
) -> tuple[float, float, float, str]:
  """Seconds until the target, the accuracy reached, the epochs, the form.

  The seconds are those of the process's start and of training.

  Raises:
    PeerError: the process failed.
  """
  images, labels = common.read_records(os.path.join(data, "train-*"))
  tests, truths = common.read_records(os.path.join(data, "test-*"))
  arrays = os.path.join(directory, "data.npz")
  np.savez(
    arrays,
    labels=labels,
    truths=truths,
    **{
      name: np.round(255 * x).astype(np.uint8)
      for name, x in (("images", images), ("tests", tests))
    },
  )
  spec: dict[str, Any] = {
    "network": "small_cnn",
    "shape": images.shape[1:],
    "batch": BATCH,
    "epsilon": EPSILON,
    "threads": peer_processes.THREADS,
  }
  form = fastest_form(python, spec, directory)
  started = time.perf_counter()
  peer = peer_processes.Peer(
    python,
    {
      **spec,
      "part": "train",
      "entrant": form,
      "data": arrays,
      "part_of_epoch": _PART_OF_EPOCH,
      "test_step_size": TEST_STEP_SIZE,
      "test_steps": TEST_STEPS,
      "target": target,
    },
  )
  seconds, epochs, accuracy = time.perf_counter() - started, 0.0, 0.0
  try:
    while epochs < LONGEST:
      more, accuracy, counted = peer(1)
      seconds, epochs = seconds + more, epochs + _PART_OF_EPOCH
      print(
        f"peer, {epochs:g} epochs, {seconds:.0f} s: {accuracy:.1%} of {counted:.0f}",
        flush=True,
      )
      if counted == len(tests) and accuracy >= target:
        return seconds, accuracy, epochs, form
    return float("inf"), accuracy, epochs, form
  finally:
    peer.close()


def measure(
  python: str, data: str, flagfile: str, workers: int, percent: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The table's rows and the figures.

  Args:
    python: the peers'.
    data: directory of the records.
    flagfile: name of a file in flags/, without its ending.
    workers: ours.
    percent: the robust accuracy that is to be reached.
  """
  rows: list[dict[str, Any]] = []
  figures: dict[str, Any] = {"train_flagfile": flagfile, "train_workers": workers}

  def note(name: str, prefix: str, seconds: float, accuracy: float) -> None:
    figures[f"{name}_robust_accuracy"] = accuracy
    if accuracy >= percent / 100 and seconds < float("inf"):
      figures[f"{prefix}seconds_to_{percent}"] = seconds
    rows.append({"": name, "seconds": seconds, "under PGD-20": f"{accuracy:.2%}"})

  with tempfile.TemporaryDirectory() as directory:
    with peer_processes.surviving("ours"):
      note("ours", "", *ours(data, flagfile, workers, directory))
    with peer_processes.surviving("the peer"):
      seconds, accuracy, epochs, form = theirs(python, data, percent / 100, directory)
      note("peer", "peer_", seconds, accuracy)
      figures |= {"peer_epochs": epochs, "peer_form": form}
  return rows, figures
