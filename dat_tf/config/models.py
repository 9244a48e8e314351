"""The network of a run, and the average of its weights."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Optional

from dat_tf.config.declaring import Option, choice, number, options, text
from dat_tf.config.refusals import Refusals
from dat_tf.models.registry import OWN_NAMES

if TYPE_CHECKING:
  from dat_tf.compat import keras
  from dat_tf.config.settings import Settings
  from dat_tf.models.averaging import WeightAverage

_AVERAGES = options(
  Option("none"),
  Option(
    "exponential",
    "recent weights count most",
    ("average_decay", "average_from_epoch"),
  ),
  Option(
    "stochastic",
    "the mean of the weights at the end of each epoch",
    ("average_from_epoch",),
  ),
)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """The network that is trained."""

  ROOM = "models"

  model: str = text(
    "small_cnn",
    f"Network: {', '.join(OWN_NAMES)}, a network of tf.keras.applications by its name, "
    "or your own as package.module:function.",
  )
  weight_average: str = choice(
    "none",
    _AVERAGES,
    "Average of the weights over training, which is what is evaluated and exported.",
  )
  average_decay: float = number(
    0.995, "Factor of the exponential average in each step.", above=0, below=1
  )
  average_from_epoch: float = number(
    0, "Epochs that go before the first whose weights are averaged."
  )


def make_average(
  settings: Settings, classifier: keras.Model, steps_per_epoch: int
) -> Optional[WeightAverage]:
  """The average of the weights, made in the strategy's scope; None keeps none."""
  from dat_tf.models.averaging import WeightAverage

  if settings.weight_average == "exponential":
    start = round(settings.average_from_epoch * steps_per_epoch)
    return WeightAverage(classifier, settings.average_decay, start)
  if settings.weight_average == "stochastic":
    # The first epoch that lies behind the start as a whole.
    first = math.ceil(settings.average_from_epoch) + 1
    return WeightAverage(classifier, 1.0, first * steps_per_epoch - 1, steps_per_epoch)
  return None


def contradictions(settings: Settings) -> Refusals:
  """What does not go together, see `refusals`."""
  last = settings.epochs - (1 if settings.weight_average == "stochastic" else 0)
  too_late = (
    settings.average_from_epoch > last
    if settings.weight_average == "stochastic"
    else settings.average_from_epoch >= last
  )
  yield (
    settings.weight_average != "none" and too_late,
    f"--average_from_epoch={settings.average_from_epoch:g} leaves nothing of the "
    f"{settings.epochs} epochs to average over: choose a smaller one.",
  )
