"""What other libraries take for the same work."""

from __future__ import annotations

import re
from typing import Any

from sections.tables import table


def peers(figures: dict[str, Any]) -> str:
  parts = (
    ("step", _peers_step, "step_turns"),
    ("autoattack", _peers_autoattack, "autoattack_images"),
    ("judged", _peers_judged, "judged_images"),
    ("train", _peers_train, "train_flagfile"),
  )
  texts = [
    f"{write(figures)}\n\nOn: {figures[f'{name}_machine']}."
    for name, write, key in parts
    if key in figures
  ]
  return "\n\n".join(texts)


def _peers_step(figures: dict[str, Any]) -> str:
  networks = {
    "small": "small CNN, 28 x 28 x 1, batch 128",
    "resnet": "PreActResNet-18, 32 x 32 x 3, batch 32",
  }
  pattern = re.compile(rf"step_(.+)_({'|'.join(networks)})_images_per_second")
  entrants = [match[1] for match in map(pattern.fullmatch, figures) if match]
  speeds = [
    {
      "entrant": entrant,
      **{
        f"{network}, images/s": f"{figures[key]:.1f}" if key in figures else ""
        for network in networks
        for key in (f"step_{entrant}_{network}_images_per_second",)
      },
    }
    for entrant in dict.fromkeys(entrants)
  ]

  def ratio(key: str) -> str:
    if key not in figures:
      return ""
    lowest, highest = (figures[f"{end}_{key}"] for end in ("lowest", "highest"))
    return f"{figures[key]:.2f} ({lowest:.2f} to {highest:.2f})"

  ratios = [
    {
      "network": title,
      "arithmetic": arithmetic,
      "ours": figures[f"step_best_{key}"],
      "fastest peer": figures.get(f"step_best_peer_{key}", ""),
      "ours / peer": ratio(f"step_over_best_peer_{key}"),
      "ours / TensorFlow by hand": ratio(f"step_over_tensorflow_{key}"),
    }
    for network, title in networks.items()
    for key, arithmetic in ((network, "any"), (f"{network}_fp32", "float32"))
    if f"step_best_{key}" in figures
  ]
  return f"""Whole training steps with PGD-10 of ours and of other libraries, in turns
({figures["step_turns"]} of each): images/s of our fastest form over the fastest peer's,
median of the turns' ratios, and the lowest and highest. The `torch` ones are loops by
hand.

{table(ratios)}

{table(speeds)}"""


def _peers_autoattack(figures: dict[str, Any]) -> str:
  rows = [
    {
      "AutoAttack of": title,
      "seconds": f"{figures[f'autoattack_{name}_seconds']:.0f}",
      "robust accuracy": f"{figures[f'autoattack_{name}_robust_accuracy']:.1%}",
    }
    for name, title in (
      ("ours", "ours"),
      ("torchattacks", "torchattacks, with the official 100 steps"),
      ("art", "ART, which has no FAB"),
    )
    if f"autoattack_{name}_seconds" in figures
  ]
  text = f"""AutoAttack, standard, epsilon 0.1, on {figures["autoattack_images"]} images
and the same weights of a small CNN"""
  if "autoattack_over_best_peer" in figures:
    ratio = figures["autoattack_over_best_peer"]
    text += f""": the fastest peer takes
{ratio:.1f} times as long as ours"""
  return f"{text}.\n\n{table(rows)}"


def _peers_judged(figures: dict[str, Any]) -> str:
  return f"""Of {figures["judged_images"]:,} images, evaluation calls
{figures["judged_more_robust"]} robust that AutoAttack breaks when nothing is done to
make it fast, and {figures["judged_less_robust"]} broken that this leaves."""


def _peers_train(figures: dict[str, Any]) -> str:
  prefix = "peer_seconds_to_"
  targets = [
    key.rpartition("_")[2] for key in figures if key.startswith(("seconds_to_", prefix))
  ]
  rows = []
  for title, name, key in (
    (f"ours, flags/{figures['train_flagfile']}.flags", "ours", "seconds_to_"),
    ("PyTorch by hand, PGD-7", "peer", prefix),
  ):
    if f"{name}_robust_accuracy" not in figures:
      continue
    row = {
      "training": title,
      "under PGD-20": f"{figures[f'{name}_robust_accuracy']:.1%}",
    }
    for target in dict.fromkeys(targets):
      seconds = figures.get(f"{key}{target}")
      row[f"seconds to {target} %"] = "" if seconds is None else f"{seconds:.0f}"
    rows.append(row)
  return f"""Seconds of training, with the program's start, until so many of
Fashion-MNIST's 10,000 test images withstand PGD-20 (epsilon 0.1).

{table(rows)}"""
