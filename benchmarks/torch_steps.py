"""Training steps of the peers, for benchmarks/torch_peers.py: the part `step`."""

from __future__ import annotations

import time
from typing import Any, Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch_networks import CLASSES, channels_last, make_network

Attack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Run = Callable[[int], list[float]]


def bfloat16(enabled: bool) -> torch.autocast:  # noqa: FBT001
  return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def pgd(
  network: Callable[[torch.Tensor], torch.Tensor],
  epsilon: float,
  step_size: float,
  steps: int,
  *,
  coarse: bool = False,
) -> Attack:
  """PGD by hand, from a random start; `coarse` in bfloat16."""

  def attack(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    low, high = (x - epsilon).clamp_(min=0.0), (x + epsilon).clamp_(max=1.0)
    moved = x + torch.empty_like(x).uniform_(-epsilon, epsilon)
    moved = moved.clamp_(0.0, 1.0)
    for _ in range(steps):
      moved.requires_grad_()
      with bfloat16(coarse):
        logits = network(moved)
      loss = functional.cross_entropy(logits.float(), y, reduction="sum")
      (gradient,) = torch.autograd.grad(loss, moved)
      moved = moved.detach() + step_size * gradient.sign_()
      moved = torch.minimum(torch.maximum(moved, low), high)
    return moved

  return attack


def library_attack(name: str, network: nn.Module, spec: dict[str, Any]) -> Attack:
  """A library's PGD, set up as the one by hand."""
  epsilon, step_size, steps = (spec[key] for key in ("epsilon", "step_size", "steps"))
  if name == "torchattacks":
    import torchattacks

    return torchattacks.PGD(
      network, eps=epsilon, alpha=step_size, steps=steps, random_start=True
    )
  if name == "foolbox":
    import foolbox

    wrapped = foolbox.PyTorchModel(network.eval(), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(
      abs_stepsize=step_size, steps=steps, random_start=True
    )
    return lambda x, y: attack.run(
      wrapped, x, foolbox.criteria.Misclassification(y), epsilon=epsilon
    )
  if name == "cleverhans":
    from cleverhans.torch.attacks.projected_gradient_descent import (
      projected_gradient_descent,
    )

    return lambda x, y: projected_gradient_descent(
      network,
      x,
      epsilon,
      step_size,
      steps,
      np.inf,
      clip_min=0.0,
      clip_max=1.0,
      y=y,
      sanity_checks=False,
    ).detach()
  raise ValueError(f"No peer is called {name}.")


def make_step(
  network: nn.Module,
  attack: Attack,
  optimizer: torch.optim.Optimizer,
  *,
  call: Callable[[torch.Tensor], torch.Tensor],
  coarse: bool = False,
  clean_weight: float = 1.0,
) -> Callable[[torch.Tensor, torch.Tensor], None]:
  """A training step: the attack in inference mode, then one pass for the weights.

  Args:
    network: what is trained.
    attack: makes the adversarial images.
    optimizer: of the network's weights.
    call: the network, or a compiled form of it.
    coarse: whether the pass is in bfloat16.
    clean_weight: 1 trains on clean images too, 0 does not.
  """

  def step(x: torch.Tensor, y: torch.Tensor) -> None:
    # No weight's gradient is wanted of the attack, and not every library knows that.
    network.eval().requires_grad_(requires_grad=False)
    moved = attack(x, y)
    network.train().requires_grad_(requires_grad=True)
    optimizer.zero_grad(set_to_none=True)
    if clean_weight:
      moved, y = torch.cat([x, moved]), torch.cat([y, y])
    with bfloat16(coarse):
      logits = call(moved)
    loss = functional.cross_entropy(logits.float(), y)
    (loss * (1.0 + clean_weight)).backward()
    optimizer.step()

  return step


def measure(spec: dict[str, Any]) -> Run:
  """Of the part `step`: a unit is a training step."""
  entrant, batch = spec["entrant"], spec["batch"]
  data = np.load(spec["data"])
  images = channels_last(data["images"])
  labels = torch.from_numpy(data["labels"].astype(np.int64))
  network = make_network(spec)
  optimizer = torch.optim.SGD(
    network.parameters(), 0.001, momentum=0.9, weight_decay=1e-4
  )
  if entrant == "art":
    return art_steps(spec, network, optimizer, data["images"], data["labels"])
  call = torch.compile(network) if entrant == "torch_compiled" else network
  if entrant.startswith("torch_") or entrant == "torch":
    attack = pgd(
      call,
      *(spec[key] for key in ("epsilon", "step_size", "steps")),
      coarse=entrant in ("torch_bfloat16", "torch_mixed"),
    )
  else:
    attack = library_attack(entrant, network, spec)
  step = make_step(
    network, attack, optimizer, call=call, coarse=entrant == "torch_mixed"
  )
  batches = [
    (images[i : i + batch], labels[i : i + batch])
    for i in range(0, len(images) - batch + 1, batch)
  ]
  return timed(lambda index: step(*batches[index % len(batches)]))


def timed(step: Callable[[int], Any]) -> Run:
  """What it returns takes so many steps after a first one, and gives the seconds."""

  def run(steps: int) -> list[float]:
    step(0)
    started = time.perf_counter()
    for index in range(steps):
      step(index + 1)
    return [time.perf_counter() - started]

  return run


def art_classifier(
  network: nn.Module, spec: dict[str, Any], optimizer: Any = None
) -> Any:
  from art.estimators.classification import PyTorchClassifier

  height, width, channels = spec["shape"]
  return PyTorchClassifier(
    network,
    loss=nn.CrossEntropyLoss(),
    optimizer=optimizer,
    input_shape=(channels, height, width),
    nb_classes=CLASSES,
    clip_values=(0.0, 1.0),
    device_type="cpu",
  )


def art_steps(
  spec: dict[str, Any],
  network: nn.Module,
  optimizer: torch.optim.Optimizer,
  images: np.ndarray,
  labels: np.ndarray,
) -> Run:
  """ART's trainer attacks half of a batch; so one of two batches is a step's work."""
  from art.attacks.evasion import ProjectedGradientDescentPyTorch
  from art.defences.trainer import AdversarialTrainer

  classifier = art_classifier(network, spec, optimizer)
  attack = ProjectedGradientDescentPyTorch(
    classifier,
    np.inf,
    spec["epsilon"],
    spec["step_size"],
    max_iter=spec["steps"],
    num_random_init=1,
    batch_size=spec["batch"],
    verbose=False,
  )
  trainer = AdversarialTrainer(classifier, attack, ratio=0.5)
  images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
  both = 2 * spec["batch"]

  def step(index: int) -> None:
    start = index * both % (len(images) - both + 1)
    part = slice(start, start + both)
    trainer.fit(images[part], np.eye(CLASSES)[labels[part]], both, nb_epochs=1)

  return timed(step)
