"""AutoAttack of the peers, for benchmarks/torch_peers.py: the part `autoattack`."""

from __future__ import annotations

import time
from typing import Any, Callable

import numpy as np
import torch
from torch import nn
from torch_networks import CLASSES, channels_last, load_small_cnn, make_network
from torch_steps import Attack, Run, art_classifier

STEPS, QUERIES = 100, 5000  # of the official suite
LOGITS_AGREE = 1e-4


def torchattacks_suite(network: nn.Module, spec: dict[str, Any]) -> Attack:
  """The standard suite, which takes 10 steps where the official one takes 100."""
  import torchattacks

  suite = torchattacks.AutoAttack(
    network, norm="Linf", eps=spec["epsilon"], version="standard", n_classes=CLASSES
  )
  *stepped, square = suite._autoattack.attacks
  for attack in stepped:
    attack.steps = STEPS
  square.n_queries = QUERIES
  return suite


def art_suite(network: nn.Module, spec: dict[str, Any]) -> Attack:
  """APGD-CE, targeted APGD and Square, each on what those before it left.

  There is no FAB in ART, and its AutoAttack aims each attack at all classes or none.
  """
  from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack

  classifier, epsilon = art_classifier(network, spec), spec["epsilon"]

  def apgd(loss: str, *, targeted: bool) -> Any:
    return AutoProjectedGradientDescent(
      classifier,
      np.inf,
      epsilon,
      2 * epsilon,
      STEPS,
      targeted,
      1,
      spec["batch"],
      loss,
      verbose=False,
    )

  untargeted = apgd("cross_entropy", targeted=False)
  targeted = apgd("difference_logits_ratio", targeted=True)
  square = SquareAttack(
    classifier,
    np.inf,
    max_iter=QUERIES,
    eps=epsilon,
    p_init=0.8,
    nb_restarts=1,
    batch_size=spec["batch"],
    verbose=False,
  )

  def attack(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    images = np.ascontiguousarray(x.numpy())
    found, labels = images.copy(), y.numpy()
    order = np.argsort(-classifier.predict(images), axis=1)

    def go_on(generate: Callable[..., np.ndarray], aims: np.ndarray) -> None:
      left = np.flatnonzero(classifier.predict(found).argmax(axis=1) == labels)
      if len(left):
        found[left] = generate(images[left], np.eye(CLASSES)[aims[left]])

    go_on(untargeted.generate, labels)
    for rank in range(1, CLASSES):
      go_on(targeted.generate, order[:, rank])
    go_on(square.generate, labels)
    return torch.from_numpy(found)

  return attack


SUITES = {"torchattacks": torchattacks_suite, "art": art_suite}


def measure(spec: dict[str, Any]) -> Run:
  """A unit is the whole suite on all images; the robust accuracy comes behind it."""
  data = np.load(spec["data"])
  network = make_network(spec)
  load_small_cnn(network, data, spec["shape"])
  network.eval().requires_grad_(requires_grad=False)
  images = channels_last(data["images"][:, ::-1, ::-1])  # as `load_small_cnn` says
  labels = torch.from_numpy(data["labels"].astype(np.int64))
  with torch.no_grad():
    logits = network(images)
  difference = float((logits - torch.from_numpy(data["logits"])).abs().max())
  if difference > LOGITS_AGREE:
    raise ValueError(f"Its logits differ from ours by {difference:.1e}.")
  right = logits.argmax(dim=1) == labels
  attack = SUITES[spec["entrant"]](network, spec)

  def run(count: int) -> list[float]:
    started = time.perf_counter()
    for _ in range(count):
      # No peer need attack what is misclassified as it is.
      found = attack(images[right], labels[right])
    seconds = time.perf_counter() - started
    with torch.no_grad():
      fooled = network(found).argmax(dim=1) != labels[right]
    inside = (found - images[right]).abs().amax(dim=(1, 2, 3)) <= spec["epsilon"] + 1e-5
    return [seconds, float((~(fooled & inside)).sum()) / len(labels)]

  return run
