"""The state of LAMB where TensorFlow Addons, which has it elsewhere, is not there."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from dat_tf.compat import keras


class DecayedAdam(keras.optimizers.legacy.Adam):
  """Adam's hyper-parameters and slots, and a decoupled weight decay.

  They have the names and the values of `tfa.optimizers.LAMB`, so that a checkpoint of
  either restores in the other: hyper-parameters learning_rate, beta_1, beta_2, decay
  and weight_decay; slots m and v of each variable. How a step uses them is up to the
  subclass.

  Args:
    learning_rate: a number or a schedule of the step.
    beta_1: in [0, 1), decay of the mean of gradients.
    beta_2: in [0, 1), decay of the mean of squared gradients.
    epsilon: above 0, added to the root of the squared gradients' mean.
    weight_decay: at least 0.
    name: prefix of the optimizer's variables.
    **kwargs: Keras' `clipnorm`, `clipvalue`, `global_clipnorm`.
  """

  def __init__(
    self,
    learning_rate: Any = 0.001,
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    name: str = "LAMB",
    **kwargs: Any,
  ):
    super().__init__(learning_rate, beta_1, beta_2, epsilon, name=name, **kwargs)
    self._set_hyper("weight_decay", weight_decay)

  def _prepare_local(
    self, var_device: str, var_dtype: tf.DType, apply_state: dict[Any, Any]
  ) -> None:
    super()._prepare_local(var_device, var_dtype, apply_state)
    decay = tf.identity(self._get_hyper("weight_decay", var_dtype))
    apply_state[var_device, var_dtype]["weight_decay"] = decay

  def get_config(self) -> dict[str, Any]:
    config = super().get_config()
    del config["amsgrad"]
    return {**config, "weight_decay": self._serialize_hyperparameter("weight_decay")}
