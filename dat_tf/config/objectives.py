"""What training minimises: what --objective names, and the settings that go with each.

An objective is declared here once. To add one, write its class in dat_tf/objectives,
and a record here: `TrainingObjective`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Callable, Optional

from dat_tf.config.attacks import Trained, make_ball, training_attack
from dat_tf.config.declaring import (
  Late,
  Option,
  choice,
  integer,
  loaded,
  number,
  options,
  unset,
)
from dat_tf.config.refusals import Refusals

if TYPE_CHECKING:
  from dat_tf import attacks, objectives
  from dat_tf.config.settings import Settings
  from dat_tf.objectives import mixing
else:
  attacks, objectives = Late("dat_tf.attacks"), Late("dat_tf.objectives")
  mixing = Late("dat_tf.objectives.mixing")


@dataclasses.dataclass(frozen=True)
class TrainingObjective(Option):
  """What training minimises.

  Attributes:
    make: the objective, from the settings and the steps of an epoch; it imports
      TensorFlow.
    penalty_weight: --penalty_weight unless given; None if there is no such term.
    attacked: whether it trains on adversarial images.
    gain: what its own attack raises, if it has one, from the settings.
    step_size: --step_size unless given, in epsilons; None leaves it to the attack.
    certified: whether what it trains can be certified.
    from_random: whether its attack must begin elsewhere than at the image itself.
  """

  make: Callable[[Settings, int], Any] = lambda settings, steps_per_epoch: None
  penalty_weight: Optional[float] = None
  attacked: bool = True
  gain: Optional[Callable[[Settings], Any]] = None
  step_size: Optional[float] = None
  certified: bool = False
  from_random: bool = False


def _at(settings: Settings, steps_per_epoch: int) -> objectives.Objective:
  if settings.unlabeled_data:
    return objectives.SemiSupervised(
      settings.clean_weight,
      settings.unlabeled_weight,
      pseudo_labels=settings.unlabeled_loss != "consistency",
      consistency=settings.unlabeled_loss != "pseudo_label",
      label_smoothing=settings.pseudo_label_smoothing,
      consistency_growing=round(settings.consistency_growing_epochs * steps_per_epoch),
    )
  if settings.attack == "none":
    return objectives.CleanTraining()
  return objectives.AdversarialTraining(settings.clean_weight)


def _regularized(penalty: objectives.Penalty) -> objectives.Objective:
  return objectives.Regularized(objectives.CleanTraining(), penalty)


def _certified(
  settings: Settings, steps_per_epoch: int, *, crown: bool = False
) -> objectives.Objective:
  ramp = max(round(settings.epsilon_growing_epochs * steps_per_epoch), 1)
  # A fifth of the ramp goes before it, as in Gowal et al.'s schedule for MNIST.
  return objectives.CertifiedTraining(
    settings.epsilon, ramp // 5, ramp, settings.certified_clean_weight, crown=crown
  )


_WEIGHT = ("penalty_weight",)
_CERTIFIED = ("certified_clean_weight", "epsilon_growing_epochs")

OBJECTIVES = options(
  TrainingObjective(
    "at", "clean and adversarial cross-entropy", ("clean_weight",), _at
  ),
  TrainingObjective(
    "trades",
    "clean cross-entropy, and divergence of the adversarial prediction from the clean",
    _WEIGHT,
    lambda s, steps: objectives.TRADES(s.penalty_weight),
    penalty_weight=6.0,
    from_random=True,
  ),
  TrainingObjective(
    "mart",
    "adversarial cross-entropy and divergence, weighted by the clean prediction",
    _WEIGHT,
    lambda s, steps: objectives.MART(s.penalty_weight),
    penalty_weight=5.0,
  ),
  TrainingObjective(
    "alp",
    "adversarial logit pairing",
    (*_WEIGHT, "clean_weight"),
    lambda s, steps: objectives.AdversarialLogitPairing(
      s.penalty_weight, s.clean_weight
    ),
    penalty_weight=1.0,
  ),
  TrainingObjective(
    "clp",
    "clean logit pairing",
    (*_WEIGHT, "pairing_noise"),
    lambda s, steps: objectives.CleanLogitPairing(s.penalty_weight, s.pairing_noise),
    penalty_weight=0.5,
    attacked=False,
  ),
  TrainingObjective(
    "input_gradient",
    "squared norm of the loss's gradient with respect to the image",
    _WEIGHT,
    lambda s, steps: _regularized(objectives.InputGradient(s.penalty_weight)),
    penalty_weight=1.0,
    attacked=False,
  ),
  TrainingObjective(
    "cure",
    "curvature of the loss",
    (*_WEIGHT, "curvature_step"),
    lambda s, steps: _regularized(
      objectives.Curvature(s.penalty_weight, s.curvature_step)
    ),
    penalty_weight=4.0,
    attacked=False,
  ),
  TrainingObjective(
    "llr",
    "local linearity of the loss",
    _WEIGHT,
    lambda s, steps: _regularized(objectives.LocalLinearity(s.penalty_weight)),
    penalty_weight=4.0,
    gain=lambda s: objectives.linearity_violation,
    step_size=1.0,  # to the corners of the ball, as the authors' steps of Adam
  ),
  TrainingObjective(
    "ig_norm",
    "norm of the attributions",
    (*_WEIGHT, "attribution_points"),
    lambda s, steps: _regularized(
      objectives.AttributionNorm(s.penalty_weight, s.attribution_points)
    ),
    penalty_weight=1.0,
    gain=lambda s: functools.partial(
      objectives.attribution_norm, points=min(s.attribution_points, 10)
    ),
  ),
  TrainingObjective(
    "ibp",
    "interval bounds, which certify",
    _CERTIFIED,
    _certified,
    attacked=False,
    certified=True,
  ),
  TrainingObjective(
    "crown_ibp",
    "linear and interval bounds, which certify",
    _CERTIFIED,
    functools.partial(_certified, crown=True),
    attacked=False,
    certified=True,
  ),
)

_MIXING = options(
  Option("none"),
  Option("mixup", "weighted means of two images", ("mixing_alpha",)),
  Option("cutmix", "a part of one image in another", ("mixing_alpha",)),
)
_UNLABELED = options(
  Option("pseudo_label", "as labelled ones", ("pseudo_label_smoothing",)),
  Option(
    "consistency",
    "divergence of the adversarial prediction from the clean one",
    ("consistency_growing_epochs",),
  ),
  Option("both", "their sum", ("pseudo_label_smoothing", "consistency_growing_epochs")),
)


def training_objective(name: str) -> TrainingObjective:
  """The record of --objective, also of a user's own function.

  Such a function is called with the settings and the steps of an epoch, and returns an
  `Objective`.
  """
  if name in OBJECTIVES:
    return OBJECTIVES[name]
  return TrainingObjective(
    name, make=lambda s, steps: loaded(name, "objective")(s, steps)
  )


def make_attack(settings: Settings, trained: Trained) -> Any:
  """The attack of training, made in the strategy's scope; None trains on clean images.

  Raises:
    UserError: the network does not go with the attack.
  """
  objective = training_objective(settings.objective)
  if not objective.gain:
    return training_attack(settings.attack).make(settings, trained)
  return attacks.PGD(
    make_ball(settings),
    settings.step_size,
    settings.attack_steps,
    gain=objective.gain(settings),
  )


def make_objective(settings: Settings, steps_per_epoch: int) -> objectives.Objective:
  """What training minimises."""
  objective = training_objective(settings.objective).make(settings, steps_per_epoch)
  if settings.gradient_alignment:
    objective = objectives.Regularized(
      objective,
      objectives.GradientAlignment(
        make_ball(settings).random_start, settings.gradient_alignment
      ),
      training=settings.attack_in_training_mode,
    )
  if settings.weight_perturbation:
    objective = objectives.WeightPerturbation(objective, settings.weight_perturbation)
  return objective


def make_preparation(settings: Settings) -> Optional[Callable[[Any], Any]]:
  """What changes images and labels of a batch together; None leaves them."""
  changes: list[Callable[[Any], Any]] = []
  if settings.label_smoothing:
    changes.append(
      mixing.LabelSmoothing(settings.num_classes, settings.label_smoothing)
    )
  if settings.mixing != "none":
    mix = mixing.Mixup if settings.mixing == "mixup" else mixing.CutMix
    changes.append(mix(settings.num_classes, settings.mixing_alpha))
  if not changes:
    return None
  return lambda batch: functools.reduce(lambda b, change: change(b), changes, batch)


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
  """What training minimises."""

  ROOM = "objectives"

  objective: str = choice("at", OBJECTIVES, "What training minimises.", takes_own=True)
  clean_weight: float = number(
    1, "lambda: weight of the clean loss beside the adversarial one, of at and alp."
  )
  penalty_weight: Any = number(
    None,
    "Weight of the term that gives the objective its name. Default: 6 for trades, 5 "
    "for mart, 4 for cure and llr, 0.5 for clp, 1 for the others that have such a "
    "term.",
  )
  attribution_points: int = integer(
    50,
    "Points between an image and its adversarial one at which ig_norm takes gradients, "
    "each a pass through the network. Its attack takes at most 10.",
    lower=1,
  )
  pairing_noise: float = number(
    0.5,
    "Standard deviation of the noise that clp adds to its images, for pixels in [0, "
    "1]; 0.5 is for MNIST.",
  )
  curvature_step: float = number(
    1.5,
    "h: Euclidean length of the step over which cure compares gradients, for pixels in "
    "[0, 1].",
    above=0,
  )
  certified_clean_weight: float = number(
    0.5,
    "kappa: weight of the clean loss at the end of training by ibp or crown_ibp, "
    "beside that at the bounds.",
    upper=1,
  )
  gradient_alignment: float = number(
    0,
    "Weight of GradAlign, which keeps one-step attacks from catastrophic overfitting; "
    "its paper uses 0.2 for epsilon 8/255 on CIFAR-10.",
  )
  weight_perturbation: float = number(
    0,
    "gamma of AWP: the weights are attacked too, up to this part of their norm; 0 is "
    "no such attack.",
  )
  label_smoothing: float = number(
    0, "Part of a label that is spread evenly over all classes.", below=1
  )
  mixing: str = choice(
    "none", _MIXING, "How images are mixed with others, and their labels with them."
  )
  mixing_alpha: float = number(
    1,
    "Parameter of the beta distribution that the parts of mixed images are drawn from.",
    above=0,
  )
  unlabeled_loss: str = choice("pseudo_label", _UNLABELED, "Loss of unlabelled images.")
  unlabeled_weight: float = number(
    1, "Weight of an unlabelled image beside a labelled one."
  )
  consistency_growing_epochs: float = number(
    10, "Epochs in which the weight of the consistency loss grows from 0 to its value."
  )
  pseudo_label_smoothing: float = number(
    0, "Part of a pseudo-label that is spread evenly over all classes.", below=1
  )


def needs_exact_attack(settings: Settings) -> str:
  """What keeps the attack of training from bfloat16; empty if nothing does."""
  objective = training_objective(settings.objective)
  if objective.gain:
    return f"--objective={objective.name} attacks a small difference of losses"
  if settings.attack_in_training_mode:
    return "--attack_in_training_mode attacks the network as it is trained"
  if settings.precision != "float32":
    return f"--precision={settings.precision} attacks in bfloat16 already"
  if "attack_precision" not in training_attack(settings.attack).own:
    return f"--attack={settings.attack} needs float32"
  return ""


def resolved(settings: Settings) -> dict[str, Any]:
  """Settings that follow from the objective, where they were not given."""
  objective = training_objective(settings.objective)
  found: dict[str, Any] = {}
  if unset(settings.penalty_weight):
    found["penalty_weight"] = objective.penalty_weight
  if unset(settings.step_size) and objective.step_size:
    found["step_size"] = objective.step_size * settings.epsilon
  return found


def contradictions(settings: Settings) -> Refusals:
  """What does not go together, see `refusals`."""
  attack = training_attack(settings.attack)
  objective = training_objective(settings.objective)
  named, chosen = f"--attack={attack.name}", f"--objective={objective.name}"
  growing = settings.steps_growing_epochs or settings.epsilon_growing_epochs
  certified = objective.certified
  yield (
    not objective.attacked and attack.name != "none",
    f"{chosen} trains on no adversarial images: add --attack=none.",
  )
  yield (
    objective.gain and attack.name != "pgd",
    f"{chosen} has an ascent of its own, with the steps of pgd: {named} cannot take "
    "its place; choose --attack=pgd.",
  )
  yield (
    objective.attacked
    and objective.name in OBJECTIVES
    and objective.name != "at"
    and attack.name == "none",
    f"{chosen} needs adversarial images: choose an attack such as --attack=pgd, or "
    "--objective=at, which trains on clean ones too.",
  )
  yield (
    objective.from_random and attack.starts_at_image,
    f"{chosen} needs an attack that starts at random, for its divergence has no "
    f"gradient at the image itself, where {named} starts: choose pgd.",
  )
  yield (
    growing and objective.gain,
    f"--steps_growing_epochs and --epsilon_growing_epochs do not go with {chosen}: "
    "drop them.",
  )
  yield (
    certified and settings.mixing != "none",
    f"--mixing contradicts {chosen}, whose bounds are of one class: drop it.",
  )
  yield (
    certified and settings.norm != "linf",
    f"{chosen} bounds the maximum norm: choose --norm=linf, or --objective=at.",
  )
  yield (
    certified and settings.precision != "float32",
    f"{chosen} needs --precision=float32: its bounds hold up to rounding.",
  )
  yield (
    certified and not settings.epsilon_growing_epochs,
    f"{chosen} begins with a small epsilon: add --epsilon_growing_epochs, such as "
    f"{0.6 * settings.epochs:g}.",
  )
  yield (
    settings.epsilon_growing_epochs * (1.2 if certified else 1) > settings.epochs,
    f"--epsilon_growing_epochs={settings.epsilon_growing_epochs:g} "
    + ("and the fifth of it that goes before " if certified else "")
    + f"exceeds --epochs={settings.epochs}: epsilon would never be reached.",
  )
  yield (
    settings.weight_perturbation and settings.jit_compile,
    "--jit_compile cannot compile --weight_perturbation, which moves each replica's "
    "weights: drop one of them.",
  )
  exact = needs_exact_attack(settings)
  yield (
    settings.attack_precision == "bfloat16" and exact,
    f"--attack_precision=bfloat16 does not go with what is attacked: {exact}. Drop it.",
  )
  semi_supervised = settings.unlabeled_data and settings.trains
  yield (
    semi_supervised and (objective.name != "at" or settings.gradient_alignment),
    "--unlabeled_data goes with --objective=at alone: images without labels need the "
    "terms of --unlabeled_loss.",
  )
  yield (
    semi_supervised
    and settings.unlabeled_loss != "pseudo_label"
    and (attack.name == "none" or attack.starts_at_image),
    f"--unlabeled_loss={settings.unlabeled_loss} needs an attack that starts at "
    f"random, for consistency has no gradient at the image itself, where {named} stays "
    "or starts: choose pgd, or --unlabeled_loss=pseudo_label.",
  )
