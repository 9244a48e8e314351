"""PGD training of a peer, for benchmarks/torch_peers.py: the part `train`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch_networks import channels_last, make_network
from torch_steps import Run, make_step, pgd

STEPS, STEP_SIZE = 7, 0.25  # of the attack in training; a step's length in epsilon
RATE, WARM_UP = 0.05, 100  # of SGD; steps
# Test images on which it is seen whether the rest need be attacked, and how much more
# than the target's they may withstand by chance.
FIRST, SLACK = 2000, 0.02


def measure(spec: dict[str, Any]) -> Run:
  """A unit is `part` of an epoch.

  Behind the seconds comes the robust accuracy, and on how many test images: on the
  first ones alone where that is far from the target. It takes no part in the time.
  """
  data = np.load(spec["data"])
  images, tests = (channels_last(data[name]) / 255.0 for name in ("images", "tests"))
  labels, truths = (
    torch.from_numpy(data[name].astype(np.int64)) for name in ("labels", "truths")
  )
  network, batch, epsilon = make_network(spec), spec["batch"], spec["epsilon"]
  attack = pgd(
    network,
    epsilon,
    STEP_SIZE * epsilon,
    STEPS,
    coarse=spec["entrant"] == "torch_bfloat16",
  )
  optimizer = torch.optim.SGD(
    network.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4
  )
  step = make_step(network, attack, optimizer, call=network, clean_weight=0.0)
  trial = pgd(network, epsilon, spec["test_step_size"], spec["test_steps"])
  in_epoch = len(images) // batch
  done, order = 0, torch.randperm(len(images))

  def train(steps: int) -> None:
    nonlocal done, order
    for _ in range(steps):
      place = done % in_epoch
      if place == 0:
        order = torch.randperm(len(images))
      for group in optimizer.param_groups:
        group["lr"] = RATE * min(1.0, (done + 1) / WARM_UP)
      chosen = order[place * batch : (place + 1) * batch]
      step(images[chosen], labels[chosen])
      done += 1

  def robust(part: slice) -> torch.Tensor:
    """Which test images stay right; bool."""
    network.eval().requires_grad_(requires_grad=False)
    x, y = tests[part], truths[part]
    with torch.no_grad():
      right = network(x).argmax(dim=1) == y
      moved = torch.enable_grad()(trial)(x, y)
      return right & (network(moved).argmax(dim=1) == y)

  def run(count: int) -> list[float]:
    started = time.perf_counter()
    train(max(1, round(count * spec["part_of_epoch"] * in_epoch)))
    seconds = time.perf_counter() - started
    parts = [slice(i, i + 250) for i in range(0, len(tests), 250)]
    stayed: list[torch.Tensor] = []
    for part in parts:
      stayed.append(robust(part))
      counted = sum(map(len, stayed))
      accuracy = float(torch.cat(stayed).float().mean())
      if counted == FIRST and accuracy < spec["target"] - SLACK:
        break
    return [seconds, accuracy, counted]

  return run
