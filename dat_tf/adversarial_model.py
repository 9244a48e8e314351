"""The training step of distributed adversarial training, as a Keras model.

with strategy.scope():
  model = AdversarialModel(
      classifier=my_keras_model,                   # images in [0, 1] -> logits
      attack=PGD(LInfinity(8 / 255), step_size=2 / 255, steps=10),
      objective=AdversarialTraining(clean_weight=1.0))
  model.compile(optimizer=LAMB(0.01))
model.fit(dataset, epochs=10)
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Callable, Optional, Union

import numpy as np
import tensorflow as tf

from dat_tf import compat
from dat_tf.attacks.attack import Attack
from dat_tf.attacks.passes import (
  Compiled,
  InParts,
  MinMax,
  Pass,
  TrainingPass,
  training_pass_of,
)
from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.communication import AllReduce, MeanAllReduce
from dat_tf.compat import keras
from dat_tf.data import examples
from dat_tf.models import batch_norm
from dat_tf.models.averaging import WeightAverage
from dat_tf.models.view import attacked_view
from dat_tf.objectives import (
  AdversarialTraining,
  Batch,
  CleanTraining,
  Objective,
  cross_entropy,
)
from dat_tf.objectives.sums import Sums
from dat_tf.workers.agreement import Agreement, AverageStatistics

__all__ = ["AdversarialModel"]

NON_FINITE = "The loss or its gradient is not finite at step"


class AdversarialModel(keras.Model):
  """Trains a classifier on the min-max problem of DAT, on all replicas of a strategy.

  One step, on every replica at once (Zhang et al., UAI 2022): attack the
  replica's images; take the gradient of its objective; average the gradients over all
  replicas; update, with a layer-wise adaptive learning rate if the optimizer has one.

  Data is what `dat_tf.data` yields (dicts with image, label, weight, example_id, epoch
  and, where some have no true label, is_labeled), or the usual `(images, labels)` or
  `(images, labels, weights)`. With example ids the attack's random start depends on
  (seed, epoch, example_id) alone, so it is the same on any number of workers; without,
  on the step and the place in the batch.

  Every example counts the same, on whichever worker it is: sums over examples, not
  means of workers' means, are reduced, and divided by the global sum of the weights.

  The optimizer is a `tf.keras.optimizers.legacy.Optimizer`, such as all those of
  `dat_tf.optimizers`. `fit` and `evaluate` report `loss`, `accuracy` (clean) and
  `robust_accuracy` (under attack), both on labelled examples; in training
  `gradient_norm` and what the all-reduce tells of itself; in evaluation the `examples`
  counted and, after certified training, `certified_accuracy`. Every worker sees the
  same numbers, but for the all-reduce's.

  Callbacks of `fit` may stop the run or change the learning rate, on any worker: the
  workers agree at the end of the epoch. A stop that is asked for during an epoch takes
  effect at its end; the chief's learning rate is everyone's.
  """

  def __init__(
    self,
    classifier: keras.Model,
    attack: Union[Attack, TrainingPass, None],
    objective: Optional[Objective] = None,
    *,
    all_reduce: Optional[AllReduce] = None,
    evaluation_attack: Optional[Attack] = None,
    attack_in_training_mode: bool = False,
    attack_precision: str = "float32",
    seed: int = 0,
    prepare: Optional[Callable[[Batch], Batch]] = None,
    accumulation: int = 1,
    clip_norm: Optional[float] = None,
    average: Optional[WeightAverage] = None,
    jit_compile: bool = False,
  ):
    """Composes the model.

    Args:
      classifier: Keras model from images [B, H, W, C] in [0, 1] to logits.
      attack: makes the adversarial images of training (`dat_tf.attacks`), or is a
        training pass itself, as `Free` and `YOPO` are; None trains on clean images.
      objective: what is minimised (`dat_tf.objectives`). Unless given it is clean plus
        adversarial cross-entropy, and without an attack the clean one alone.
      all_reduce: averages gradients (`dat_tf.communication`); float32 unless given.
      evaluation_attack: the attack of `evaluate`; as in training unless given.
      attack_in_training_mode: attack with batch-norm in training mode, which also
        updates its statistics. The default attacks the network as it will be used.
      attack_precision: `float32`, or `bfloat16`, in which the network is attacked in
        training (`models.view`); all else is done in the network's own precision.
      seed: of all random starts, at least 0.
      prepare: changes each batch of training first (`dat_tf.objectives.mixing`).
      accumulation: number of equal parts of a replica's batch that go through attack
        and network one after another, for batches beyond memory.
      clip_norm: maximum norm of each replica's gradient of the mean loss, of all
        weights together, before it is averaged with the others'; None for no bound.
      average: keeps an average of the classifier's weights (`dat_tf.models.averaging`),
        which is what `evaluate` evaluates.
      jit_compile: compile attack and gradient with XLA. (`compile(jit_compile=True)`
        would compile the collectives too, which XLA has not got on CPUs.)

    Raises:
      UserError: the attack works only in training, and there is no other one to
        evaluate with, or it cannot be done in parts.
    """
    super().__init__()
    if isinstance(attack, TrainingPass):
      name = type(attack).__name__
      if evaluation_attack is None:
        raise UserError(f"{name} only trains: give an evaluation_attack, such as PGD.")
      if accumulation > 1:
        raise UserError(f"{name} cannot be done in parts: use PGD, or accumulation=1.")
    else:
      evaluation_attack = evaluation_attack or attack
    self.classifier = classifier
    self._attack = attack
    self.all_reduce = all_reduce or MeanAllReduce()
    self.evaluation_attack = evaluation_attack
    self.attack_precision = attack_precision
    self.average = average
    self._attack_and_differentiate = training_pass_of(attack)
    if jit_compile:
      self._attack_and_differentiate = Compiled(self._attack_and_differentiate)
    if accumulation > 1:
      self._attack_and_differentiate = InParts(
        self._attack_and_differentiate, accumulation
      )
    self._objective = objective or (
      AdversarialTraining() if attack else CleanTraining()
    )
    self._attacked = attacked_view(
      classifier, attack_precision, training=attack_in_training_mode
    )
    self._prepare = prepare or (lambda batch: batch)
    self._seed, self._clip_norm = seed, clip_norm
    compat.report_first_replica(self)
    # Of the epoch so far, the `Sums` over all replicas.
    self.totals = tf.Variable(
      tf.zeros(len(Sums._fields)),
      trainable=False,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
      name="totals",
    )

  @property
  def attack(self) -> Union[Attack, TrainingPass, None]:
    """That of training."""
    return self._attack

  @property
  def objective(self) -> Objective:
    """What training minimises."""
    return self._objective

  @property
  def replica_state(self) -> dict[str, list[tf.Variable]]:
    """What each replica keeps for itself between two steps, by kind.

    To go on exactly where training was each replica needs its own values again.
    """
    attack = self._attack
    return {
      "totals": [self.totals],
      "statistics": batch_norm.statistics(self.classifier),
      "average": self.average.statistics if self.average else [],
      "residual": getattr(self.all_reduce, "residual", []),
      "attack": list(attack.state) if isinstance(attack, TrainingPass) else [],
    }

  def compile(
    self, optimizer: keras.optimizers.legacy.Optimizer, **kwargs: Any
  ) -> None:
    """As `tf.keras.Model.compile`; loss and metrics are the model's own.

    Raises:
      UserError: the optimizer is of another kind, or a loss or metrics were given.
    """
    if not isinstance(optimizer, keras.optimizers.legacy.Optimizer):
      raise UserError(
        f"The optimizer is {optimizer!r}: give one of tf.keras.optimizers.legacy or "
        "dat_tf.optimizers, such as LAMB(0.01)."
      )
    given = {name for name, value in kwargs.items() if value is not None}
    ignored = sorted({"loss", "metrics", "loss_weights", "weighted_metrics"} & given)
    if ignored:
      raise UserError(
        f"compile takes no {ignored[0]}: the objective is the model's, and fit and "
        "evaluate report loss and accuracies."
      )
    super().compile(optimizer=optimizer, **kwargs)

  def call(
    self,
    images: tf.Tensor,
    training: bool = False,  # noqa: FBT001, FBT002, Keras calls it so
  ) -> tf.Tensor:
    """Logits [B, classes] of images [B, H, W, C] in [0, 1]."""
    return self.classifier(images, training=training)

  def train_step(self, data: Any) -> dict[str, tf.Tensor]:
    """One step on this replica's data; returns the means over the epoch so far."""
    step = self.optimizer.iterations
    batch = self._prepare(self._unpack(data, step))
    min_max = MinMax(self.objective, self._attacked(), self._differentiate)
    with batch_norm.warmed_up_momentum(self.classifier, step):
      # max over the perturbations, then the gradient at the images that it leads to
      done = self._attack_and_differentiate(batch, min_max)
    _, clean_logits, adversarial_logits = done.evaluated
    clean_logits = examples.checked_logits(clean_logits)
    sums = Sums.of(batch, done.loss, clean_logits, adversarial_logits)
    gradients = self._clipped(done.gradients, batch)
    # Quantized or not; the sums travel with the gradients.
    gradients, sums, sending = self._reduced(gradients, sums, batch.size, step)
    gradients, gradient_norm = _checked_finite(gradients, sums.loss, step)
    # min over the weights, at layer-wise rates
    self.optimizer.apply_gradients(
      zip(gradients, self.classifier.trainable_variables),
      experimental_aggregate_gradients=False,
    )
    if self.average:
      self.average.update(self.optimizer.iterations)
    means = self._add(sums).means(attacked=bool(self.attack))
    return {**means, "gradient_norm": gradient_norm, **sending}

  def _differentiate(
    self,
    batch: Batch,
    adversarial: tf.Tensor,
    classifier: Optional[Callable[..., tf.Tensor]] = None,
    with_respect_to: Optional[Callable[[], tf.Tensor]] = None,
  ) -> Pass:
    """One pass forward and backward, as `passes.Differentiate` has it."""
    variables = self.classifier.trainable_variables
    with tf.GradientTape() as tape:
      if with_respect_to:
        tape.watch(adversarial)
      evaluated = self.objective(classifier or self.classifier, batch, adversarial)
      loss = tf.reduce_sum(batch.weights * evaluated.losses)
      if self.classifier.losses:  # the layers' own regularisers
        loss += tf.reduce_sum(batch.weights) * tf.add_n(self.classifier.losses)
    also = [with_respect_to()] if with_respect_to else []
    # Per image of a full batch: sums over large ones would overflow in 16 bits.
    gradients = tape.gradient(
      loss,
      [*variables, *also],
      tf.constant(1.0 / batch.size),
      unconnected_gradients="zero",
    )
    input_gradient = gradients.pop() if also else None
    # TensorFlow leaves them open for dense layers on the tokens of an image.
    gradients = [tf.ensure_shape(g, v.shape) for g, v in zip(gradients, variables)]
    return Pass(loss, evaluated, gradients, input_gradient)

  def _clipped(self, gradients: list[tf.Tensor], batch: Batch) -> list[tf.Tensor]:
    """The gradients of a batch, together no longer than `clip_norm`."""
    if self._clip_norm is None:
      return gradients
    max_norm = self._clip_norm * tf.reduce_sum(batch.weights) / batch.size
    # A batch of nothing but padding has a gradient of 0, and would divide 0 by 0.
    max_norm = tf.maximum(max_norm, np.finfo(np.float32).tiny)
    return tf.clip_by_global_norm(gradients, max_norm)[0]

  def _reduced(
    self, gradients: list[tf.Tensor], sums: Sums, size: float, step: tf.Tensor
  ) -> tuple[list[tf.Tensor], Sums, dict[str, tf.Tensor]]:
    """Averages over all replicas.

    Args:
      gradients: gradients of the batch's summed loss, divided by `size`.
      sums: the batch's sums.
      size: B.
      step: of training.

    Returns:
      The gradients of the mean loss, the mean of the sums, and what the all-reduce
      tells of itself.
    """
    names = [variable.name for variable in self.classifier.trainable_variables]
    (*gradients, stacked), sending = self.all_reduce(
      [*gradients, sums.stacked()], [*names, "sums"], step
    )
    sums = Sums.unstacked(stacked)
    return [gradient * (size / sums.weight) for gradient in gradients], sums, sending

  def test_step(self, data: Any) -> dict[str, tf.Tensor]:
    """Clean and attacked accuracy; returns the means over all replicas so far."""
    batch = self._unpack(data, step=0)
    classifier = lambda x: self.classifier(x, training=False)  # noqa: E731
    adversarial = batch.images
    if self.evaluation_attack:
      adversarial = self.evaluation_attack(
        classifier, batch.images, batch.labels, batch.keys
      )
    clean_logits = examples.checked_logits(classifier(batch.images))
    adversarial_logits = classifier(adversarial)
    losses = cross_entropy(adversarial_logits, batch.labels)
    loss = tf.reduce_sum(batch.weights * losses)
    certified = self.objective.certified(self.classifier, batch)
    sums = Sums.of(batch, loss, clean_logits, adversarial_logits, certified)
    sums = tf.distribute.get_replica_context().all_reduce(
      tf.distribute.ReduceOp.SUM, sums.stacked()
    )
    totals = self._add(Sums.unstacked(sums))
    logs = totals.means(attacked=bool(self.evaluation_attack))
    logs["examples"] = totals.weight
    if certified is not None:
      logs["certified_accuracy"] = totals.certified_accuracy
    return logs

  def fit(
    self, *args: Any, callbacks: Any = None, initial_step: int = 0, **kwargs: Any
  ) -> keras.callbacks.History:
    """As `tf.keras.Model.fit`; callbacks of all workers agree at each epoch's end.

    Args:
      *args: as `tf.keras.Model.fit`.
      callbacks: as `tf.keras.Model.fit`.
      initial_step: number of steps of the first epoch that were done before; the data
        begins behind them, and the figures count what `totals` has of them.
      **kwargs: as `tf.keras.Model.fit`.
    """
    given = tf.nest.flatten(callbacks) if callbacks else []
    fit = functools.partial(super().fit, *args, **kwargs)
    if not initial_step:
      return fit(callbacks=[AverageStatistics(), *given, Agreement()])
    before = tf.identity(self.totals)
    # Keras clears the figures before each epoch.
    keep = keras.callbacks.LambdaCallback(
      on_epoch_begin=lambda epoch, logs: (
        epoch == kwargs.get("initial_epoch", 0) and self.totals.assign(before)
      )
    )
    fit = functools.partial(
      fit, callbacks=[AverageStatistics(), keep, *given, Agreement()]
    )
    return compat.begin_at_step(self, initial_step, fit)

  def evaluate(self, *args: Any, **kwargs: Any) -> Any:
    """As `tf.keras.Model.evaluate`, of `final_weights`."""
    with self.final_weights():
      return super().evaluate(*args, **kwargs)

  @contextlib.contextmanager
  def final_weights(self) -> Iterator[None]:
    """While it lasts, the classifier is what training has made of it so far.

    Its weights are the average, if one is kept; the batch-norm statistics are the same
    on all workers, and can be read without a collective. All workers must call it.
    """
    average = self.average
    with average.applied() if average else contextlib.nullcontext():
      self.average_statistics()
      yield

  def average_statistics(self) -> None:
    """Gives every replica the mean over all replicas of the batch-norm statistics.

    All workers must call it. Until the next training step the statistics can then be
    read without a collective.
    """
    statistics = batch_norm.statistics(self.classifier)
    if statistics and self.distribute_strategy.num_replicas_in_sync > 1:
      self._average(statistics)

  @tf.function
  def _average(self, statistics: list[tf.Variable]) -> None:
    def in_replica() -> None:
      means = tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.MEAN, [tf.identity(s) for s in statistics]
      )
      for variable, mean in zip(statistics, means):
        variable.assign(mean)

    self.distribute_strategy.run(in_replica)

  def reset_metrics(self) -> None:
    """Keras calls this before each epoch and each evaluation."""
    super().reset_metrics()
    self.totals.assign(tf.zeros_like(self.totals))

  def _add(self, sums: Sums) -> Sums:
    """Adds a batch's sums to the epoch's, and returns those."""
    return Sums.unstacked(self.totals.assign_add(sums.stacked()))

  def _unpack(self, data: Any, step: tf.Tensor) -> Batch:
    outputs = self.classifier.outputs  # None of a subclass
    classes = outputs[0].shape[-1] if outputs else None
    if isinstance(data, dict):
      keys = hashing.stream_keys(self._seed, data["epoch"], data["example_id"])
      weights = examples.weights_of(data["weight"], tf.shape(data["image"])[0])
      is_labeled = data.get("is_labeled", tf.ones_like(weights))
      return Batch(
        data["image"],
        examples.class_numbers_or_rows(data["label"], classes),
        weights,
        keys,
        is_labeled,
        step,
        data["example_id"],
      )
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    images = examples.checked_images(images)
    labels = examples.class_numbers_or_rows(labels, classes)
    size = tf.shape(images)[0]
    weights = examples.weights_of(weights, size)
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    keys = hashing.stream_keys(self._seed, step, replica, tf.range(size))
    return Batch(images, labels, weights, keys, tf.ones_like(weights), step)


def _checked_finite(
  gradients: list[tf.Tensor], loss: tf.Tensor, step: tf.Tensor
) -> tuple[list[tf.Tensor], tf.Tensor]:
  """The gradients and their norm, once they are seen to be finite.

  What is checked has been reduced over all workers: they all stop, at the same step,
  before a weight has changed.
  """
  norm = tf.linalg.global_norm(gradients)
  check = tf.debugging.Assert(
    tf.math.is_finite(norm) & tf.math.is_finite(loss), [NON_FINITE, step + 1]
  )
  with tf.control_dependencies([check]):
    return [tf.identity(gradient) for gradient in gradients], norm
