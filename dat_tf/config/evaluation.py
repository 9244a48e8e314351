"""How a run is evaluated: by which attacks, on which images, and on whose model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Optional

from dat_tf.config.attacks import make_ball
from dat_tf.config.declaring import integer, number, numbers, switch, text, texts, unset
from dat_tf.config.refusals import Refusals

if TYPE_CHECKING:
  from dat_tf import attacks
  from dat_tf.config.settings import Settings


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
  """How accuracies are measured."""

  ROOM = "evaluation"

  evaluation_attack_steps: int = integer(
    20,
    "Steps of pgd in evaluation. The attacks of --attacks have their own.",
    lower=1,
    may_change=True,
  )
  evaluation_step_size: float = number(
    None,
    "Length of a step of pgd in evaluation, in the norm of the perturbation, for "
    "pixels in [0, 1]. Default: 2.5 epsilon / evaluation_attack_steps.",
    above=0,
    may_change=True,
  )
  attacks: tuple[str, ...] = texts(
    "Attacks of evaluation instead of pgd, such as autoattack,pgd-50x10. There are "
    "apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, autoattack, autoattack-plus, "
    "autoattack-rand, deepfool, fgsm, pgd-K, pgd-KxR, cw-pgd-K, bim-K, mi-fgsm-K; in "
    "l1 and l2 jsma; in l2 ddn, cw-l2, l-bfgs; and transfer-NAME, which makes any of "
    "them on another model.",
    may_change=True,
  )
  evaluation_examples: int = integer(
    0,
    "Number of test images, from the first on, that the attacks of --attacks are run "
    "on; 0 is all.",
    may_change=True,
  )
  probe_images: int = integer(
    200,
    "Number of test images, from the first on, on which it is probed whether attacks "
    "can be trusted; 0 is none.",
    may_change=True,
  )
  model_path: Optional[str] = text(
    None, "A Keras model or SavedModel to evaluate instead of the run's own."
  )
  input_range: tuple[float, float] = numbers(
    "0,1",
    "Pixel values for black and white that the model of --model_path expects.",
    example="0,255 or -1,1",
    count=2,
  )
  logits: Optional[bool] = switch(
    "The model of --model_path gives logits. Default: it does, unless --probabilities "
    "says otherwise.",
    default=None,
    may_change=True,
  )
  probabilities: bool = switch(
    "The model of --model_path gives probabilities instead of logits."
  )
  source_model_path: Optional[str] = text(
    None,
    "A Keras model or SavedModel on which the attacks transfer-NAME are made.",
    may_change=True,
  )
  source_input_range: tuple[float, float] = numbers(
    "0,1",
    "Pixel values for black and white that the model of --source_model_path expects.",
    example="0,255 or -1,1",
    count=2,
    may_change=True,
  )
  source_probabilities: bool = switch(
    "The model of --source_model_path gives probabilities instead of logits.",
    may_change=True,
  )


def make_evaluation_attack(settings: Settings) -> attacks.PGD:
  """The attack of evaluation inside Keras."""
  from dat_tf import attacks

  return attacks.PGD(
    make_ball(settings),
    settings.evaluation_step_size,
    settings.evaluation_attack_steps,
  )


def resolved(settings: Settings) -> dict[str, Any]:
  """Settings that follow from others, where they were not given."""
  if not unset(settings.evaluation_step_size):
    return {}
  step_size = 2.5 * settings.epsilon / settings.evaluation_attack_steps
  return {"evaluation_step_size": step_size}


def contradictions(settings: Settings) -> Refusals:
  """What does not go together, see `refusals`."""
  whole = (0.0, 1.0)
  yield (
    settings.model_path and (settings.mode != "evaluate" or not settings.attacks),
    "--model_path needs --mode=evaluate and --attacks, such as --attacks=autoattack.",
  )
  yield (
    not settings.model_path
    and (
      settings.input_range != whole
      or settings.logits is not None
      or settings.probabilities
    ),
    "--logits, --probabilities and --input_range are of the model of --model_path: "
    "name it.",
  )
  yield (
    settings.logits == settings.probabilities,
    "The model of --model_path gives --logits or --probabilities: choose one.",
  )
  yield (
    not settings.source_model_path
    and (settings.source_input_range != whole or settings.source_probabilities),
    "--source_probabilities and --source_input_range are of the model of "
    "--source_model_path: name it.",
  )
