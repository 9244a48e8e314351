"""The learning rate of each step, and how it grows with the global batch.

peak = scaled_learning_rate(0.1, reference_batch_size=256, global_batch_size=4096)
rate = WarmupDecay(peak, warmup_steps=500, decay="cosine", total_steps=10_000)
optimizer = SGD(learning_rate=rate)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.compat import keras


def scaled_learning_rate(
  learning_rate: float,
  *,
  reference_batch_size: int,
  global_batch_size: int,
  rule: Literal["none", "linear", "sqrt"] = "linear",
) -> float:
  """The learning rate for a batch of another size than the one it was tuned at.

  With k = global_batch_size / reference_batch_size the rate grows by k under
  "linear" (Goyal et al. 2017, "Accurate, Large Minibatch SGD"), by √k under "sqrt"
  (You et al. 2020, with LAMB), and stays under "none".

  Args:
    learning_rate: the rate at the reference batch.
    reference_batch_size: images of all workers in one step, > 0.
    global_batch_size: the same, of the run at hand.
    rule: "none", "linear" or "sqrt".

  Raises:
    UserError: the rule is none of the three.
  """
  exponents = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}
  if rule not in exponents:
    raise UserError(
      f"learning rate scaling is {rule!r}; choose one of {', '.join(exponents)}."
    )
  return learning_rate * (global_batch_size / reference_batch_size) ** exponents[rule]


@keras.utils.register_keras_serializable("dat_tf")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
  """Linear warm-up (Goyal et al. 2017), then a decay.

  At step t = 0, 1, ... the rate is peak · warmup(t) · decay(t), with

      warmup(t) = min(1, (t + 1) / warmup_steps)
      decay(t)  = 1                            "constant"
                = 0.1^(boundaries b <= t)      "step"
                = (1 + cos(π p)) / 2           "cosine"

  where p rises linearly from 0 at the end of the warm-up to 1 at total_steps and
  stays there. So the first step of the warm-up takes peak / warmup_steps and its
  last one peak.

  Args:
    peak_learning_rate: the rate at the end of the warm-up.
    warmup_steps: >= 0; 0 starts at the peak.
    decay: "constant", "step" or "cosine".
    total_steps: the step at which the cosine reaches 0; unused by the others.
    boundaries: the steps from which the rate is 10 times lower, each once; used by
      "step" only.

  Raises:
    UserError: the decay is none of the three, or "cosine" has no total_steps.
  """

  def __init__(
    self,
    peak_learning_rate: float,
    warmup_steps: int = 0,
    *,
    decay: Literal["constant", "step", "cosine"] = "constant",
    total_steps: int = 0,
    boundaries: Sequence[int] = (),
  ):
    if decay not in ("constant", "step", "cosine"):
      raise UserError(
        f"learning rate decay is {decay!r}; choose 'constant', 'step' or 'cosine'."
      )
    if decay == "cosine" and total_steps < 1:
      raise UserError("cosine learning rate decay needs total_steps of 1 or more.")
    self.peak_learning_rate = peak_learning_rate
    self.warmup_steps = warmup_steps
    self.decay = decay
    self.total_steps = total_steps
    self.boundaries = tuple(boundaries)

  def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
    """The learning rate of step `step`, any real scalar; returns a float32 scalar."""
    step = tf.cast(step, tf.float32)
    warmup = tf.minimum(1.0, (step + 1) / max(1, self.warmup_steps))
    return self.peak_learning_rate * warmup * self._decay_factor(step)

  def _decay_factor(self, step: tf.Tensor) -> float | tf.Tensor:
    if self.decay == "step":
      passed = tf.constant(self.boundaries, tf.float32) <= step
      return 0.1 ** tf.reduce_sum(tf.cast(passed, tf.float32))
    if self.decay == "cosine":
      decay_steps = max(1, self.total_steps - self.warmup_steps)
      progress = tf.clip_by_value((step - self.warmup_steps) / decay_steps, 0.0, 1.0)
      return (1 + tf.cos(math.pi * progress)) / 2
    return 1.0

  def get_config(self) -> dict[str, Any]:
    return {
      "peak_learning_rate": self.peak_learning_rate,
      "warmup_steps": self.warmup_steps,
      "decay": self.decay,
      "total_steps": self.total_steps,
      "boundaries": self.boundaries,
    }
