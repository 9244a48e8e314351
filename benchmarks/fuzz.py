"""Gives many hostile inputs to the functions at the border, and some to the programs.

    python benchmarks/fuzz.py --json=docs/results/fuzz.json --inputs=20000

Inputs are made by kind and seed (`fuzz_inputs.py`), each in a folder of its own, by
processes that end after `--batch` of them, or when one fails, hangs or crashes. One of
500 goes through the programs themselves: run_dat.py and those in tfrecords/. The same
command goes on where it was stopped; --first_seed begins with others. Keys of --json:

    inputs            that were given
    refused           of them, in one line
    accepted          of them
    programs          of them, that went through a program
    tracebacks        that ended in any other error, or by a signal
    hangs             that took more than --seconds
    over_memory       after which a process held over 1 GiB more than at its start
    written_outside   after which there was a file outside of what may be written
    accepted_broken   that were taken although a checksum does not hold, or with exit
                      code 0 by a program
    next_seed         where the next run goes on
    failures          the first 100 that went wrong: kind, seed, what happened
"""

from __future__ import annotations

import json
import os
import pathlib
import queue
import random
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import fuzz_inputs
  from common import JSON, figures_there, report

_INPUTS = flags.DEFINE_integer("inputs", 20_000, "Inputs in all.", lower_bound=1)
_FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "Of the first input.")
_BATCH = flags.DEFINE_integer("batch", 300, "Inputs a process.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "That an input may take.")
_KINDS = flags.DEFINE_list("kinds", [], "Kinds of inputs; default: all.")
_CHILD = flags.DEFINE_list("child", [], "FIRST,END: seeds of a process, by itself.")

_COUNTS = ("refused", "accepted", "programs", "tracebacks", "hangs", "over_memory")
_COUNTS += ("written_outside", "accepted_broken")
_EACH_PROGRAM = 500
_BYTES = 2**30


def kind_of(seed: int) -> str:
  kinds = _KINDS.value or list(fuzz_inputs.TARGETS)
  return kinds[seed % len(kinds)]


def child(first: int, end: int) -> None:
  """Runs some inputs; prints, for each, a line when it begins and when it ended."""
  # Far more than is allowed, and less than would harm the machine.
  resource.setrlimit(resource.RLIMIT_DATA, (8 * _BYTES, 8 * _BYTES))
  base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for seed in range(first, end):
    kind = kind_of(seed)
    print(json.dumps({"seed": seed}), flush=True)
    with tempfile.TemporaryDirectory() as directory:
      folder = pathlib.Path(directory, "a", "b")
      verdict = fuzz_inputs.run_one(kind, seed, folder)
      outside = fuzz_inputs.outside(folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024
    answer = {"seed": seed, "verdict": verdict, "outside": outside, "grown": grown}
    print(json.dumps(answer), flush=True)
    if grown > _BYTES:  # the next one begins anew
      return


def answers(first: int, end: int) -> Iterator[dict[str, Any]]:
  """What became of each input; one whose process hung or crashed says so."""
  command = [sys.executable, __file__, f"--child={first},{end}"]
  command += [f"--kinds={','.join(_KINDS.value)}"] if _KINDS.value else []
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    assert process.stdout and process.stderr
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    said: list[str] = []

    def read() -> None:
      assert process.stdout
      for line in process.stdout:
        if line.startswith("{"):
          lines.put(line)
      lines.put("")

    threading.Thread(target=read, daemon=True).start()
    threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()
    seed, hung = None, False
    while True:
      try:
        line = lines.get(timeout=_SECONDS.value + (0 if seed else 60))
      except queue.Empty:
        hung = True
        process.kill()
        break
      if not line:
        break
      answer = json.loads(line)
      seed = answer["seed"] if "verdict" not in answer else None
      if "verdict" in answer:
        yield answer
    process.wait()
    if seed is not None or hung:
      what = "hang" if hung else f"traceback: signal or exit {process.returncode}"
      last = " ".join(said[-3:])[-300:]
      seed = first if seed is None else seed
      yield {"seed": seed, "verdict": f"{what}: {last}", "outside": [], "grown": 0}


def through_a_program(seed: int) -> dict[str, Any]:
  """One input of a kind that a program takes, by its exit code and output."""
  rng = random.Random(f"program {seed}")
  kind = rng.choice(["flagfile", "images", "npz", "tar", "run_directory"])
  with tempfile.TemporaryDirectory() as directory:
    folder = pathlib.Path(directory, "a", "b")
    verdict = fuzz_inputs.run_one(kind, seed, folder)
    for path in sorted((folder / "out").glob("**/*"), reverse=True):
      path.unlink() if not path.is_dir() else path.rmdir()
    source, out = folder / "in", folder / "out"
    python, root = sys.executable, fuzz_inputs.ROOT
    command = {
      "flagfile": ["run_dat.py", f"--flagfile={source}/a.flags", "--mode=report"],
      "images": ["tfrecords/build_folder.py", f"--source={source}"],
      "npz": ["tfrecords/build_unlabeled.py", f"--source={source}/a.npz"],
      "tar": ["tfrecords/build_unlabeled.py", f"--source={source}/a.tar"],
      "run_directory": ["run_dat.py", "--mode=report", f"--runs={source}"],
    }[kind]
    name = "model_dir" if command[0] == "run_dat.py" else "output_dir"
    try:
      done = subprocess.run(
        [python, *command, f"--{name}={out}"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_SECONDS.value + 120,
      )
    except subprocess.TimeoutExpired:
      found = "hang"
    else:
      last = done.stderr.strip().splitlines()[-1:] or [""]
      if done.returncode not in (0, 2) or "Traceback" in done.stderr:
        found = f"traceback: exit code {done.returncode}: {last[0][-300:]}"
      elif done.returncode == 2:
        found = "refused"
      elif verdict == "refused" and kind not in ("images", "flagfile"):
        found = f"accepted_broken: exit code 0: {last[0][-300:]}"
      else:
        found = "accepted"
    outside = fuzz_inputs.outside(folder)
  return {"seed": seed, "verdict": found, "outside": outside, "grown": 0, "kind": kind}


def count(answer: dict[str, Any], figures: dict[str, Any]) -> None:
  seed, verdict = answer["seed"], answer["verdict"]
  figures["inputs"] += 1
  kind = verdict.partition(":")[0]
  name = {"traceback": "tracebacks", "hang": "hangs"}.get(kind, kind)
  figures[name] += 1
  figures["over_memory"] += answer["grown"] > _BYTES
  figures["written_outside"] += bool(answer["outside"])
  wrong = verdict if kind not in ("accepted", "refused") else ""
  if answer["grown"] > _BYTES:
    wrong += f" {answer['grown'] / _BYTES:.1f} GiB"
  if answer["outside"]:
    wrong += f" wrote {answer['outside'][:2]}"
  if wrong:
    line = f"{answer.get('kind', kind_of(seed))} {seed}: {wrong}"
    print(line, flush=True)
    figures["failures"] = [*figures["failures"], line][:100]


def main(argv: Sequence[str]) -> None:
  del argv
  if _CHILD.value:
    child(*map(int, _CHILD.value))
    return
  figures: dict[str, Any] = {"inputs": 0, **dict.fromkeys(_COUNTS, 0), "failures": []}
  figures["next_seed"] = _FIRST_SEED.value
  figures |= {k: v for k, v in figures_there().items() if k in figures}
  while figures["inputs"] < _INPUTS.value:
    seed = figures["next_seed"]
    end = min(seed + _BATCH.value, seed + _INPUTS.value - figures["inputs"])
    for answer in answers(seed, end):
      count(answer, figures)
      seed = answer["seed"] + 1
      if seed % _EACH_PROGRAM == 0:
        figures["programs"] += 1
        count(through_a_program(seed), figures)
      if seed % 100 == 0:
        print(f"{figures['inputs']:,} inputs", file=sys.stderr, flush=True)
    figures["next_seed"] = max(seed, figures["next_seed"] + 1)
    if JSON.value:
      with open(JSON.value, "w", encoding="utf-8") as file:
        json.dump(figures, file)
  rows = [{"what": name, "inputs": figures[name]} for name in ("inputs", *_COUNTS)]
  report(rows, figures)


if __name__ == "__main__":
  run_script(main)
