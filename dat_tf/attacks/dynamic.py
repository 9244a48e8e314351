"""PGD that changes with training: a stop by convergence, a curriculum, a warm start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Union

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.attacks.attack import Attack, Scheduled
from dat_tf.attacks.pgd import PGD, Gradient, Loss, from_image
from dat_tf.base.errors import UserError
from dat_tf.objectives.losses import cross_entropy, gradient_of
from dat_tf.objectives.objective import Batch, Classifier

Number = Union[float, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class DynamicPGD(Scheduled):
  """PGD in which each example stops once its perturbation has converged well enough.

      c(x_k) = max of <z - x_k, grad_k> over z in the ball
             = epsilon |grad_k|_* - <x_k - x, grad_k>

  (in the l1 ball somewhat less, as its steps are not quite the steepest) is the
  first-order stationary condition (FOSC), 0 at a maximum. An example takes its first
  step, and further ones while c > c_t, up to K. The threshold falls in a line from
  `criterion` at the start of training to 0: the later, the better converged. The batch
  stops when all its examples have. Dynamic adversarial training: Wang et al., "On the
  convergence and robustness of adversarial training", ICML 2019.

  Called without `for_batch` it is that of the end of training, threshold 0.

  Attributes:
    attack: ball, step size, greatest number of steps and start.
    criterion: c_max, the unit of the loss (nats), at least 0; the paper uses 0.5.
    falling_steps: training steps until the threshold is 0, at least 1; the paper takes
      100 of 120 epochs.
  """

  attack: PGD
  falling_steps: int
  criterion: float = 0.5
  threshold: Number = 0.0

  def __post_init__(self) -> None:
    if self.attack.direction != Gradient():
      raise UserError("DynamicPGD follows the gradient: give a PGD without direction.")

  def for_batch(self, batch: Batch) -> DynamicPGD:
    """The attack at the batch's step."""
    left = 1.0 - tf.cast(batch.step, tf.float32) / self.falling_steps
    return dataclasses.replace(self, threshold=self.criterion * tf.nn.relu(left))

  def __call__(
    self,
    classifier: Classifier,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images; arguments as `Attack`'s."""
    ball, starts_at_image = self.attack.ball, self.attack.start is from_image
    gain = self.attack.gain(classifier, images, labels, loss)

    def step(
      k: tf.Tensor, moved: tf.Tensor, active: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
      gradient = gradient_of(gain, moved)
      lost = tf.constant(False)
      if starts_at_image:
        lost = norms.is_zero(gradient)
        gradient = norms.never_zero(gradient, keys, k)
      steepest = ball.steepest(gradient)
      headroom = ball.epsilon * steepest - (moved - images)
      condition = tf.reduce_sum(headroom * gradient, axis=[1, 2, 3])
      active &= (k == 0) | lost | (condition > self.threshold)
      ahead = ball.project(images, moved + self.attack.step_size * steepest)
      return k + 1, tf.where(active[:, None, None, None], ahead, moved), active

    start = self.attack.start(ball, images, keys)
    _, moved, _ = tf.while_loop(
      lambda k, moved, active: tf.reduce_any(active),
      step,
      (tf.constant(0), start, tf.fill(tf.shape(images)[:1], True)),
      maximum_iterations=self.attack.steps,
    )
    return norms.checked(ball, images, moved)


@dataclasses.dataclass(frozen=True)
class Curriculum(Scheduled):
  """PGD that grows to full strength in the course of training, in a line.

  At training step t, counted from 0, with r = min(1, (t + 1) / steps_growing), it has K
  = ceil(r steps); radius and step size grow in the same way, over epsilon_growing.
  Growing K is the curriculum of Cai et al., "Curriculum adversarial training", IJCAI
  2018, who go on to the next K once accuracy under this one rises no more.

  Called without `for_batch` it has its full strength.

  Attributes:
    attack: at full strength.
    steps_growing: training steps until K is full; 0 if it always is.
    epsilon_growing: training steps until radius and step size are full; 0 if they
      always are.
  """

  attack: PGD
  steps_growing: int = 0
  epsilon_growing: int = 0

  def for_batch(self, batch: Batch) -> PGD:
    """The attack at the batch's step."""
    done = tf.cast(batch.step, tf.float32) + 1.0
    attack = self.attack
    if self.steps_growing:
      part = tf.minimum(done / self.steps_growing, 1.0)
      # A hundredth of a step less: 0.7 * 10 is more than 7 in float32.
      steps = tf.cast(tf.math.ceil(part * attack.steps - 0.01), tf.int32)
      attack = dataclasses.replace(attack, steps=steps)
    if self.epsilon_growing:
      part = tf.minimum(done / self.epsilon_growing, 1.0)
      ball = dataclasses.replace(attack.ball, epsilon=part * attack.ball.epsilon)
      step_size = part * attack.step_size
      attack = dataclasses.replace(attack, ball=ball, step_size=step_size)
    return attack

  def __call__(
    self,
    classifier: Classifier,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images of the full strength; arguments as `Attack`'s."""
    return self.attack(classifier, images, labels, keys, loss)


class WarmStart(Scheduled):
  """PGD that starts at the perturbation with which an example ended the epoch before.

  After Zheng et al., "Efficient adversarial training with transferable adversarial
  examples", CVPR 2020: a few steps an epoch then do what many would. An example's first
  start is random. Where images are shifted or mirrored anew in each epoch, an old
  perturbation fits badly: it is for data without such augmentation.

  Each worker keeps the perturbations of the examples that it has seen, a byte a pixel
  value, in host memory: 47 MB for Fashion-MNIST, 154 MB for CIFAR-10, divided by the
  workers; 190 GB for ImageNet. They are not in checkpoints: a continued run starts at
  random once more.

  Called without `for_batch` it is PGD with its own start.
  """

  def __init__(self, attack: PGD, image_shape: Sequence[int]):
    """Makes an empty store.

    Args:
      attack: what starts there, otherwise at its own start.
      image_shape: (height, width, channels) of every image.
    """
    self._attack = attack
    self._size = tf.TensorShape(image_shape).num_elements()
    # A code for each pixel value, and the float32 that they are parts of. The table
    # takes no bytes; eight of them make an int64.
    self._row = [self._size, 4, -(self._size + 4) % 8]
    # No perturbation has this code: it stands for an example not seen before.
    unseen = tf.fill([1, sum(self._row)], tf.constant(-128, tf.int8))
    self._table = tf.lookup.experimental.MutableHashTable(
      tf.int64, tf.int64, _packed(unseen)[0]
    )

  def __call__(
    self,
    classifier: Classifier,
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
    loss: Loss = cross_entropy,
  ) -> tf.Tensor:
    """Adversarial images; arguments as `Attack`'s."""
    return self._attack(classifier, images, labels, keys, loss)

  def for_batch(self, batch: Batch) -> Attack:
    """The attack on these examples.

    Raises:
      UserError: the data has no example ids.
    """
    if batch.example_ids is None:
      raise UserError(
        "A warm start needs examples with ids: feed dicts with `example_id`, as "
        "dat_tf.data makes them, or use a random start."
      )

    def start(ball: norms.Ball, images: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
      return self._start(batch.example_ids, keys, images)

    def attack(
      classifier: Classifier,
      images: tf.Tensor,
      labels: tf.Tensor,
      keys: tf.Tensor,
      loss: Loss = cross_entropy,
    ) -> tf.Tensor:
      from_stored = dataclasses.replace(self._attack, start=start)
      moved = from_stored(classifier, images, labels, keys, loss)
      is_real = batch.weights > 0  # padding has others' ids
      self._keep(
        tf.boolean_mask(batch.example_ids, is_real),
        tf.boolean_mask(moved - images, is_real),
      )
      return moved

    return attack

  def _start(
    self, example_ids: tf.Tensor, keys: tf.Tensor, images: tf.Tensor
  ) -> tf.Tensor:
    codes = tf.bitcast(self._table.lookup(example_ids), tf.int8)
    codes = tf.reshape(codes, [-1, sum(self._row)])
    codes, largest, _ = tf.split(codes, self._row, axis=1)
    is_seen = (codes[:, 0] != -128)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    delta = tf.cast(tf.reshape(codes, tf.shape(images)), tf.float32)
    unit = tf.bitcast(largest, tf.float32)[:, tf.newaxis, tf.newaxis, tf.newaxis] / 127
    ball = self._attack.ball
    warm = ball.project(images, images + delta * tf.where(is_seen, unit, 0.0))
    return tf.where(is_seen, warm, self._attack.start(ball, images, keys))

  def _keep(self, example_ids: tf.Tensor, delta: tf.Tensor) -> None:
    delta = tf.reshape(delta, [-1, self._size])
    largest = tf.reduce_max(tf.abs(delta), axis=1)
    codes = tf.math.divide_no_nan(127.0 * delta, largest[:, tf.newaxis])
    codes = tf.cast(tf.round(codes), tf.int8)
    codes = tf.concat([codes, tf.bitcast(largest, tf.int8)], axis=1)
    codes = tf.pad(codes, [[0, 0], [0, self._row[2]]])
    self._table.insert(example_ids, _packed(codes))


def _packed(codes: tf.Tensor) -> tf.Tensor:
  """int8 [B, 8 n] -> int64 [B, n]."""
  return tf.bitcast(tf.reshape(codes, [-1, codes.shape[1] // 8, 8]), tf.int64)
