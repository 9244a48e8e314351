"""Names of training's attacks and objectives, their defaults, and what goes together.

What each name stands for is made in `dat_tf.parts`.
"""

from __future__ import annotations

from typing import Any

# Steps unless --attack_steps says otherwise.
ATTACKS = {
  "none": 1,  # plays no part
  "fgsm": 1,
  "nfgsm": 1,
  "bim": 10,
  "pgd": 10,
  "momentum_pgd": 10,
  "dynamic_pgd": 10,
  "warm_start_pgd": 10,
  "wrm": 15,
  "free": 8,
  "yopo": 5,
}
# The weight of the term that gives an objective its name, as its authors have it; None
# has no such term. (Those of alp take half of the sum of its other terms, and 0.5.)
OBJECTIVES = {
  "at": None,
  "trades": 6.0,
  "mart": 5.0,
  "alp": 1.0,
  "clp": 0.5,
  "input_gradient": 1.0,
  "cure": 4.0,
  "llr": 4.0,
  "ig_norm": 1.0,
  "ibp": None,
  "crown_ibp": None,
}
# Objectives in which no adversarial images take part, and those that look for other
# ones than where the loss is largest.
UNATTACKED = ("clp", "input_gradient", "cure", "ibp", "crown_ibp")
OWN_ASCENT = ("llr", "ig_norm")
CERTIFIED = ("ibp", "crown_ibp")
# Attacks whose passes train.
INTERLEAVED = ("free", "yopo")
_GROWING = ("bim", "pgd")
# These start at the image itself, where a divergence from its prediction has no slope.
_FROM_THE_IMAGE = ("bim", "wrm", "free")


def resolve(config: Any) -> None:
  """Fills in the defaults of attack and objective."""
  if config.attack_steps is None:
    config.attack_steps = ATTACKS[config.attack]
  if config.step_size is None and config.attack != "wrm":
    ratios = {"fgsm": 1.25, "nfgsm": 1.0, "free": 1.0, "yopo": 0.25}
    ratio = ratios.get(config.attack, 2.5 / config.attack_steps)
    if config.objective == "llr":
      ratio = 1.0  # to the corners of the ball, as the authors' steps of Adam
    config.step_size = ratio * config.epsilon
  if config.penalty_weight is None:
    config.penalty_weight = OBJECTIVES[config.objective]


def contradictions(config: Any) -> list[tuple[Any, str]]:
  """Pairs of whether something is wrong, and what to say of it."""
  attack, objective = config.attack, config.objective
  named, chosen = f"--attack={attack}", f"--objective={objective}"
  growing = config.steps_growing_epochs or config.epsilon_growing_epochs
  certified = objective in CERTIFIED
  return [
    (
      attack == "none" and config.attack_in_training_mode,
      "--attack_in_training_mode contradicts --attack=none.",
    ),
    (
      attack in ("fgsm", "nfgsm") and config.attack_steps not in (None, 1),
      f"--attack_steps contradicts {named}, which takes one step.",
    ),
    (
      attack == "nfgsm" and config.step_size not in (None, config.epsilon),
      "--step_size contradicts --attack=nfgsm, whose step is epsilon: choose fgsm, or "
      "drop it.",
    ),
    (
      attack == "nfgsm" and config.norm != "linf",
      f"--attack=nfgsm is for --norm=linf: with --norm={config.norm} choose fgsm.",
    ),
    (
      attack == "wrm" and config.step_size is not None,
      "--step_size contradicts --attack=wrm, whose steps follow from "
      "--wasserstein_penalty: drop it.",
    ),
    (
      objective in UNATTACKED and attack != "none",
      f"{chosen} trains on no adversarial images: add --attack=none.",
    ),
    (
      objective in OWN_ASCENT and attack != "pgd",
      f"{chosen} has an ascent of its own, with the steps of pgd: {named} cannot take "
      "its place; choose --attack=pgd.",
    ),
    (
      objective not in ("at", *UNATTACKED) and attack == "none",
      f"{chosen} needs adversarial images: choose an attack such as --attack=pgd, or "
      "--objective=at, which trains on clean ones too.",
    ),
    (
      config.gradient_alignment and attack == "yopo",
      "--gradient_alignment is there for attacks in one step, and its passes are not "
      "those that yopo climbs by: drop it, or choose --attack=fgsm.",
    ),
    (
      objective == "trades" and attack in _FROM_THE_IMAGE,
      f"--objective=trades needs an attack that starts at random, for its divergence "
      f"has no slope at the image itself, where {named} starts: choose pgd.",
    ),
    (
      OBJECTIVES[objective] is None and config.penalty_weight is not None,
      f"--penalty_weight contradicts {chosen}, which has no such term: drop it.",
    ),
    (
      objective not in ("at", "alp") and config.clean_weight != 1,
      f"--clean_weight goes with --objective=at and alp, not with {chosen}: drop it.",
    ),
    (
      config.gradient_alignment and attack == "none",
      "--gradient_alignment is there for attacks in one step, and --attack=none makes "
      "none: drop it, or choose --objective=at with --attack=fgsm.",
    ),
    (
      certified and config.mixing != "none",
      f"--mixing contradicts {chosen}, whose bounds are of one class: drop it.",
    ),
    (
      certified and config.norm != "linf",
      f"{chosen} bounds the maximum norm: choose --norm=linf, or --objective=at.",
    ),
    (
      certified and config.precision != "float32",
      f"{chosen} needs --precision=float32: its bounds hold up to rounding.",
    ),
    (
      certified and not config.epsilon_growing_epochs,
      f"{chosen} begins with a small epsilon: add --epsilon_growing_epochs, such as "
      f"{0.6 * config.epochs:g}.",
    ),
    (
      config.weight_perturbation and config.jit_compile,
      "--jit_compile cannot compile --weight_perturbation, which moves each replica's "
      "weights: drop one of them.",
    ),
    (
      growing and attack not in _GROWING and not certified,
      f"--steps_growing_epochs and --epsilon_growing_epochs go with --attack=pgd or "
      f"bim and with certified training, not with {named}.",
    ),
    (
      growing and objective in OWN_ASCENT,
      f"--steps_growing_epochs and --epsilon_growing_epochs do not go with {chosen}: "
      "drop them.",
    ),
    (
      certified and config.steps_growing_epochs,
      f"--steps_growing_epochs contradicts {chosen}: --epsilon_growing_epochs is what "
      "grows.",
    ),
    (
      config.epsilon_growing_epochs * (1.2 if certified else 1) > config.epochs,
      f"--epsilon_growing_epochs={config.epsilon_growing_epochs:g} "
      + ("and the fifth of it that goes before " if certified else "")
      + f"exceeds --epochs={config.epochs}: epsilon would never be reached.",
    ),
    (
      config.steps_growing_epochs > config.epochs,
      f"--steps_growing_epochs={config.steps_growing_epochs:g} exceeds --epochs="
      f"{config.epochs}: the steps would never be reached.",
    ),
    (
      attack in INTERLEAVED and config.accumulation > 1,
      f"{named} trains while it attacks, and cannot do so in parts: drop "
      "--accumulation, or choose pgd.",
    ),
    (
      attack in INTERLEAVED and config.attack_in_training_mode,
      f"--attack_in_training_mode contradicts {named}, whose passes train: drop it.",
    ),
    (
      attack == "warm_start_pgd"
      and (config.augmentation != "none" or config.mixing != "none"),
      "--attack=warm_start_pgd starts where an image's last attack ended, which fits no"
      " image that is changed anew in each epoch: drop --augmentation and --mixing, or"
      " choose pgd.",
    ),
    (
      attack == "warm_start_pgd" and config.data_service,
      "--attack=warm_start_pgd keeps perturbations where the image was, and "
      "--data_service sends it to any worker: drop one of them.",
    ),
    (
      attack == "yopo" and config.attack_steps == 1,
      "--attack=yopo needs --attack_steps=2 or more: the first of its passes sees the "
      "random start alone.",
    ),
    (
      not config.layer_decay and not config.initialize_from,
      "--layer_decay=0 trains the last layer alone: name by --initialize_from what the "
      "others come from, or choose a number above 0.",
    ),
    (
      attack == "yopo" and not config.layer_decay,
      "--attack=yopo goes through the first layer that is trained, and --layer_decay=0 "
      "trains the last alone: choose pgd.",
    ),
    (
      attack == "warm_start_pgd" and config.jit_compile,
      "--jit_compile cannot compile the store of --attack=warm_start_pgd: drop it, or "
      "choose pgd.",
    ),
    (
      config.unlabeled_data
      and config.mode.startswith("train")
      and (objective != "at" or config.gradient_alignment),
      "--unlabeled_data goes with --objective=at alone: images without labels need the "
      "terms of --unlabeled_loss.",
    ),
    (
      config.unlabeled_data
      and config.mode.startswith("train")
      and config.unlabeled_loss != "pseudo_label"
      and attack in ("none", *_FROM_THE_IMAGE),
      f"--unlabeled_loss={config.unlabeled_loss} needs an attack that starts at random,"
      f" for consistency has no slope at the image itself, where {named} stays or "
      "starts: choose pgd, or --unlabeled_loss=pseudo_label.",
    ),
  ]
