"""The Square attack: random search that asks for logits only.

Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack
via random search", ECCV 2020; for the l1 ball, Croce & Hein, "Mind the box", ICML 2021.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from dat_tf.attacks import losses, norms
from dat_tf.attacks.iterative import (
  Bounded,
  Classifier,
  Examples,
  State,
  per_example,
  select,
  unfooled,
)
from dat_tf.base import hashing

# The share of the image that a window covers is halved after these queries, of a budget
# of 10,000; AutoAttack, with 5,000, stops half-way through.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclasses.dataclass(frozen=True)
class Square(Bounded):
  """Square attack.

  A query changes the perturbation in a square window at a random place, all of a
  channel by one random sign, and the change stays if the margin of the label shrinks.
  In the l-infinity ball the window becomes +-epsilon, on top of a start of vertical
  stripes. In the others it takes the shape of two hills, a positive and a negative one,
  on top of what it was, and another window's perturbation is given up for it.

  Attributes:
    ball: where adversarial images are sought.
    steps: queries in a round.
    restarts: rounds, each with its own random numbers.
    share: part of the image that the first windows cover, in (0, 1].
  """

  ball: norms.Ball
  steps: int = 5000
  restarts: int = 1
  share: float = 0.8

  def num_rounds(self, num_classes: int) -> int:
    return self.restarts

  def start(self, examples: Examples) -> State:
    images = examples.images
    height, width, channels = images.shape[1:]
    if isinstance(self.ball, norms.LInfinity):
      stripes = norms.signs(examples.keys, [1, width, channels])
      candidate = self.ball.project(images, images + self.ball.epsilon * stripes)
    else:
      hills = _tiled_hills(height, width, is_l1=isinstance(self.ball, norms.L1))
      signs = norms.signs(examples.keys, [hills.shape[1], 1, 1, channels])
      turned = hashing.uniform(examples.step_keys(0, stream=3), [hills.shape[1]]) > 0.5
      hills = tf.where(turned[:, :, None, None], hills[1], hills[0])
      noise = tf.reduce_sum(hills[..., None] * signs, axis=1)
      candidate = self._filled(images, noise)
    return {
      **unfooled(images),
      "candidate": candidate,
      "best": images,
      "margin": tf.fill([tf.shape(images)[0]], float("-inf")),
    }

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    candidate, images = state["candidate"], examples.images
    logits = classifier(candidate)
    margin = losses.margin(logits, examples.labels)
    fooled = examples.fooled(logits)
    better = fooled | (margin > state["margin"])
    best = select(better, candidate, state["best"])
    norm = tf.where(fooled, self.ball.norm(candidate - images), float("inf"))
    return {
      "adversarial": best,
      "norm": norm,
      "best": best,
      "margin": tf.where(better, margin, state["margin"]),
      **self._next(examples, best, k),
    }

  def _next(self, examples: Examples, best: tf.Tensor, k: tf.Tensor) -> State:
    """What is asked next, and by which step.

    In the l-infinity ball many a window has its new sign already: such a query, whose
    answer is known, counts, but the one after it is asked instead.
    """
    if not isinstance(self.ball, norms.LInfinity):
      return {"candidate": self._changed(examples, best, k)}
    following = tf.minimum(k + 1, self.steps - 1)
    candidates = self._changed(
      tf.nest.map_structure(lambda x: tf.concat([x, x], axis=0), examples),
      tf.concat([best, best], axis=0),
      tf.concat([k, following], axis=0),
    )
    first, second = tf.split(candidates, 2)
    known = tf.reduce_all(first == best, axis=[1, 2, 3])
    return {
      "candidate": select(known, second, first),
      "k": k + 1 + tf.cast(known, tf.int32),
    }

  def _changed(self, examples: Examples, best: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    images = examples.images
    keys = examples.step_keys(k, stream=1)
    signs = norms.signs(keys, [1, 1, images.shape[3]])
    # A stream of its own: places must not depend on the signs.
    numbers = hashing.uniform(examples.step_keys(k, stream=2), [5])
    sides = tf.gather(self._sides(images.shape[1:3]), k)
    window = _Window(images.shape, sides, numbers[:, 0], numbers[:, 1])
    if isinstance(self.ball, norms.LInfinity):
      change = 2.0 * self.ball.epsilon * signs * window.mask
      return self.ball.project(images, best + change)
    is_l1 = isinstance(self.ball, norms.L1)

    def size(x: tf.Tensor, *axes: int) -> tf.Tensor:
      if is_l1:
        return tf.reduce_sum(tf.abs(x), axes, keepdims=True)
      return tf.sqrt(tf.reduce_sum(tf.square(x), axes, keepdims=True))

    other = _Window(images.shape, sides, numbers[:, 2], numbers[:, 3])
    perturbation = best - images
    both = perturbation * tf.maximum(window.mask, other.mask)
    old = perturbation * window.mask
    hill = signs * window.hill(
      self._sides(images.shape[1:3]), numbers[:, 4], is_l1=is_l1
    )
    new = hill + tf.math.divide_no_nan(old, size(old, 1, 2))
    new = tf.math.divide_no_nan(new, size(new, 1, 2))
    channels = images.shape[3]
    # The window gets what is left of the ball, shared by the channels, and what both
    # windows had in each.
    if is_l1:
      left = tf.nn.relu(self.ball.epsilon - size(perturbation, 1, 2, 3))
      new *= left + size(both, 1, 2) * channels
    else:
      left = tf.nn.relu(self.ball.epsilon**2 - size(perturbation, 1, 2, 3) ** 2)
      new *= tf.sqrt(left / channels + size(both, 1, 2) ** 2)
    kept = perturbation * (1.0 - tf.maximum(window.mask, other.mask))
    return self._filled(images, kept + new)

  def _filled(self, images: tf.Tensor, perturbation: tf.Tensor) -> tf.Tensor:
    """The images, perturbed as far as the ball allows."""
    if isinstance(self.ball, norms.L1):
      return self.ball.project(images, images + perturbation)
    assert isinstance(self.ball, norms.L2)
    direction = self.ball.steepest(perturbation)
    return self.ball.project(images, images + self.ball.epsilon * direction)

  def _sides(self, shape: tf.TensorShape) -> np.ndarray:
    """The window's side after each query, int32 [steps]."""
    # The query 0 is that of the start.
    halvings = np.searchsorted(_HALVED_AFTER, np.arange(self.steps))
    sides = np.sqrt(self.share * 0.5**halvings * shape[0] * shape[1]).round()
    if isinstance(self.ball, norms.LInfinity):
      sides = np.maximum(sides, 1)
    else:
      sides = np.maximum(sides, 3) // 2 * 2 + 1
    return np.minimum(sides, min(shape)).astype(np.int32)


class _Window:
  """A square of each example, at a random place.

  Attributes:
    mask: float32 [B, H, W, 1], 1 inside, 0 outside.
  """

  def __init__(
    self,
    shape: tf.TensorShape,
    sides: tf.Tensor,
    vertical: tf.Tensor,
    horizontal: tf.Tensor,
  ):
    """sides: int32 [B]; vertical, horizontal: float32 [B], uniform in [0, 1)."""
    self._sides = sides
    self._rows = _offsets(shape[1], sides, vertical)
    self._columns = _offsets(shape[2], sides, horizontal)
    rows, columns = (
      (x >= 0) & (x < sides[:, None]) for x in (self._rows, self._columns)
    )
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    self.mask = tf.cast(inside, tf.float32)

  def hill(self, all_sides: np.ndarray, number: tf.Tensor, *, is_l1: bool) -> tf.Tensor:
    """Hills that fill the windows, on their sides where number > 0.5; [B, H, W, 1]."""
    distinct = np.unique(all_sides)
    largest = distinct[-1]
    table = np.zeros((len(distinct), largest, largest), np.float32)
    for index, side in enumerate(distinct):
      table[index, :side, :side] = _two_hills(side, is_l1=is_l1)
    hills = tf.gather(table, tf.searchsorted(tf.constant(distinct), self._sides))
    turned = per_example(number)[..., 0] > 0.5
    hills = tf.where(turned, tf.transpose(hills, [0, 2, 1]), hills)
    rows, columns = (
      tf.clip_by_value(x, 0, largest - 1) for x in (self._rows, self._columns)
    )
    hills = tf.gather(hills, rows, axis=1, batch_dims=1)
    hills = tf.gather(hills, columns, axis=2, batch_dims=1)
    return hills[..., None] * self.mask


def _offsets(size: int, sides: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
  """Each pixel's place in the window along one axis; int32 [B, size]."""
  places = tf.cast(size - sides + 1, tf.float32)
  first = tf.minimum(tf.cast(number * places, tf.int32), size - sides)
  return tf.range(size) - first[:, None]


def _two_hills(side: int, *, is_l1: bool) -> np.ndarray:
  """A positive hill above a negative one, of norm 1; float32 [side, side]."""
  upper = _hill(side // 2, side, is_l1=is_l1)
  lower = _hill(side - side // 2, side, is_l1=is_l1)
  both = np.concatenate([upper, -lower])
  return both / (np.abs(both).sum() if is_l1 else np.sqrt((both**2).sum()))


def _hill(height: int, width: int, *, is_l1: bool) -> np.ndarray:
  """Nested rectangles around the middle, of norm 1.

  The m-th of them adds 1 / m^2, in l1 1 / m^4.
  """
  row, column = height // 2, width // 2
  distance = np.maximum(
    np.abs(np.arange(height) - row)[:, None], np.abs(np.arange(width) - column)
  )
  terms = 1.0 / np.arange(1.0, max(row, column) + 2) ** (4 if is_l1 else 2)
  # A pixel at distance d lies in all rectangles but the first d.
  hill = np.cumsum(terms[::-1])[::-1][distance]
  return hill / (hill.sum() if is_l1 else np.sqrt((hill**2).sum()))


def _tiled_hills(height: int, width: int, *, is_l1: bool) -> tf.Tensor:
  """Five hills a side, one above and one beside the other, [2, tiles, H, W]."""
  side = max(min(height, width) // 5, 1)
  places = [
    (row, column)
    for row in range((height % side) // 2, height - side + 1, side)
    for column in range((width % side) // 2, width - side + 1, side)
  ]
  hill = _two_hills(side, is_l1=is_l1) if side > 1 else np.ones((1, 1), np.float32)
  tiles = np.zeros((2, len(places), height, width), np.float32)
  for number, (row, column) in enumerate(places):
    for turned, one in enumerate((hill, hill.T)):
      tiles[turned, number, row : row + side, column : column + side] = one
  return tf.constant(tiles)
