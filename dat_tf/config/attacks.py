"""The attacks of training: what --attack names, and the settings that go with each.

A method is declared here once. To add one, write its class in dat_tf/attacks, and a
record here: `TrainingAttack`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Callable, Optional

from dat_tf.config.declaring import (
  Late,
  Option,
  choice,
  integer,
  loaded,
  number,
  options,
  switch,
  unset,
)
from dat_tf.config.refusals import Refusals

if TYPE_CHECKING:
  from dat_tf import attacks
  from dat_tf.compat import keras
  from dat_tf.config.settings import Settings
else:
  attacks = Late("dat_tf.attacks")


@dataclasses.dataclass(frozen=True)
class Trained:
  """What is trained, for attacks that must know.

  Attributes:
    classifier: the network.
    batch_shape: (B, H, W, C) of a replica's images.
    steps_per_epoch: steps of training.
  """

  classifier: keras.Model
  batch_shape: tuple[int, ...]
  steps_per_epoch: int


def _nothing(settings: Settings) -> Refusals:
  del settings
  return []


@dataclasses.dataclass(frozen=True)
class TrainingAttack(Option):
  """An attack of training.

  Attributes:
    make: the attack; it imports TensorFlow, and is called in the strategy's scope.
    steps: --attack_steps unless given.
    step_size: --step_size unless given, from epsilon and the steps; None if the attack
      has no such setting.
    starts_at_image: whether it begins at the image itself, where a divergence from the
      prediction there has no gradient.
    trains: whether its passes train the weights too.
    refuses: what does not go with it, see `refusals`.
  """

  make: Callable[[Settings, Trained], Any] = lambda settings, trained: None
  steps: int = 10
  step_size: Optional[Callable[[float, int], float]] = lambda epsilon, steps: (
    2.5 / steps * epsilon
  )
  starts_at_image: bool = False
  trains: bool = False
  refuses: Callable[[Settings], Refusals] = _nothing


def make_ball(settings: Settings) -> attacks.Ball:
  """The allowed perturbations."""
  balls: dict[str, Callable[[float], attacks.Ball]]
  balls = {"linf": attacks.LInfinity, "l2": attacks.L2, "l1": attacks.L1}
  return balls[settings.norm](settings.epsilon)


def _pgd(settings: Settings, trained: Trained, **arguments: Any) -> attacks.PGD:
  return attacks.PGD(
    make_ball(settings), settings.step_size, settings.attack_steps, **arguments
  )


def _growing(settings: Settings, trained: Trained, **arguments: Any) -> Any:
  """PGD, which grows to its strength if that was asked for."""
  pgd = _pgd(settings, trained, **arguments)
  growing = [
    round(epochs * trained.steps_per_epoch)
    for epochs in (settings.steps_growing_epochs, settings.epsilon_growing_epochs)
  ]
  return attacks.Curriculum(pgd, *growing) if any(growing) else pgd


def _dynamic_pgd(settings: Settings, trained: Trained) -> attacks.DynamicPGD:
  falling = max(round(5 / 6 * settings.epochs * trained.steps_per_epoch), 1)
  return attacks.DynamicPGD(_pgd(settings, trained), falling, settings.convergence)


def _one_step(settings: Settings) -> Refusals:
  yield (
    settings.attack_steps not in (None, 1),
    f"--attack_steps contradicts --attack={settings.attack}, which takes one step.",
  )


def _nfgsm_refuses(settings: Settings) -> Refusals:
  yield from _one_step(settings)
  yield (
    settings.step_size not in (None, settings.epsilon),
    "--step_size contradicts --attack=nfgsm, whose step is epsilon: choose fgsm, or "
    "drop it.",
  )
  yield (
    settings.norm != "linf",
    f"--attack=nfgsm is for --norm=linf: with --norm={settings.norm} choose fgsm.",
  )


def _warm_start_refuses(settings: Settings) -> Refusals:
  yield (
    settings.augmentation != "none" or settings.mixing != "none",
    "--attack=warm_start_pgd starts where an image's last attack ended, which fits no "
    "image that is changed anew in each epoch: drop --augmentation and --mixing, or "
    "choose pgd.",
  )
  yield (
    settings.data_service,
    "--attack=warm_start_pgd keeps perturbations where the image was, and "
    "--data_service sends it to any worker: drop one of them.",
  )
  yield (
    settings.jit_compile,
    "--jit_compile cannot compile the store of --attack=warm_start_pgd: drop it, or "
    "choose pgd.",
  )


def _training_refuses(settings: Settings) -> Refusals:
  """What does not go together with attacks whose passes train."""
  named = f"--attack={settings.attack}"
  yield (
    settings.accumulation > 1,
    f"{named} trains while it attacks, and cannot do so in parts: drop --accumulation, "
    "or choose pgd.",
  )
  yield (
    settings.attack_in_training_mode,
    f"--attack_in_training_mode contradicts {named}, whose passes train: drop it.",
  )


def _yopo_refuses(settings: Settings) -> Refusals:
  yield from _training_refuses(settings)
  yield (
    settings.gradient_alignment,
    "--gradient_alignment is there for attacks in one step, and its passes are not "
    "those that yopo climbs by: drop it, or choose --attack=fgsm.",
  )
  yield (
    settings.attack_steps == 1,
    "--attack=yopo needs --attack_steps=2 or more: the first of its passes sees the "
    "random start alone.",
  )
  yield (
    not settings.layer_decay,
    "--attack=yopo goes through the first layer that is trained, and --layer_decay=0 "
    "trains the last alone: choose pgd.",
  )


def _none_refuses(settings: Settings) -> Refusals:
  yield (
    settings.attack_in_training_mode,
    "--attack_in_training_mode contradicts --attack=none.",
  )
  yield (
    settings.gradient_alignment,
    "--gradient_alignment is there for attacks in one step, and --attack=none makes "
    "none: drop it, or choose --objective=at with --attack=fgsm.",
  )


_STEPS = ("step_size", "attack_steps")
# These follow the direction of a gradient, which bfloat16 gives well enough.
_ASCENT = (*_STEPS, "attack_precision")
_GROWING = ("steps_growing_epochs", "epsilon_growing_epochs")

ATTACKS = options(
  TrainingAttack("none", "trains on clean images", steps=1, refuses=_none_refuses),
  TrainingAttack(
    "fgsm",
    "one step from a random start",
    _ASCENT,
    _pgd,
    steps=1,
    step_size=lambda epsilon, steps: 1.25 * epsilon,
    refuses=_one_step,
  ),
  TrainingAttack(
    "nfgsm",
    "one step from strong noise",
    _ASCENT,
    lambda s, trained: attacks.NFGSM(s.epsilon),
    steps=1,
    step_size=lambda epsilon, steps: epsilon,
    refuses=_nfgsm_refuses,
  ),
  TrainingAttack(
    "bim",
    "pgd from the image itself",
    (*_ASCENT, *_GROWING),
    lambda s, trained: _growing(s, trained, start=attacks.from_image),
    starts_at_image=True,
  ),
  TrainingAttack(
    "pgd",
    "projected gradient ascent from a random start",
    (*_ASCENT, *_GROWING),
    _growing,
  ),
  TrainingAttack(
    "momentum_pgd",
    "pgd along an average of its gradients",
    _ASCENT,
    lambda s, trained: _pgd(s, trained, direction=attacks.Momentum()),
  ),
  TrainingAttack(
    "dynamic_pgd",
    "pgd that stops once it has converged well enough",
    (*_ASCENT, "convergence"),
    _dynamic_pgd,
  ),
  TrainingAttack(
    "warm_start_pgd",
    "pgd from where the example's attack ended an epoch before",
    _ASCENT,
    lambda s, trained: attacks.WarmStart(_pgd(s, trained), trained.batch_shape[1:]),
    refuses=_warm_start_refuses,
  ),
  TrainingAttack(
    "wrm",
    "gradient ascent with a price on the distance instead of a bound",
    ("attack_steps", "wasserstein_penalty"),
    lambda s, trained: attacks.WRM(s.wasserstein_penalty, s.attack_steps),
    steps=15,
    step_size=None,
    starts_at_image=True,
  ),
  TrainingAttack(
    "free",
    "attacks while it trains, on each batch several times",
    _STEPS,
    lambda s, trained: attacks.Free(
      make_ball(s), trained.batch_shape, step_size=s.step_size
    ),
    steps=8,
    step_size=lambda epsilon, steps: epsilon,
    starts_at_image=True,
    trains=True,
    refuses=_training_refuses,
  ),
  TrainingAttack(
    "yopo",
    "attacks through the first layer between passes that train",
    (*_STEPS, "inner_steps"),
    lambda s, trained: attacks.YOPO(
      trained.classifier,
      make_ball(s),
      s.step_size,
      passes=s.attack_steps,
      inner_steps=s.inner_steps,
    ),
    steps=5,
    step_size=lambda epsilon, steps: epsilon / 4,
    trains=True,
    refuses=_yopo_refuses,
  ),
)


def training_attack(name: str) -> TrainingAttack:
  """The record of --attack, also of a user's own function.

  Such a function is called with the settings and `Trained`, and returns an `Attack`.
  """
  if name in ATTACKS:
    return ATTACKS[name]
  return TrainingAttack(
    name, own=_ASCENT, make=lambda s, trained: loaded(name, "attack")(s, trained)
  )


@dataclasses.dataclass(frozen=True)
class AttackSettings:
  """How images are attacked in training."""

  ROOM = "attacks"

  attack: str = choice(
    "pgd", ATTACKS, "How training images are attacked.", takes_own=True
  )
  norm: str = choice("linf", ("linf", "l2", "l1"), "Norm that bounds the perturbation.")
  epsilon: float = number(
    "8/255",
    "Largest norm of the perturbation, for pixels in [0, 1]; at most 1 for linf.",
    above=0,
  )
  step_size: float = number(
    None,
    "Length of a step of the attack in training, in the norm of the perturbation, for "
    "pixels in [0, 1]. Default: 2.5 epsilon / attack_steps; 1.25 epsilon for the "
    "attack fgsm, epsilon for nfgsm, free and the objective llr, epsilon / 4 for yopo.",
    above=0,
  )
  attack_steps: int = integer(
    None,
    "Steps of the attack in training. For free it is how often each batch is trained "
    "on, for yopo the passes through the whole network. Default: 10; 1 for fgsm and "
    "nfgsm, 15 for wrm, 8 for free, 5 for yopo.",
    lower=1,
  )
  inner_steps: int = integer(
    3, "Steps of yopo through the first layer after each of its passes.", lower=1
  )
  convergence: float = number(
    0.5,
    "Criterion in nats at which dynamic_pgd stops early at the start of training. It "
    "falls to 0 over five sixths of training.",
  )
  wasserstein_penalty: float = number(
    0.385,
    "gamma: price of wrm for a squared distance, for pixels in [0, 1].",
    above=0,
  )
  steps_growing_epochs: float = number(
    0, "Epochs in which the steps of pgd or bim grow from 1 to attack_steps."
  )
  epsilon_growing_epochs: float = number(
    0,
    "Epochs in which the epsilon of pgd, bim or certified training grows to its value.",
  )
  attack_in_training_mode: bool = switch(
    "Attack with batch-norm in training mode instead of inference mode."
  )
  attack_precision: str = choice(
    "float32",
    options(
      Option("float32"),
      Option("bfloat16", "faster where the processor or the GPU has it"),
      Option("auto", "bfloat16 if it is faster here, and exact enough for the attack"),
    ),
    "Arithmetic of the network as it is attacked in training.",
  )


def resolved(settings: Settings) -> dict[str, Any]:
  """Settings that follow from the attack, where they were not given."""
  attack = training_attack(settings.attack)
  found: dict[str, Any] = {}
  if unset(settings.attack_steps):
    found["attack_steps"] = attack.steps
  if unset(settings.step_size) and attack.step_size:
    steps = found.get("attack_steps", settings.attack_steps)
    found["step_size"] = attack.step_size(settings.epsilon, steps)
  return found


def contradictions(settings: Settings) -> Refusals:
  """What does not go together, see `refusals`."""
  yield (
    settings.norm == "linf" and settings.epsilon > 1,
    f"--epsilon={settings.epsilon:g}: pixels lie in [0, 1], so that --norm=linf takes "
    "at most 1 (8 of 255 is written 8/255).",
  )
  yield (
    settings.steps_growing_epochs > settings.epochs,
    f"--steps_growing_epochs={settings.steps_growing_epochs:g} exceeds --epochs="
    f"{settings.epochs}: the steps would never be reached.",
  )
  yield from training_attack(settings.attack).refuses(settings)
