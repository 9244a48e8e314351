"""Layer-wise adaptive learning rates: LAMB, LARS and, for contrast, momentum SGD.

In a large batch one learning rate for all layers either diverges in the layers
whose update is large beside their weights or stalls in the others. A layer-wise
adaptive learning rate (LALR) gives every layer l a step in proportion to the norm
of its own weights θ_l, whatever the norm of its update u_l:

    θ_l <- θ_l - γ · r_l · u_l        r_l = τ(‖θ_l‖₂) / ‖u_l‖₂
    τ(z) = min(max(z, c_l), c_u)

γ is the learning rate, r_l the trust ratio, and [c_l, c_u] keeps a layer with very
small weights moving and one with very large weights in check. The optimizers differ
in u_l: `LAMB` adapts Adam's step, `LARS` the gradient. `SGD` has r_l = 1.

A "layer" is one tensor. Tensors of rank 0 and 1 (biases, batch-norm scales and
offsets) are neither decayed nor adapted, in all three optimizers and whatever their
names. Decay would pull a batch-norm scale to 0, not regularise it; and a bias that
starts at 0 would take steps in proportion to its own tiny norm and hardly leave 0.
(TensorFlow Addons leaves both to name patterns, and drops the adaptation silently
wherever the decay is excluded.)

    optimizer = LAMB(learning_rate=0.01, weight_decay=1e-4)
    optimizer.apply_gradients(zip(gradients, variables))
    optimizer.trust_ratios()          # {"conv2d/kernel": <tf.Variable ...>, ...}

All are legacy Keras optimizers (OptimizerV2), take dense gradients, and keep their
state in slot variables: they work under `tf.distribute` strategies and in
checkpoints.

Sources: Zhang et al. 2022, "Distributed Adversarial Training to Robustify Deep
Neural Networks at Scale" (LALR in adversarial training); You et al. 2020, "Large
Batch Optimization for Deep Learning: Training BERT in 76 minutes" (LAMB); You et
al. 2017, "Large Batch Training of Convolutional Networks" (LARS).
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NoReturn, Union

import tensorflow as tf

from dat_tf import compat
from dat_tf.base.errors import UserError
from dat_tf.compat import keras

try:
  with warnings.catch_warnings():
    # Known and decided: it is the last release.
    warnings.filterwarnings(
      "ignore", r"\s*TensorFlow Addons \(TFA\) has ended development", UserWarning
    )
    from tensorflow_addons.optimizers import LAMB as _Engine
except ImportError:  # beside TensorFlow 2.16 and later
  from dat_tf.optimizers.adam import DecayedAdam as _Engine

LearningRate = Union[float, keras.optimizers.schedules.LearningRateSchedule]


def trust_ratio(
  weights: tf.Tensor,
  update: tf.Tensor,
  *,
  norm_bounds: tuple[float, float] = (0.0, 10.0),
  trust_coefficient: float = 1.0,
) -> tf.Tensor:
  """The factor on one layer's step: η · τ(‖weights‖₂) / ‖update‖₂.

  It is 1 where either norm is 0: such a layer takes the plain step. The weights'
  norm is tested before it is clamped, so that holds for c_l > 0 too.

  Args:
    weights: the layer's weights, floating point of any shape.
    update: the layer's update before scaling, of the same shape and dtype.
    norm_bounds: (c_l, c_u), 0 <= c_l <= c_u: τ clamps the weights' norm to them.
      (0, inf) leaves it as it is.
    trust_coefficient: η > 0.

  Returns:
    A scalar of the weights' dtype.
  """
  weights_norm, update_norm = tf.norm(weights), tf.norm(update)
  clamped_norm = tf.clip_by_value(weights_norm, *norm_bounds)
  return tf.where(
    (weights_norm > 0) & (update_norm > 0),
    tf.math.divide_no_nan(trust_coefficient * clamped_norm, update_norm),
    tf.ones_like(weights_norm),
  )


def _is_kernel(variable: tf.Variable) -> bool:
  """Whether weight decay and layer adaptation apply to the variable."""
  return variable.shape.rank > 1


def _add_decay(
  update: tf.Tensor, variable: tf.Variable, weight_decay: float | tf.Tensor
) -> tf.Tensor:
  return update + weight_decay * variable if _is_kernel(variable) else update


class _LayerRates(keras.optimizers.legacy.Optimizer):
  """Mixin: a learning rate of its own for each layer.

  Attributes:
    rate_factors: by name of a variable, such as "conv2d/kernel:0", the factor on its
      learning rate; 1 for all others.
  """

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self.rate_factors: dict[str, float] = {}

  def _rated(self, update: tf.Tensor, var: tf.Variable) -> tf.Tensor:
    return self.rate_factors.get(compat.name_of_all_copies(var), 1.0) * update


def _refuse_sparse(
  self: keras.optimizers.legacy.Optimizer, *args: Any, **kwargs: Any
) -> NoReturn:
  # The parents' sparse updates know neither the clamp nor the rank rule.
  raise NotImplementedError(
    f"{type(self).__name__} needs dense gradients; convert tf.IndexedSlices with "
    "tf.convert_to_tensor first."
  )


class _LayerAdaptation(_LayerRates):
  """Mixin: scales the updates of kernels and keeps their trust ratios in slots."""

  _resource_apply_sparse_duplicate_indices = _refuse_sparse

  def __init__(
    self,
    *args: Any,
    norm_bounds: tuple[float, float],
    trust_coefficient: float = 1.0,
    **kwargs: Any,
  ):
    lower, upper = norm_bounds
    if not 0 <= lower <= upper:
      raise UserError(f"norm_bounds must be 0 <= c_l <= c_u, not ({lower}, {upper}).")
    super().__init__(*args, **kwargs)
    self.norm_bounds = (lower, upper)
    self.trust_coefficient = trust_coefficient
    self._trust_ratios: dict[str, tf.Variable] = {}

  def _create_slots(self, var_list: list[tf.Variable]) -> None:
    super()._create_slots(var_list)
    for var in filter(_is_kernel, var_list):
      slot = self.add_slot(var, "trust_ratio", initializer="ones", shape=[])
      self._trust_ratios[var.name.split(":")[0]] = slot

  def trust_ratios(self) -> dict[str, tf.Variable]:
    """The latest step's trust ratio of each adapted layer, for monitoring.

    They are the slots that `get_slot(variable, "trust_ratio")` returns.

    Returns:
      Scalar variables by the name of their layer's variable, such as
      "conv2d/kernel"; empty before the first step.
    """
    return dict(self._trust_ratios)

  def _adapt(self, update: tf.Tensor, var: tf.Variable) -> tf.Tensor:
    if not _is_kernel(var):
      return self._rated(update, var)
    ratio = trust_ratio(
      var,
      update,
      norm_bounds=self.norm_bounds,
      trust_coefficient=self.trust_coefficient,
    )
    self.get_slot(var, "trust_ratio").assign(ratio)
    return self._rated(ratio * update, var)

  def get_config(self) -> dict[str, Any]:
    return {**super().get_config(), "norm_bounds": self.norm_bounds}


@keras.utils.register_keras_serializable("dat_tf")
class LAMB(_LayerAdaptation, _Engine):
  """LAMB (You et al. 2020, algorithm 2) with clamped layer norms.

  With gradient g at step t = 1, 2, ...:

      m <- β₁ m + (1 - β₁) g              m̂ = m / (1 - β₁ᵗ)
      v <- β₂ v + (1 - β₂) g²             v̂ = v / (1 - β₂ᵗ)
      u  = m̂ / (√v̂ + ϵ) + λ θ
      θ <- θ - γ · τ(‖θ‖) / ‖u‖ · u

  The weight decay λ is decoupled: it does not pass through m and v. For tensors of
  rank 0 and 1, λ = 0 and the ratio is 1. With norm_bounds=(0, inf) kernels move
  exactly as under `tfa.optimizers.LAMB`, from which hyper-parameters and slots come
  where TensorFlow Addons imports; elsewhere they come from `DecayedAdam`.

  Args:
    learning_rate: γ, a number or a schedule of the step.
    beta_1: β₁ in [0, 1), decay of the mean of gradients.
    beta_2: β₂ in [0, 1), decay of the mean of squared gradients.
    epsilon: ϵ > 0, added to the root of the squared gradients' mean.
    weight_decay: λ >= 0.
    norm_bounds: (c_l, c_u), the range τ clamps a layer's norm to.
    name: prefix of the optimizer's variables.
    **kwargs: Keras' `clipnorm`, `clipvalue`, `global_clipnorm`.

  Raises:
    UserError: norm_bounds is not 0 <= c_l <= c_u.
  """

  def __init__(
    self,
    learning_rate: LearningRate = 0.001,
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    norm_bounds: tuple[float, float] = (0.0, 10.0),
    name: str = "LAMB",
    **kwargs: Any,
  ):
    super().__init__(
      learning_rate,
      beta_1=beta_1,
      beta_2=beta_2,
      epsilon=epsilon,
      weight_decay=weight_decay,
      norm_bounds=norm_bounds,
      name=name,
      **kwargs,
    )

  def _resource_apply_dense(
    self, grad: tf.Tensor, var: tf.Variable, apply_state: dict | None = None
  ) -> tf.Operation:
    coefficients = compat.coefficients(self, var, apply_state)
    beta_1, beta_2 = coefficients["beta_1_t"], coefficients["beta_2_t"]
    m, v = self.get_slot(var, "m"), self.get_slot(var, "v")
    m_t = m.assign(beta_1 * m + (1 - beta_1) * grad)
    v_t = v.assign(beta_2 * v + (1 - beta_2) * tf.square(grad))
    m_hat = m_t / (1 - coefficients["beta_1_power"])
    v_hat = v_t / (1 - coefficients["beta_2_power"])
    adam_step = m_hat / (tf.sqrt(v_hat) + coefficients["epsilon"])
    update = _add_decay(adam_step, var, coefficients["weight_decay"])
    return var.assign_sub(coefficients["lr_t"] * self._adapt(update, var))

  def get_config(self) -> dict[str, Any]:
    config = super().get_config().items()
    return {name: value for name, value in config if not name.startswith("exclude_")}


@keras.utils.register_keras_serializable("dat_tf")
class SGD(_LayerRates, keras.optimizers.legacy.SGD):
  """Momentum SGD with L2 weight decay of kernels.

      u  = g + λ θ        (λ = 0 for tensors of rank 0 and 1)
      v <- μ v - γ u
      θ <- θ + v

  The decay is coupled: it passes through the momentum, as if λ/2 ‖θ‖² were added to
  the loss. The learning rate stands inside the momentum: when it changes, past
  gradients keep the rate they came with.

  Args:
    learning_rate: γ, a number or a schedule of the step.
    momentum: μ in [0, 1].
    weight_decay: λ >= 0.
    name: prefix of the optimizer's variables.
    **kwargs: Keras' `nesterov`, `clipnorm`, `clipvalue`, `global_clipnorm`.
  """

  _resource_apply_sparse_duplicate_indices = _refuse_sparse

  def __init__(
    self,
    learning_rate: LearningRate = 0.01,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    name: str = "SGD",
    **kwargs: Any,
  ):
    super().__init__(learning_rate, momentum, name=name, **kwargs)
    self.weight_decay = weight_decay

  def _resource_apply_dense(
    self, grad: tf.Tensor, var: tf.Variable, apply_state: dict | None = None
  ) -> tf.Operation:
    update = self._rated(_add_decay(grad, var, self.weight_decay), var)
    return super()._resource_apply_dense(update, var, apply_state)

  def get_config(self) -> dict[str, Any]:
    return {**super().get_config(), "weight_decay": self.weight_decay}


@keras.utils.register_keras_serializable("dat_tf")
class LARS(_LayerAdaptation, keras.optimizers.legacy.SGD):
  """LARS (You et al. 2017, algorithm 1) with clamped layer norms.

      u  = g + λ θ
      v <- μ v - γ · r · u        r = η τ(‖θ‖) / ‖u‖
      θ <- θ + v

  As in the paper, the learning rate and the ratio stand inside the momentum: when
  they change, past gradients keep the ones they came with. (In the other variant
  both multiply the momentum average.) The paper divides by ‖g‖ + λ‖θ‖, an upper
  bound of the ‖u‖ used here, and has no clamp: norm_bounds=(0, inf).

  For tensors of rank 0 and 1, λ = 0 and r = 1. Beware that r holds the coefficient
  η: those tensors, and layers where either norm is 0, take the whole rate γ.

  Args:
    learning_rate: γ, a number or a schedule of the step.
    momentum: μ in [0, 1].
    weight_decay: λ >= 0.
    trust_coefficient: η > 0.
    norm_bounds: (c_l, c_u), the range τ clamps a layer's norm to.
    name: prefix of the optimizer's variables.
    **kwargs: Keras' `nesterov`, `clipnorm`, `clipvalue`, `global_clipnorm`.

  Raises:
    UserError: norm_bounds is not 0 <= c_l <= c_u.
  """

  def __init__(
    self,
    learning_rate: LearningRate = 1.0,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    norm_bounds: tuple[float, float] = (0.0, 10.0),
    name: str = "LARS",
    **kwargs: Any,
  ):
    super().__init__(
      learning_rate,
      momentum,
      norm_bounds=norm_bounds,
      trust_coefficient=trust_coefficient,
      name=name,
      **kwargs,
    )
    self.weight_decay = weight_decay

  def _resource_apply_dense(
    self, grad: tf.Tensor, var: tf.Variable, apply_state: dict | None = None
  ) -> tf.Operation:
    update = self._adapt(_add_decay(grad, var, self.weight_decay), var)
    return super()._resource_apply_dense(update, var, apply_state)

  def get_config(self) -> dict[str, Any]:
    return {
      **super().get_config(),
      "weight_decay": self.weight_decay,
      "trust_coefficient": self.trust_coefficient,
    }


def make_optimizer(
  name: Literal["lamb", "lars", "sgd"],
  learning_rate: LearningRate,
  *,
  weight_decay: float = 0.0,
  momentum: float = 0.9,
  beta_1: float = 0.9,
  beta_2: float = 0.999,
  trust_coefficient: float = 0.001,
  norm_bounds: tuple[float, float] = (0.0, 10.0),
) -> keras.optimizers.legacy.Optimizer:
  """The optimizer of that name, with those of the settings that it has.

  Raises:
    UserError: the name is none of the three, or norm_bounds is not 0 <= c_l <= c_u.
  """
  if name == "lamb":
    return LAMB(
      learning_rate,
      beta_1=beta_1,
      beta_2=beta_2,
      weight_decay=weight_decay,
      norm_bounds=norm_bounds,
    )
  if name == "lars":
    return LARS(
      learning_rate,
      momentum=momentum,
      weight_decay=weight_decay,
      trust_coefficient=trust_coefficient,
      norm_bounds=norm_bounds,
    )
  if name == "sgd":
    return SGD(learning_rate, momentum=momentum, weight_decay=weight_decay)
  raise UserError(f"optimizer is {name!r}; choose 'lamb', 'lars' or 'sgd'.")
