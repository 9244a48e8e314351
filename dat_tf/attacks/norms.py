"""The geometry of each ball of allowed perturbations.

A ball knows its size, where an attack may start, which way is steepest, and the way
back. Images are float tensors [B, H, W, C] in [0, 1]; everything is per example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Optional, Union

import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.base.errors import UserError

# An entry this close to the end of its range moves no further: projections stop there.
_HEADROOM = 1e-5
# A perturbation is the difference of two numbers in [0, 1], each rounded to float32.
_ROUNDING = 1e-6


def with_tolerance(epsilon: float) -> float:
  """The largest norm that counts as epsilon."""
  return epsilon + _ROUNDING


def check_positive(**numbers: Union[float, tf.Tensor]) -> None:
  """Raises UserError if a number is not greater than 0; tensors are not looked at."""
  for name, number in numbers.items():
    if not tf.is_tensor(number) and not number > 0:
      raise UserError(f"{name}={number:g}: it must be greater than 0.")


def _clip_to_pixels(images: tf.Tensor) -> tf.Tensor:
  return tf.clip_by_value(images, 0.0, 1.0)


def _l2_norm(x: tf.Tensor) -> tf.Tensor:
  """[B, H, W, C] -> [B, 1, 1, 1]."""
  return tf.sqrt(tf.reduce_sum(tf.square(x), axis=[1, 2, 3], keepdims=True))


def _l1_norm(x: tf.Tensor) -> tf.Tensor:
  """[B, H, W, C] -> [B, 1, 1, 1]."""
  return tf.reduce_sum(tf.abs(x), axis=[1, 2, 3], keepdims=True)


def _nan_to_zero(direction: tf.Tensor) -> tf.Tensor:
  """Zero where it is not a number.

  A network that has diverged has such a gradient. That is no defect of the attack: it
  takes no step, and training tells of the loss.
  """
  return tf.where(tf.math.is_nan(direction), 0.0, direction)


def signs(keys: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
  """float32 [B, *shape]: -1 or 1, each as likely."""
  return tf.where(hashing.uniform(keys, shape) < 0.5, -1.0, 1.0)


def is_zero(gradient: tf.Tensor) -> tf.Tensor:
  """Whether all of an example's gradient is zero: [B, ...] -> bool [B]."""
  return tf.reduce_all(tf.equal(gradient, 0.0), range(1, gradient.shape.rank))


def never_zero(
  gradient: tf.Tensor, keys: tf.Tensor, step: Union[int, tf.Tensor]
) -> tf.Tensor:
  """The gradient; where all of it is zero, a random direction of Euclidean norm 1.

  An attack that starts at the image itself would else stand still for ever where the
  network is flat around the image, and make it look robust. So does the authors'
  program of DDN (Rony et al., CVPR 2019).

  Args:
    gradient: [B, H, W, C].
    keys: uint32 [B, 2], a random stream of each example.
    step: integer, or integers [B]: each step has a direction of its own.
  """
  where = is_zero(gradient)

  def filled() -> tf.Tensor:
    # A stream of its own: other noise of the same keys must not depend on it.
    streams = hashing.stream_keys(5, step, keys[:, 0], keys[:, 1])
    noise = hashing.normal(streams, gradient.shape[1:])
    return tf.where(where[:, None, None, None], noise / _l2_norm(noise), gradient)

  return tf.cond(tf.reduce_any(where), filled, lambda: gradient)


@dataclasses.dataclass(frozen=True)
class LInfinity:
  """max |delta| <= epsilon.

  Attributes:
    epsilon: radius in pixel values, in (0, 1].

  Raises:
    UserError: epsilon is not in that range.
  """

  epsilon: float

  def __post_init__(self) -> None:
    check_positive(epsilon=self.epsilon)
    if not tf.is_tensor(self.epsilon) and self.epsilon > 1:
      meant = f", {self.epsilon:g}/255?" if self.epsilon <= 255 else "."
      raise UserError(
        f"LInfinity({self.epsilon:g}): pixels lie in [0, 1], and so does epsilon{meant}"
      )

  def random_start(self, keys: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Images moved by noise uniform in the ball; keys: uint32 [B, 2]."""
    noise = hashing.uniform(keys, images.shape[1:])
    return self.project(images, images + self.epsilon * (2.0 * noise - 1.0))

  def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
    """The direction of norm 1 along which a linear function grows fastest."""
    return _nan_to_zero(tf.sign(gradient))

  def project(self, images: tf.Tensor, moved: tf.Tensor) -> tf.Tensor:
    """The point in the ball around `images`, and in [0, 1], nearest to `moved`."""
    return tf.clip_by_value(
      moved,
      _clip_to_pixels(images - self.epsilon),
      _clip_to_pixels(images + self.epsilon),
    )

  def norm(self, perturbation: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] -> [B]."""
    return tf.reduce_max(tf.abs(perturbation), axis=[1, 2, 3])

  def dual_norm(self, gradients: tf.Tensor) -> tf.Tensor:
    """The largest growth of a linear function for a move of norm 1.

    Args:
      gradients: [..., H, W, C].

    Returns:
      [...].
    """
    return tf.reduce_sum(tf.abs(gradients), axis=[-3, -2, -1])


@dataclasses.dataclass(frozen=True)
class L2:
  """sqrt(sum delta^2) <= epsilon.

  Attributes:
    epsilon: radius, greater than 0; the whole image's norm, with pixels in [0, 1].

  Raises:
    UserError: epsilon is not greater than 0.
  """

  epsilon: float

  def __post_init__(self) -> None:
    check_positive(epsilon=self.epsilon)

  def random_start(self, keys: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Images moved by noise uniform in the ball; keys: uint32 [B, 2].

    A normal direction times u^(1/d), u uniform, is uniform in the ball of dimension d
    (Muller 1959).
    """
    shape = images.shape[1:]
    direction = hashing.normal(keys, shape)
    # A stream of its own: the radius must not depend on the direction's numbers.
    radius = hashing.uniform(hashing.stream_keys(1, keys[:, 0], keys[:, 1]), [1, 1, 1])
    radius = self.epsilon * radius ** (1.0 / shape.num_elements())
    return self.project(images, images + radius * self.steepest(direction))

  def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
    """The direction of norm 1 along which a linear function grows fastest.

    A zero gradient gives a zero direction. The gradient is first scaled by its largest
    entry, so that squaring neither underflows nor overflows.
    """
    largest = tf.reduce_max(tf.abs(gradient), axis=[1, 2, 3], keepdims=True)
    scaled = tf.math.divide_no_nan(gradient, largest)
    return _nan_to_zero(tf.math.divide_no_nan(scaled, _l2_norm(scaled)))

  def project(self, images: tf.Tensor, moved: tf.Tensor) -> tf.Tensor:
    """A point in the ball around `images`, and in [0, 1], near `moved`.

    First onto the ball, then into the pixel range: clipping moves every pixel towards
    the image, so the result lies in both. (It is the nearest point of each in turn, not
    of their intersection, as everywhere in the literature.)
    """
    perturbation = moved - images
    shrink = self.epsilon / tf.maximum(_l2_norm(perturbation), self.epsilon)
    return _clip_to_pixels(images + perturbation * shrink)

  def norm(self, perturbation: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] -> [B]."""
    return _l2_norm(perturbation)[:, 0, 0, 0]

  def dual_norm(self, gradients: tf.Tensor) -> tf.Tensor:
    """The largest growth of a linear function for a move of norm 1, [..., H, W, C]."""
    return tf.sqrt(tf.reduce_sum(tf.square(gradients), axis=[-3, -2, -1]))


@dataclasses.dataclass(frozen=True)
class L1:
  """sum |delta| <= epsilon.

  Attributes:
    epsilon: radius, greater than 0; the whole image's norm, with pixels in [0, 1].
    density: share of the entries that a step moves, in (0, 1]. The steepest step moves
      one entry only, which soon meets the end of its range; moving the largest few per
      cent is what works (Tramer & Boneh, NeurIPS 2019).

  Raises:
    UserError: epsilon is not greater than 0, or density not in that range.
  """

  epsilon: float
  density: float = 0.05

  def __post_init__(self) -> None:
    check_positive(epsilon=self.epsilon, density=self.density)
    if self.density > 1:
      raise UserError(f"density={self.density:g}: it is a share, and at most 1.")

  def random_start(self, keys: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Images moved by noise uniform in the ball; keys: uint32 [B, 2].

    d of d + 1 exponential numbers, divided by the sum of all, are uniform in the
    simplex (Devroye, "Non-uniform random variate generation", 1986); signs make it the
    ball.
    """
    shape = images.shape[1:]
    size = shape.num_elements()
    numbers = -tf.math.log(1.0 - hashing.uniform(keys, [size + 1]))
    # A stream of its own: the signs must not depend on the numbers.
    chosen = signs(hashing.stream_keys(1, keys[:, 0], keys[:, 1]), [size])
    noise = chosen * numbers[:, :-1] / tf.reduce_sum(numbers, axis=1, keepdims=True)
    return self.project(images, images + self.epsilon * tf.reshape(noise, [-1, *shape]))

  def steepest(
    self, gradient: tf.Tensor, density: Optional[tf.Tensor] = None
  ) -> tf.Tensor:
    """The signs of the largest entries, all of one size: a direction of norm 1.

    Args:
      gradient: [B, H, W, C].
      density: [B], share of the entries that move, instead of the ball's.
    """
    size = gradient.shape[1:].num_elements()
    magnitudes = tf.reshape(tf.abs(gradient), [-1, size])
    if density is None:
      # One number for all: only so many need be put in order.
      count = min(max(int(self.density * size), 1), size)
      threshold = tf.math.top_k(magnitudes, count).values[:, -1]
    else:
      smallest = tf.clip_by_value(tf.cast(density * size, tf.int32) - 1, 0, size - 1)
      descending = tf.sort(magnitudes, direction="DESCENDING")
      threshold = tf.gather(descending, smallest, batch_dims=1)
    threshold = threshold[:, None, None, None]
    signs = tf.where(tf.abs(gradient) >= threshold, tf.sign(gradient), 0.0)
    return tf.math.divide_no_nan(signs, _l1_norm(signs))

  def project(
    self, images: tf.Tensor, moved: tf.Tensor, radius: Optional[tf.Tensor] = None
  ) -> tf.Tensor:
    """The point in the ball around `images`, and in [0, 1], nearest to `moved`.

    Nearest in the Euclidean norm, of the intersection of both: clipping afterwards
    would leave much of the ball unused (Croce & Hein, "Mind the box", ICML 2021).
    An entry of size m, which may move by r in its direction before it leaves [0, 1],
    shrinks to min(max(m - s, 0), r), where s is the smallest number, at least 0, for
    which the sum does not exceed the radius. That sum is piecewise linear in s: its
    kinks are sorted and summed up.

    Args:
      images: float32 [B, H, W, C] in [0, 1].
      moved: float32 [B, H, W, C].
      radius: [B], of each example's ball; epsilon unless given.
    """
    size = images.shape[1:].num_elements()
    batch = tf.shape(images)[0]
    radius = tf.fill([batch], self.epsilon) if radius is None else radius
    perturbation = moved - images
    sizes = tf.reshape(tf.abs(perturbation), [-1, size])
    headroom = tf.reshape(
      tf.where(perturbation > 0.0, 1.0 - images, images), [-1, size]
    )
    kinks = tf.concat([sizes, tf.nn.relu(sizes - headroom)], axis=1)
    kinks, order = tf.math.top_k(kinks, 2 * size)
    # How many entries grow with falling s, below each kink.
    slopes = tf.cumsum(tf.where(order < size, 1.0, -1.0), axis=1)
    sums = tf.cumsum(slopes[:, :-1] * (kinks[:, :-1] - kinks[:, 1:]), axis=1)
    too_small = tf.reduce_sum(tf.cast(sums < radius[:, None], tf.int32), axis=1)
    piece = tf.minimum(too_small, 2 * size - 2)
    kink, slope, total = (
      tf.gather(values, piece, batch_dims=1) for values in (kinks[:, 1:], slopes, sums)
    )
    shrink = kink + tf.math.divide_no_nan(total - radius, slope)
    shrink = tf.where(too_small > piece, 0.0, shrink)[:, None]
    projected = tf.minimum(tf.nn.relu(sizes - shrink), headroom)
    # Rounding must not lead out of the ball.
    norms = tf.reduce_sum(projected, axis=1)
    projected *= tf.minimum(1.0, (1.0 - 1e-6) * radius / tf.maximum(norms, 1e-12))[
      :, None
    ]
    projected = tf.reshape(projected, tf.shape(images)) * tf.sign(perturbation)
    return _clip_to_pixels(images + projected)

  def norm(self, perturbation: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] -> [B]."""
    return _l1_norm(perturbation)[:, 0, 0, 0]

  def dual_norm(self, gradients: tf.Tensor) -> tf.Tensor:
    """The largest growth of a linear function for a move of norm 1, [..., H, W, C]."""
    return tf.reduce_max(tf.abs(gradients), axis=[-3, -2, -1])


Ball = Union[LInfinity, L2, L1]


def ascend(
  ball: Ball,
  images: tf.Tensor,
  moved: tf.Tensor,
  gradient: tf.Tensor,
  step_size: Union[float, tf.Tensor],
) -> tf.Tensor:
  """A step of projected gradient ascent: project(moved + step_size steepest(gradient)).

  In l1, where a step moves few entries, it leaves out those that the pixel range lets
  move no further (Maini et al., ICML 2020): the same few would be chosen for ever.

  Args:
    ball: the allowed perturbations of `images`.
    images: float32 [B, H, W, C] in [0, 1].
    moved: the points to go on from, of that shape, as all that follow.
    gradient: of what is to grow, with respect to `moved`.
    step_size: length of the step in the ball's norm, pixel units.
  """
  if isinstance(ball, L1):
    headroom = tf.where(gradient > 0.0, 1.0 - moved, moved)
    gradient = tf.where(headroom > _HEADROOM, gradient, tf.zeros_like(gradient))
  return ball.project(images, moved + step_size * ball.steepest(gradient))


def checked(ball: Ball, images: tf.Tensor, adversarial: tf.Tensor) -> tf.Tensor:
  """`adversarial`, once it is seen to lie in the ball and in the pixel range.

  Raises:
    tf.errors.InvalidArgumentError: it does not, by more than rounding (1e-6), or is
      not a number; that is a defect of the attack.
  """
  norm = tf.reduce_max(ball.norm(adversarial - images))
  lowest, highest = tf.reduce_min(adversarial), tf.reduce_max(adversarial)
  inside = (norm <= with_tolerance(ball.epsilon)) & (lowest >= 0.0) & (highest <= 1.0)
  check = tf.debugging.Assert(
    inside,
    [
      "perturbation of norm",
      norm,
      "for epsilon",
      ball.epsilon,
      "pixels",
      lowest,
      highest,
    ],
  )
  with tf.control_dependencies([check] if check is not None else []):
    return tf.identity(adversarial)
