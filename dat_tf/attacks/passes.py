"""A training pass: adversarial images of a batch, and the gradient that trains there.

Most attacks make their images first, and one pass forward and backward follows. Others,
such as `Free` and `YOPO`, share that pass with the training of the weights. To the
training step they are all alike:

    done = training_pass(batch, min_max)          # done.loss, done.gradients, ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional, Protocol, Union

import tensorflow as tf

from dat_tf.attacks.attack import Attack, Scheduled
from dat_tf.base.errors import UserError
from dat_tf.objectives.objective import Batch, Classifier, Evaluated, Objective


class Pass(NamedTuple):
  """What a pass through the network gave, forward and backward.

  Attributes:
    loss: scalar, sum over the batch.
    evaluated: what the objective made of the batch.
    gradients: of `loss` with respect to the trainable variables, divided by B.
    input_gradient: of `loss` with respect to what was asked for, divided by B; None if
      nothing was.
  """

  loss: tf.Tensor
  evaluated: Evaluated
  gradients: list[tf.Tensor]
  input_gradient: tf.Tensor = None


class Differentiate(Protocol):
  """One pass forward and backward."""

  def __call__(
    self,
    batch: Batch,
    adversarial: tf.Tensor,
    classifier: Optional[Classifier] = None,
    with_respect_to: Optional[Callable[[], tf.Tensor]] = None,
  ) -> Pass:
    """The objective's loss and its gradients.

    Args:
      batch: the images as they are.
      adversarial: the adversarial images.
      classifier: what is run instead of the network that is trained; it has the same
        variables.
      with_respect_to: tells, once the objective has run the classifier, of which tensor
        `input_gradient` is: the adversarial images, or what became of them on the way.
    """


@dataclasses.dataclass(frozen=True)
class MinMax:
  """The min-max problem, as a replica meets it in a step.

  Attributes:
    objective: what the attacker raises and the weights lower.
    attacked: images -> logits, in the mode in which the network is attacked.
    differentiate: the pass that trains.
  """

  objective: Objective
  attacked: Classifier
  differentiate: Differentiate


class TrainingPass:
  """Finds adversarial images, and takes the pass that trains at them.

  Attributes:
    state: variables that each replica keeps for itself between two steps.
  """

  state: Sequence[tf.Variable] = ()

  def __call__(self, batch: Batch, min_max: MinMax) -> Pass:
    """The loss and the gradients of this batch's step."""
    raise NotImplementedError

  def of(self, min_max: MinMax) -> Callable[[Batch], Pass]:
    """The pass on batches of one problem, to be called several times in one step."""
    return lambda batch: self(batch, min_max)


@dataclasses.dataclass(frozen=True)
class Clean(TrainingPass):
  """Trains at the images as they are."""

  def __call__(self, batch: Batch, min_max: MinMax) -> Pass:
    return min_max.differentiate(batch, batch.images)


@dataclasses.dataclass(frozen=True)
class AtAdversarial(TrainingPass):
  """Attacks the images, then trains at what the attack made of them.

  Attributes:
    attack: the inner maximisation.
  """

  attack: Attack

  def __call__(self, batch: Batch, min_max: MinMax) -> Pass:
    adversarial = self.attack(
      min_max.attacked,
      batch.images,
      min_max.objective.attack_targets(min_max.attacked, batch),
      batch.keys,
      min_max.objective.attack_loss,
    )
    return min_max.differentiate(batch, tf.stop_gradient(adversarial))


@dataclasses.dataclass(frozen=True)
class AtScheduled(TrainingPass):
  """As `AtAdversarial`, with the attack of this step of training."""

  attack: Scheduled

  def __call__(self, batch: Batch, min_max: MinMax) -> Pass:
    return AtAdversarial(self.attack.for_batch(batch))(batch, min_max)


@dataclasses.dataclass(frozen=True)
class InParts(TrainingPass):
  """Takes equal parts of the batch one after the other, for batches beyond memory.

  Attributes:
    training_pass: what is done with each part.
    number: of parts, at least 1; it divides the replica's batch.
  """

  training_pass: TrainingPass
  number: int

  def __call__(self, batch: Batch, min_max: MinMax) -> Pass:
    done: list[Pass] = []
    gradients: list[tf.Tensor] = []
    parts, take_pass = batch.split(self.number), self.training_pass.of(min_max)
    for part in parts:
      # A part waits for the one before: otherwise all would be in memory together.
      with tf.control_dependencies(gradients):
        part = part._replace(images=tf.identity(part.images))
        done.append(take_pass(part))
      added = done[-1].gradients
      gradients = [x + y for x, y in zip(gradients, added)] if gradients else added
    share = parts[0].size / batch.size
    evaluated = zip(*(each.evaluated for each in done))
    return Pass(
      tf.add_n([each.loss for each in done]),
      Evaluated(*(tf.concat(tensors, axis=0) for tensors in evaluated)),
      [share * gradient for gradient in gradients],
    )


@dataclasses.dataclass(frozen=True)
class Compiled(TrainingPass):
  """Compiles a pass with XLA, without the collectives, which XLA lacks on CPUs."""

  training_pass: TrainingPass

  def __call__(self, batch: Batch, min_max: MinMax) -> Pass:
    return self.of(min_max)(batch)

  def of(self, min_max: MinMax) -> Callable[[Batch], Pass]:
    # Not kept: it is bound to the graph and the replica in which it is made.
    return tf.function(
      lambda batch: self.training_pass(batch, min_max), jit_compile=True
    )


def training_pass_of(
  attack: Union[Attack, Scheduled, TrainingPass, None],
) -> TrainingPass:
  """The pass that trains against an attack; None trains on clean images.

  Raises:
    UserError: the attack has `for_batch` and is no `Scheduled` one.
  """
  if attack is None:
    return Clean()
  if isinstance(attack, TrainingPass):
    return attack
  if isinstance(attack, Scheduled):
    return AtScheduled(attack)
  if hasattr(attack, "for_batch"):
    raise UserError(
      f"{type(attack).__name__} has for_batch: make it a subclass of Scheduled."
    )
  return AtAdversarial(attack)
