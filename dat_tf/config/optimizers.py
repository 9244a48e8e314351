"""The optimizer of a run, and the course of its learning rates."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Optional

from dat_tf.config.declaring import (
  Option,
  choice,
  integer,
  number,
  numbers,
  options,
  unset,
)
from dat_tf.config.refusals import Refusals

if TYPE_CHECKING:
  from dat_tf.compat import keras
  from dat_tf.config.settings import Settings

_NORMS = ("min_weight_norm", "max_weight_norm")
_OPTIMIZERS = options(
  Option("lamb", "layer-wise rates on Adam's steps", ("beta_1", "beta_2", *_NORMS)),
  Option("lars", "layer-wise rates on steps with momentum", ("momentum", *_NORMS)),
  Option("sgd", "one rate, with momentum", ("momentum",)),
)
_DECAYS = options(
  Option("constant"),
  Option("step", "times 0.1 at decay_epochs", ("decay_epochs",)),
  Option("cosine", "half a period of the cosine, to 0"),
)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """How the weights are moved."""

  ROOM = "optimizers"

  optimizer: Any = choice("lamb", _OPTIMIZERS, "Rule by which the weights are moved.")
  learning_rate: float = number(
    0.01, "Peak learning rate at reference_batch_size.", above=0
  )
  reference_batch_size: int = integer(
    None,
    "Images of a step for which learning_rate is stated. Default: global_batch_size.",
    lower=1,
  )
  learning_rate_scaling: Any = choice(
    "linear",
    ("linear", "sqrt"),
    "How the rate grows from reference_batch_size to global_batch_size.",
  )
  layer_decay: float = number(
    1,
    "Learning rate of each layer, divided by that of the layer above it; 0 trains the "
    "last layer alone.",
    upper=1,
  )
  clip_norm: Optional[float] = number(
    None,
    "Maximum norm of each replica's gradient, before it is averaged with the others'. "
    "Default: no bound.",
    above=0,
  )
  warmup_epochs: float = number(0, "Epochs in which the rate grows to its peak.")
  decay: Any = choice(
    "cosine", _DECAYS, "Course of the learning rate after the warm-up."
  )
  decay_epochs: tuple[float, ...] = numbers(
    "",
    "Epochs at which --decay=step multiplies the rate by 0.1.",
    example="75,90,95",
    above=0,
  )
  weight_decay: float = number(
    1e-4, "Decay of weights in each step; biases and batch-norm have none."
  )
  momentum: float = number(0.9, "Momentum of sgd and lars.", upper=1)
  beta_1: float = number(0.9, "Decay of lamb's mean of the gradients.", below=1)
  beta_2: float = number(
    0.999, "Decay of lamb's mean of the squared gradients.", below=1
  )
  min_weight_norm: float = number(
    0,
    "c_l: smallest norm that a layer counts with in the trust ratio of lamb and lars.",
  )
  max_weight_norm: float = number(
    10,
    "c_u: largest norm that a layer counts with in the trust ratio of lamb and lars.",
  )


def make_optimizer(
  settings: Settings, classifier: keras.Model, steps_per_epoch: int
) -> keras.optimizers.legacy.Optimizer:
  """The optimizer, its learning rates scaled to batch and layer, and scheduled."""
  from dat_tf import optimizers
  from dat_tf.models import transfer

  schedule = optimizers.WarmupDecay(
    optimizers.scaled_learning_rate(
      settings.learning_rate,
      reference_batch_size=settings.reference_batch_size,
      global_batch_size=settings.global_batch_size,
      rule=settings.learning_rate_scaling,
    ),
    warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
    decay=settings.decay,
    total_steps=settings.epochs * steps_per_epoch,
    boundaries=[round(epoch * steps_per_epoch) for epoch in settings.decay_epochs],
  )
  optimizer = optimizers.make_optimizer(
    settings.optimizer,
    schedule,
    weight_decay=settings.weight_decay,
    momentum=settings.momentum,
    beta_1=settings.beta_1,
    beta_2=settings.beta_2,
    norm_bounds=(settings.min_weight_norm, settings.max_weight_norm),
  )
  if 0 < settings.layer_decay < 1:
    optimizer.rate_factors = transfer.layer_rate_factors(
      classifier, settings.layer_decay
    )
  return optimizer


def resolved(settings: Settings) -> dict[str, Any]:
  """Settings that follow from others, where they were not given."""
  if unset(settings.reference_batch_size):
    return {"reference_batch_size": settings.global_batch_size}
  return {}


def contradictions(settings: Settings) -> Refusals:
  """What does not go together, see `refusals`."""
  yield (
    settings.warmup_epochs > settings.epochs,
    f"--warmup_epochs={settings.warmup_epochs:g} exceeds --epochs={settings.epochs}: "
    "lower it too.",
  )
  yield (
    settings.decay == "step" and not settings.decay_epochs,
    "--decay=step needs --decay_epochs, such as 75,90,95.",
  )
  yield (
    settings.min_weight_norm > settings.max_weight_norm,
    "--min_weight_norm exceeds --max_weight_norm.",
  )
  yield (
    not settings.layer_decay and not settings.initialize_from,
    "--layer_decay=0 trains the last layer alone: name by --initialize_from what the "
    "others come from, or choose a number above 0.",
  )
