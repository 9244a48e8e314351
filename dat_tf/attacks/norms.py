"""The geometry of each ball of allowed perturbations.

A ball knows its size, where an attack may start, which way is steepest, and the way
back. Images are float tensors [B, H, W, C] in [0, 1]; everything is per example.
"""

from __future__ import annotations

import dataclasses
from typing import Union

import tensorflow as tf

from dat_tf import hashing

# A perturbation is the difference of two numbers in [0, 1], each rounded to float32.
_ROUNDING = 1e-6


def _clip_to_pixels(images: tf.Tensor) -> tf.Tensor:
  return tf.clip_by_value(images, 0.0, 1.0)


def _l2_norm(x: tf.Tensor) -> tf.Tensor:
  """[B, H, W, C] -> [B, 1, 1, 1]."""
  return tf.sqrt(tf.reduce_sum(tf.square(x), axis=[1, 2, 3], keepdims=True))


@dataclasses.dataclass(frozen=True)
class LInfinity:
  """max |delta| <= epsilon.

  Attributes:
    epsilon: radius in pixel values, in (0, 1].
  """

  epsilon: float

  def random_start(self, keys: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Images moved by noise uniform in the ball; keys: uint32 [B, 2]."""
    noise = hashing.uniform(keys, images.shape[1:])
    return self.project(images, images + self.epsilon * (2.0 * noise - 1.0))

  def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
    """The direction of norm 1 along which a linear function grows fastest."""
    return tf.sign(gradient)

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


@dataclasses.dataclass(frozen=True)
class L2:
  """sqrt(sum delta^2) <= epsilon.

  Attributes:
    epsilon: radius, greater than 0; the whole image's norm, with pixels in [0, 1].
  """

  epsilon: float

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
    return tf.math.divide_no_nan(scaled, _l2_norm(scaled))

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


Ball = Union[LInfinity, L2]


def checked(ball: Ball, images: tf.Tensor, adversarial: tf.Tensor) -> tf.Tensor:
  """`adversarial`, once it is seen to lie in the ball and in the pixel range.

  Raises:
    tf.errors.InvalidArgumentError: it does not, by more than rounding (1e-6), or is
      not a number; that is a defect of the attack.
  """
  norm = tf.reduce_max(ball.norm(adversarial - images))
  lowest, highest = tf.reduce_min(adversarial), tf.reduce_max(adversarial)
  inside = (norm <= ball.epsilon + _ROUNDING) & (lowest >= 0.0) & (highest <= 1.0)
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
