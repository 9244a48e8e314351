"""Changes of a batch before it is attacked: smoothed labels, mixup, CutMix.

Each is a function from a batch to a batch, for `AdversarialModel(prepare=...)`. Labels
become class probabilities. An example's random numbers are its own; whom it is mixed
with, the next one in the batch, depends on the batch.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.objectives.losses import class_rows
from dat_tf.objectives.objective import Batch


@dataclasses.dataclass(frozen=True)
class LabelSmoothing:
  """A label y counts as (1 - smoothing) y + smoothing / classes.

  Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016. An
  example without a label stays without.

  Attributes:
    num_classes: number of classes.
    smoothing: in [0, 1).
  """

  num_classes: int
  smoothing: float = 0.1

  def __call__(self, batch: Batch) -> Batch:
    rows = class_rows(batch.labels, self.num_classes)
    exists = tf.reduce_sum(rows, axis=-1, keepdims=True)
    rows = (1.0 - self.smoothing) * rows + self.smoothing / self.num_classes * exists
    return batch._replace(labels=rows)


@dataclasses.dataclass(frozen=True)
class Mixup:
  """r x + (1 - r) x' with the label r y + (1 - r) y', r from Beta(alpha, alpha).

  Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018. Padding, and
  examples with and without a (known) label, are not mixed with each other.

  Attributes:
    num_classes: number of classes.
    alpha: greater than 0; the paper uses 1 on CIFAR-10, 0.2 on ImageNet.
  """

  num_classes: int
  alpha: float = 1.0

  def __call__(self, batch: Batch) -> Batch:
    part = beta_quantile(_uniform(batch, 1)[:, 0], self.alpha)
    part = tf.where(_may_mix(batch), part, 1.0)
    images = part[:, None, None, None] * batch.images
    images += (1.0 - part[:, None, None, None]) * _next(batch.images)
    return _relabeled(batch, images, part, self.num_classes)


@dataclasses.dataclass(frozen=True)
class CutMix:
  """x with a window of x', labels in proportion to the area: Beta(alpha, alpha) of x.

  The window has the image's aspect; its centre is uniform, and what hangs over the edge
  is cut off. Yun et al., "CutMix: regularization strategy to train strong classifiers
  with localizable features", ICCV 2019. Padding, and examples with and without a
  (known) label, are not mixed with each other.

  Attributes:
    num_classes: number of classes.
    alpha: greater than 0; the paper uses 1.
  """

  num_classes: int
  alpha: float = 1.0

  def __call__(self, batch: Batch) -> Batch:
    height, width = batch.images.shape[1:3]
    uniform = _uniform(batch, 3)
    part = beta_quantile(uniform[:, 0], self.alpha)
    part = tf.where(_may_mix(batch), part, 1.0)
    side = tf.sqrt(1.0 - part)
    rows = _inside(height, uniform[:, 1], side)[:, :, None, None]
    columns = _inside(width, uniform[:, 2], side)[:, None, :, None]
    window = rows & columns
    images = tf.where(window, _next(batch.images), batch.images)
    area = tf.reduce_mean(tf.cast(window, tf.float32), axis=[1, 2, 3])
    return _relabeled(batch, images, 1.0 - area, self.num_classes)


def beta_quantile(uniform: tf.Tensor, alpha: float) -> tf.Tensor:
  """Quantiles [B] of Beta(alpha, alpha) at numbers in [0, 1), found by halving."""
  low = tf.zeros_like(uniform)
  exponent = alpha * tf.ones_like(uniform)
  for step in range(1, 25):
    middle = low + 0.5**step
    is_below = tf.math.betainc(exponent, exponent, middle) <= uniform
    low = tf.where(is_below, middle, low)
  return low


def _uniform(batch: Batch, count: int) -> tf.Tensor:
  """[B, count], from other streams than the attack's."""
  keys = hashing.stream_keys(3, batch.keys[:, 0], batch.keys[:, 1])
  return hashing.uniform(keys, [count])


def _next(x: tf.Tensor) -> tf.Tensor:
  return tf.roll(x, -1, axis=0)


def _may_mix(batch: Batch) -> tf.Tensor:
  """Whether an example and the next one are of one kind, and not padding: bool [B]."""
  labels = tf.convert_to_tensor(batch.labels)
  exists = labels >= 0 if labels.shape.rank == 1 else tf.reduce_any(labels > 0, axis=-1)
  is_labeled = batch.is_labeled > 0
  same = (exists == _next(exists)) & (is_labeled == _next(is_labeled))
  return same & (_next(batch.weights) > 0)


def _relabeled(
  batch: Batch, images: tf.Tensor, part: tf.Tensor, num_classes: int
) -> Batch:
  rows = class_rows(batch.labels, num_classes)
  rows = part[:, None] * rows + (1.0 - part[:, None]) * _next(rows)
  return batch._replace(images=images, labels=rows)


def _inside(size: int, center: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
  """The pixels within side / 2 of the centre, parts of the whole: bool [B, size]."""
  places = (tf.range(size, dtype=tf.float32) + 0.5) / size
  return tf.abs(places - center[:, None]) < side[:, None] / 2.0
