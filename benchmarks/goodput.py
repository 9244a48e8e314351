"""What survival costs: checkpoints, comparisons of weights, workers that are killed.

    python benchmarks/goodput.py --data=data/fashion_mnist \
        --json=docs/results/goodput.json

Fashion-MNIST, small CNN, PGD-10, batch 128, on local workers (--num_workers). --parts
says what is measured:

cost: an epoch plainly, with a checkpoint each 50 steps (--checkpoint_steps) and with
all weights compared each 50 steps (--verify_every), in turns. A worker has its share of
the cores.

faults: for so many minutes (--minutes) the launcher runs a training that would take
longer, with a checkpoint each 50 steps. A worker, which one by chance, gets SIGKILL
after times that are exponential with a mean of 60 s, but never before a step has been
done since the last start. The launcher starts all again.

JSON keys:
  checkpoint_overhead          time of a step with checkpoints over that without, minus
                               1: median of the turns' ratios
  verify_overhead              the same of the comparisons
  lowest_*, highest_*          of the turns
  checkpoint_seconds           median of what writing one took, meanwhile
  checkpoint_bytes             its size
  turns                        of each
  goodput                      as `dat_tf.monitoring.goodput` has it, 0 to 1
  recovery_seconds             from a kill to the end of the next step, the median
  longest_recovery_seconds     the longest
  faults                       kills
  minutes, num_workers         as set
  cost_machine, faults_machine where it was
"""

from __future__ import annotations

import datetime
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import common
import numpy as np
import tqdm
from absl import flags

from dat_tf.base.errors import UserError
from dat_tf.base.run_directory import RunDirectory
from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  from dat_tf.monitoring import goodput, read_events, read_results

_DATA = flags.DEFINE_string("data", "data/fashion_mnist", "Directory of the TFRecords.")
_PARTS = flags.DEFINE_list("parts", ["cost", "faults"], "What is measured.")
_WORKERS = flags.DEFINE_integer("num_workers", 3, "Local workers.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 3, "cost: turns of each.", lower_bound=1)
_MINUTES = flags.DEFINE_float("minutes", 15.0, "faults: how long.", lower_bound=0.1)
_STEPS = flags.DEFINE_integer("attack_steps", 10, "Of PGD.", lower_bound=1)

_EVERY = 50  # steps between two checkpoints or comparisons
_MEAN = 60.0  # seconds between two kills
_VARIANTS = {
  "plain": (),
  "checkpoint": (f"--checkpoint_steps={_EVERY}",),
  "verify": (f"--verify_every={_EVERY}",),
}


def command(
  model_dir: str, *settings: str, launcher: tuple[str, ...] = ()
) -> list[str]:
  return [
    *(sys.executable, "-m", "dat_tf.launch", f"--num_workers={_WORKERS.value}"),
    *(*launcher, "--", "run_dat.py", "--flagfile=flags/fashion_mnist_dat_pgd.flags"),
    *(f"--model_dir={model_dir}", "--mode=train", "--pictures=0"),
    *(f"--attack_steps={_STEPS.value}", "--global_batch_size=126"),
    *common.records(_DATA.value),
    *settings,
  ]


def cost() -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The table's rows and the figures of checkpoints and comparisons."""
  speeds: dict[str, list[float]] = {name: [] for name in _VARIANTS}
  saves: list[dict[str, Any]] = []
  with tempfile.TemporaryDirectory() as folder:
    for turn in tqdm.trange(_TURNS.value, desc="turns"):
      for name in sorted(_VARIANTS, reverse=bool(turn % 2)):
        there = RunDirectory(os.path.join(folder, f"{name}_{turn}"))
        settings = ["--epochs=1", "--warmup_epochs=0", *_VARIANTS[name]]
        subprocess.run(command(there.path, *settings), cwd=common.ROOT, check=True)
        speeds[name].append(read_results(there.results)["examples_per_second"])
        if name == "checkpoint":
          events = read_events(there.events)
          saves += [event for event in events if event["event"] == "save"]
  figures: dict[str, Any] = {
    "turns": _TURNS.value,
    "checkpoint_seconds": float(np.median([save["seconds"] for save in saves])),
    "checkpoint_bytes": saves[-1]["bytes"],
  }
  rows = []
  for name in ("checkpoint", "verify"):
    ratios = np.array(speeds["plain"]) / np.array(speeds[name]) - 1.0
    figures[f"{name}_overhead"] = float(np.median(ratios))
    figures[f"lowest_{name}_overhead"] = float(ratios.min())
    figures[f"highest_{name}_overhead"] = float(ratios.max())
    rows.append(
      {
        f"each {_EVERY} steps": name,
        "costs": f"{np.median(ratios):.2%}",
        "lowest": f"{ratios.min():.2%}",
        "highest": f"{ratios.max():.2%}",
      }
    )
  return rows, figures


def children(pid: int) -> list[int]:
  """The processes that a process has started."""
  text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
  return [int(word) for word in text.split()]


def faults() -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The table's rows and the figures of a run whose workers are killed."""
  chance = random.Random(0)
  end = time.monotonic() + 60.0 * _MINUTES.value
  kills: list[datetime.datetime] = []
  with tempfile.TemporaryDirectory() as folder:
    there = RunDirectory(os.path.join(folder, "run"))
    settings = [f"--checkpoint_steps={_EVERY}", "--epochs=1000"]
    options = ("--max_restarts=100000", "--restart_backoff=0")
    launcher = subprocess.Popen(
      command(there.path, *settings, launcher=options),
      cwd=common.ROOT,
      stdout=subprocess.DEVNULL,
    )
    try:
      with tqdm.tqdm(desc="kills") as bar:
        while time.monotonic() < end:
          time.sleep(min(chance.expovariate(1 / _MEAN), end - time.monotonic()))
          while time.monotonic() < end and not _steps(there, len(kills)):
            if launcher.poll() is not None:
              raise UserError(f"the launcher ended with code {launcher.returncode}")
            time.sleep(0.1)
          if time.monotonic() < end:
            kills.append(datetime.datetime.now(datetime.timezone.utc))
            os.kill(chance.choice(children(launcher.pid)), signal.SIGKILL)
            bar.update()
    finally:
      launcher.terminate()
      launcher.wait()
    events = read_events(there.events)
  begun = [
    datetime.datetime.fromisoformat(event["time"])
    for event in events
    if event["event"] == "first_step"
  ]
  recoveries = [
    min((after - kill).total_seconds() for after in begun if after > kill)
    for kill in kills
    if any(after > kill for after in begun)
  ]
  last = datetime.datetime.fromisoformat(events[-1]["time"])
  figures = {
    "goodput": goodput(events, last),
    "recovery_seconds": float(np.median(recoveries)),
    "longest_recovery_seconds": max(recoveries),
    "faults": len(kills),
    "minutes": _MINUTES.value,
    "num_workers": _WORKERS.value,
  }
  return [{"figure": name, "value": value} for name, value in figures.items()], figures


def _steps(there: RunDirectory, starts: int) -> bool:
  """Whether a step has been done since the start after so many kills."""
  first = [e for e in read_events(there.events) if e["event"] == "first_step"]
  return len(first) > starts


def main(argv: list[str]) -> None:
  del argv
  for part in _PARTS.value:
    rows, figures = {"cost": cost, "faults": faults}[part]()
    figures[f"{part}_machine"] = common.machine()
    common.report(rows, common.figures_there() | figures)


if __name__ == "__main__":
  run_script(main)
