"""Our side of a training step beside the peers': the part `step` of peers.py."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from typing import Any, Optional

import loops
import numpy as np
import peer_processes
import tqdm

from dat_tf.program.run import opened
from dat_tf.workers.cluster import Cluster

CASES = {
  "small": loops.Case("small_cnn", (28, 28, 1), 128, 10),
  "resnet": loops.Case("preact_resnet18", (32, 32, 3), 32, 2),
}
# How our entrants differ, by flags.
OURS = {
  "ours": ("--attack_precision=float32",),
  "ours_bfloat16": ("--attack_precision=bfloat16",),
  "ours_mixed": ("--precision=mixed_bfloat16",),
}
PEERS = (
  "torch",
  "torch_compiled",
  "torch_bfloat16",
  "torch_mixed",
  "torchattacks",
  "foolbox",
  "cleverhans",
  "art",
)
BY_HAND = "tensorflow"
# An entrant that is so many times as slow as its side's fastest takes no more turns.
_HOPELESS, _TRIALS = 2.0, 2


def is_ours(entrant: str) -> bool:
  return entrant.startswith("ours")


def is_exact(entrant: str) -> bool:
  """Whether an entrant computes in float32."""
  return not entrant.endswith(("bfloat16", "mixed"))


def start_entrants(
  case: loops.Case, directory: str, stack: contextlib.ExitStack, python: str
) -> dict[str, loops.Loop]:
  """The loops of all entrants that work, with their graphs built.

  Args:
    case: what is trained.
    directory: for data and runs.
    stack: what ends them.
    python: that of the peers.
  """
  images, labels = case.data()
  loops.write_data(images, labels, directory)
  data = os.path.join(directory, "data.npz")
  np.savez(data, images=images, labels=labels)
  spec = {
    "part": "step",
    "network": case.model,
    "shape": case.shape,
    "batch": case.batch,
    "epsilon": loops.EPSILON,
    "step_size": loops.STEP_SIZE,
    "steps": loops.STEPS,
    "threads": peer_processes.THREADS,
    "data": data,
  }

  def ours(name: str) -> loops.Loop:
    settings = loops.settings_of_trainer(
      case, directory, "--optimizer=sgd", *OURS[name], run=name
    )
    return loops.trainer_loop(stack.enter_context(opened(settings, Cluster())))

  def by_hand() -> loops.Loop:
    # As a user writes it, who has no view of a network.
    return loops.bare_loop(case, images, labels, optimizer="sgd", folded=False)

  def theirs(name: str) -> loops.Loop:
    peer = peer_processes.Peer(python, {**spec, "entrant": name})
    stack.callback(peer.close)
    return lambda steps: peer(steps)[0]

  makers = {
    **{name: lambda name=name: ours(name) for name in OURS},
    BY_HAND: by_hand,
    **{name: lambda name=name: theirs(name) for name in PEERS},
  }
  entrants = {}
  for name, make in tqdm.tqdm(makers.items(), desc=f"{case.model}, starting"):
    with peer_processes.surviving(name):
      loop = make()
      loop(1)  # builds the graph
      entrants[name] = loop
  return entrants


def take_turns(
  entrants: dict[str, loops.Loop], turns: int, steps: int, images: int
) -> dict[str, list[float]]:
  """Images/s of each entrant in its turns.

  Args:
    entrants: all that take part.
    turns: of each.
    steps: of a turn.
    images: of a step.
  """
  speeds: dict[str, list[float]] = {name: [] for name in entrants}
  left, over = list(entrants), set()
  for turn in tqdm.trange(turns, desc="turns"):
    # Who comes first changes, in case that matters.
    for name in left[:: -1 if turn % 2 else 1]:
      with peer_processes.surviving(name):
        speeds[name].append(images * steps / entrants[name](steps))
    failed = {name for name in left if len(speeds[name]) <= turn}
    speeds = {name: values for name, values in speeds.items() if name not in failed}
    if turn + 1 == _TRIALS:
      over = {name for name in speeds if _is_hopeless(name, speeds)}
    left = [name for name in speeds if name not in over]
  return speeds


def _is_hopeless(name: str, speeds: dict[str, list[float]]) -> bool:
  """Whether its best turn is far behind the worst of the fastest of its side."""
  kind = is_ours(name), is_exact(name)
  rivals = [
    min(values)
    for other, values in speeds.items()
    if other != BY_HAND and (is_ours(other), is_exact(other)) == kind
  ]
  return _HOPELESS * max(speeds[name]) < max(rivals, default=0.0)


def compared(speeds: dict[str, list[float]], key: str) -> dict[str, Any]:
  """The figures of our fastest entrant beside the fastest peer and the loop by hand."""
  turns = max(map(len, speeds.values()), default=0)
  median = {
    name: float(np.median(values))
    for name, values in speeds.items()
    if len(values) == turns
  }
  mine = [name for name in median if is_ours(name)]
  theirs = [name for name in median if not is_ours(name) and name != BY_HAND]
  if not mine:
    return {}
  ours = max(mine, key=median.get)
  figures: dict[str, Any] = {f"step_best_{key}": ours}
  if theirs:
    figures[f"step_best_peer_{key}"] = peer = max(theirs, key=median.get)
    figures |= _ratios(speeds[ours], speeds[peer], f"step_over_best_peer_{key}")
  if BY_HAND in median:
    figures |= _ratios(speeds[ours], speeds[BY_HAND], f"step_over_tensorflow_{key}")
  return figures


def _ratios(ours: list[float], others: list[float], key: str) -> dict[str, float]:
  """Median, lowest and highest of the turns' ratios."""
  ratios = np.array(ours) / np.array(others)
  return {
    key: float(np.median(ratios)),
    f"lowest_{key}": float(ratios.min()),
    f"highest_{key}": float(ratios.max()),
  }


def measure(
  python: str, networks: Sequence[str], turns: int, steps: Optional[int]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The table's rows and the figures.

  Args:
    python: the peers'.
    networks: keys of CASES.
    turns: of each entrant.
    steps: of a turn, instead of the case's.
  """
  rows: list[dict[str, Any]] = []
  figures: dict[str, Any] = {"step_turns": turns}
  for network in networks:
    case = CASES[network]
    with contextlib.ExitStack() as stack:
      directory = stack.enter_context(tempfile.TemporaryDirectory())
      entrants = start_entrants(case, directory, stack, python)
      speeds = take_turns(entrants, turns, steps or case.steps, case.batch)
    exact = {name: values for name, values in speeds.items() if is_exact(name)}
    figures |= compared(speeds, network) | compared(exact, f"{network}_fp32")
    for name, values in speeds.items():
      median = float(np.median(values))
      figures[f"step_{name}_{network}_images_per_second"] = median
      row = {"network": case.model, "entrant": name, "images/s": median}
      rows.append(row | {"lowest": min(values), "highest": max(values)})
  return rows, figures
