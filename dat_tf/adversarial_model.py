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
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, Union

import numpy as np
import tensorflow as tf

from dat_tf import compat, examples, hashing
from dat_tf.agreement import Agreement, AverageStatistics
from dat_tf.attacks.interleaved import Interleaved, Pass
from dat_tf.communication import AllReduce, MeanAllReduce
from dat_tf.compat import keras
from dat_tf.errors import UserError
from dat_tf.models import batch_norm
from dat_tf.models.averaging import WeightAverage
from dat_tf.objectives import (
  AdversarialTraining,
  Batch,
  Evaluated,
  Objective,
  cross_entropy,
  hits,
)

Attack = Callable[..., tf.Tensor]

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
  `dat_tf.optimizers`. `compile` takes no loss and no metrics: `fit` and `evaluate`
  report `loss`, `accuracy` (clean) and `robust_accuracy` (under attack), both on
  labelled examples, and, in training,
  `gradient_norm` and what the all-reduce tells of itself, in evaluation, the
  `examples` counted and, after certified training, `certified_accuracy`. Every
  worker sees the same numbers, but for the all-reduce's.

  Callbacks of `fit` may stop the run or change the learning rate, on any worker: the
  workers agree at the end of the epoch. A stop that is asked for during an epoch takes
  effect at its end; the chief's learning rate is everyone's.
  """

  def __init__(
    self,
    classifier: keras.Model,
    attack: Union[Attack, Interleaved, None],
    objective: Optional[Objective] = None,
    all_reduce: Optional[AllReduce] = None,
    evaluation_attack: Optional[Attack] = None,
    attack_in_training_mode: bool = False,
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
      attack: makes the adversarial images of training (`dat_tf.attacks`); None trains
        on the images as they are. If it has a method `for_batch`, what that makes of
        the batch is called instead; an `Interleaved` one also does the training pass.
      objective: what is minimised (`dat_tf.objectives`); clean plus adversarial
        cross-entropy unless given.
      all_reduce: averages gradients (`dat_tf.communication`); float32 unless given.
      evaluation_attack: the attack of `evaluate`; as in training unless given.
      attack_in_training_mode: attack with batch-norm in training mode, which also
        updates its statistics. The default attacks the network as it will be used.
      seed: of all random starts.
      prepare: changes each batch of training first (`dat_tf.objectives.mixing`).
      accumulation: number of equal parts of a replica's batch that go through attack
        and network one after another, for batches beyond memory.
      clip_norm: greatest length of a replica's gradient of the mean loss, of all
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
    if isinstance(attack, Interleaved):
      name = type(attack).__name__
      if evaluation_attack is None:
        raise UserError(f"{name} only trains: give an evaluation_attack, such as PGD.")
      if accumulation > 1:
        raise UserError(f"{name} cannot be done in parts: use PGD, or accumulation=1.")
    else:
      evaluation_attack = evaluation_attack or attack
    self.classifier = classifier
    self.attack = attack
    self.objective = objective or AdversarialTraining()
    self.all_reduce = all_reduce or MeanAllReduce()
    self.evaluation_attack = evaluation_attack
    self._attack_mode = attack_in_training_mode
    self._seed = seed
    self._prepare, self._accumulation = prepare, accumulation
    self._clip_norm, self.average = clip_norm, average
    self._uses_xla = jit_compile  # Keras has a `_jit_compile` of its own
    compat.report_first_replica(self)
    self._totals = tf.Variable(
      tf.zeros(6),
      trainable=False,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
      name="totals",
    )

  def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
    """Logits [B, classes] of images [B, H, W, C] in [0, 1]."""
    return self.classifier(images, training=training)

  def train_step(self, data: Any) -> dict[str, tf.Tensor]:
    """One step on this replica's data; returns the means over the epoch so far."""
    step = self.optimizer.iterations
    batch = self._unpack(data, step)
    if self._prepare:
      batch = self._prepare(batch)
    with batch_norm.warmed_up_momentum(self.classifier, step):
      loss, evaluated, gradients = self._loss_and_gradients(batch)
    variables = self.classifier.trainable_variables
    size = batch.size
    if self._clip_norm is not None:
      longest = self._clip_norm * tf.reduce_sum(batch.weights) / size
      # A batch of nothing but padding has a gradient of 0, and would divide 0 by 0.
      longest = tf.maximum(longest, np.finfo(np.float32).tiny)
      gradients, _ = tf.clip_by_global_norm(gradients, longest)
    figures = _figures(batch, loss, *evaluated[1:])
    # The figures travel with the gradients.
    names = [variable.name for variable in variables]
    (*gradients, figures), sending = self.all_reduce(
      [*gradients, figures], [*names, "figures"], step
    )
    gradients = [gradient * (size / figures[0]) for gradient in gradients]
    gradients, gradient_norm = _checked_finite(gradients, figures[1], step)
    self.optimizer.apply_gradients(
      zip(gradients, variables), experimental_aggregate_gradients=False
    )
    if self.average:
      self.average.update(self.optimizer.iterations)
    logs = self._add(figures, self.attack)
    return {**logs, "gradient_norm": gradient_norm, **sending}

  def _loss_and_gradients(
    self, batch: Batch
  ) -> tuple[tf.Tensor, Evaluated, list[tf.Tensor]]:
    """The loss, summed over the batch, what it came from, and its gradients / B."""
    attack_and_differentiate = self._attack_and_differentiate
    if self._uses_xla:
      attack_and_differentiate = tf.function(attack_and_differentiate, jit_compile=True)
    if self._accumulation == 1:
      return attack_and_differentiate(batch)[:3]
    losses: list[tf.Tensor] = []
    evaluated: list[Evaluated] = []
    gradients: list[tf.Tensor] = []
    parts = batch.parts(self._accumulation)
    for part in parts:
      # A part waits for the one before: otherwise all would be in memory together.
      with tf.control_dependencies(gradients):
        part = part._replace(images=tf.identity(part.images))
        done = attack_and_differentiate(part)
      losses.append(done.loss)
      evaluated.append(done.evaluated)
      gradients = (
        [total + term for total, term in zip(gradients, done.gradients)]
        if gradients
        else done.gradients
      )
    share = parts[0].size / batch.size
    return (
      tf.add_n(losses),
      Evaluated(*(tf.concat(tensors, axis=0) for tensors in zip(*evaluated))),
      [share * gradient for gradient in gradients],
    )

  def _attack_and_differentiate(self, batch: Batch) -> Pass:
    if isinstance(self.attack, Interleaved):
      return self.attack.train(self._differentiate, batch)
    if not self.attack:
      return self._differentiate(batch, batch.images)
    attack = self.attack
    if hasattr(attack, "for_batch"):
      attack = attack.for_batch(batch)
    classifier = lambda x: self.classifier(x, training=self._attack_mode)  # noqa: E731
    adversarial = attack(
      classifier,
      batch.images,
      self.objective.attack_targets(classifier, batch),
      batch.keys,
      self.objective.attack_loss,
    )
    return self._differentiate(batch, tf.stop_gradient(adversarial))

  def _differentiate(
    self,
    batch: Batch,
    adversarial: tf.Tensor,
    classifier: Optional[Callable[..., tf.Tensor]] = None,
    slope_by: Optional[Callable[[], tf.Tensor]] = None,
  ) -> Pass:
    """One pass forward and backward; see `Interleaved` for the last two arguments."""
    sources = list(self.classifier.trainable_variables)
    with tf.GradientTape() as tape:
      if slope_by:
        tape.watch(adversarial)
      evaluated = self.objective(classifier or self.classifier, batch, adversarial)
      loss = tf.reduce_sum(batch.weights * evaluated.losses)
      if self.classifier.losses:  # the layers' own regularisers
        loss += tf.reduce_sum(batch.weights) * tf.add_n(self.classifier.losses)
    if slope_by:
      sources.append(slope_by())
    # Per image of a full batch: sums over large ones would overflow in 16 bits.
    gradients = tape.gradient(
      loss, sources, tf.constant(1.0 / batch.size), unconnected_gradients="zero"
    )
    slope = gradients.pop() if slope_by else None
    # TensorFlow leaves them open for dense layers on the tokens of an image.
    shapes = [variable.shape for variable in self.classifier.trainable_variables]
    gradients = [tf.ensure_shape(*each) for each in zip(gradients, shapes)]
    return Pass(loss, evaluated, gradients, slope)

  def test_step(self, data: Any) -> dict[str, tf.Tensor]:
    """Clean and attacked accuracy; returns the means over all replicas so far."""
    batch = self._unpack(data, step=0)
    classifier = lambda x: self.classifier(x, training=False)  # noqa: E731
    adversarial = batch.images
    if self.evaluation_attack:
      adversarial = self.evaluation_attack(
        classifier, batch.images, batch.labels, batch.keys
      )
    clean_logits, adversarial_logits = classifier(batch.images), classifier(adversarial)
    losses = cross_entropy(adversarial_logits, batch.labels)
    loss = tf.reduce_sum(batch.weights * losses)
    certified = self.objective.certified(self.classifier, batch)
    figures = tf.distribute.get_replica_context().all_reduce(
      tf.distribute.ReduceOp.SUM,
      _figures(batch, loss, clean_logits, adversarial_logits, certified),
    )
    logs = {**self._add(figures, self.evaluation_attack), "examples": self._totals[0]}
    if certified is not None:
      logs["certified_accuracy"] = tf.math.divide_no_nan(
        self._totals[5], self._totals[2]
      )
    return logs

  def fit(
    self, *args: Any, callbacks: Sequence[Any] = (), **kwargs: Any
  ) -> keras.callbacks.History:
    """As `tf.keras.Model.fit`; callbacks of all workers agree at each epoch's end."""
    callbacks = [AverageStatistics(), *callbacks, Agreement()]
    return super().fit(*args, callbacks=callbacks, **kwargs)

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
    self._totals.assign(tf.zeros(6))

  def _add(self, figures: tf.Tensor, attack: object) -> dict[str, tf.Tensor]:
    """Adds a batch's `_figures` to the epoch's; returns the epoch's means."""
    totals = self._totals.assign_add(figures)
    weight, loss, labeled, *hits = tf.unstack(totals[:5])
    accuracy, robust_accuracy = (tf.math.divide_no_nan(x, labeled) for x in hits)
    logs = {"loss": tf.math.divide_no_nan(loss, weight), "accuracy": accuracy}
    return {**logs, "robust_accuracy": robust_accuracy} if attack else logs

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


def _figures(
  batch: Batch,
  loss: tf.Tensor,
  clean_logits: tf.Tensor,
  adversarial_logits: tf.Tensor,
  certified: Optional[tf.Tensor] = None,
) -> tf.Tensor:
  """[6]: sums over a batch of weight, loss, labelled weight, and of what is right.

  The last three are clean, robust and certified examples.
  """
  clean_logits = examples.checked_logits(clean_logits)
  labeled = batch.weights * batch.is_labeled
  is_certified = 0.0 if certified is None else tf.cast(certified, tf.float32)
  return tf.stack(
    [
      tf.reduce_sum(batch.weights),
      loss,
      tf.reduce_sum(labeled),
      tf.reduce_sum(labeled * hits(clean_logits, batch.labels)),
      tf.reduce_sum(labeled * hits(adversarial_logits, batch.labels)),
      tf.reduce_sum(labeled * is_certified),
    ]
  )


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
