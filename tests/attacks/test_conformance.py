"""What every attack keeps to, on images of one and of several channels.

On a linear classifier whose smallest perturbations are known: what is found lies in the
ball and in the pixel range, and what is near enough is found. On a network that is flat
around the images: no attack stands still.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized
from linear_model import Linear, norms_of

from dat_tf.attacks import (
  L1,
  L2,
  PGD,
  WRM,
  Curriculum,
  DynamicPGD,
  Free,
  LInfinity,
  Momentum,
  OneShot,
  WarmStart,
  from_image,
  make_attacks,
  registry,
)
from dat_tf.attacks.ddn import DDN
from dat_tf.attacks.deepfool import DeepFool
from dat_tf.attacks.jsma import JSMA
from dat_tf.attacks.passes import MinMax, Pass
from dat_tf.attacks.penalized import LBFGS, CarliniWagner
from dat_tf.attacks.square import Square
from dat_tf.attacks.transfer import Transfer
from dat_tf.base import hashing
from dat_tf.objectives import Batch, linearity_violation, losses

EVERYWHERE = [*registry._ALONE, "fgsm", "pgd-5", "cw-pgd-5", "bim-5", "mi-fgsm-5"]
EVERYWHERE += ["transfer-pgd-5"]
# How much longer than the smallest perturbation the one that they find may be.
SMALLEST = dict.fromkeys(["fab", "fab-t", "deepfool"], 1.05)
SMALLEST |= dict.fromkeys(["ddn", "cw-l2", "l-bfgs"], 1.2)
# How much larger the ball is than the smallest perturbations; else it is half as large
# again.
ROOM = {"jsma": 300.0, "square": 5.0}


def cases():
  for ball in (LInfinity, L2, L1):
    names = EVERYWHERE
    names = names if ball is LInfinity else [*names, "jsma"]
    names = names if ball is not L2 else [*names, *registry._L2_ONLY]
    # One step moves few entries in l1: it is no way to the boundary.
    yield from ((ball, name) for name in names if (ball, name) != (L1, "fgsm"))


def named(*channels):
  """A test's name, ball, name of the attack and channels; -k finds them by the name."""
  for ball, name in cases():
    for count in channels:
      yield f"{name}_{ball.__name__}_{count}", ball, name, count


def quick(attack):
  """The attack with fewer steps, which are enough on a linear classifier."""
  if isinstance(attack, Transfer):
    return dataclasses.replace(attack, attack=quick(attack.attack))
  if isinstance(attack, CarliniWagner):
    return dataclasses.replace(attack, steps=30, weights=4, first_weight=0.3)
  if isinstance(attack, DDN):
    return dataclasses.replace(attack, steps=40, first_radius=0.2)
  if isinstance(attack, LBFGS):
    return dataclasses.replace(attack, steps=10, weights=8, first_weight=0.1)
  if isinstance(attack, Square):
    return dataclasses.replace(attack, steps=60)
  if isinstance(attack, JSMA):
    return dataclasses.replace(attack, steps=10)
  if isinstance(attack, DeepFool):
    return dataclasses.replace(attack, steps=3)
  changes = {"steps": 6, "targets": 1, "restarts": 1}
  return dataclasses.replace(
    attack, **{k: v for k, v in changes.items() if v < (getattr(attack, k, 0) or 0)}
  )


def run(attack, *arguments):
  """Its adversarial images; traced if it has Jacobians, which are slow otherwise."""
  call = OneShot(attack)
  if isinstance(attack, (JSMA, DeepFool)) or not getattr(attack, "targets", 1):
    call = tf.function(functools.partial(call))
  return call(*arguments)


class ConformanceTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.named_parameters(*named(1, 3))
  def test_images_of_one_channel_and_of_three(self, ball, name, channels):
    self.check(ball, name, channels)

  @parameterized.named_parameters(*named(4))
  @pytest.mark.long
  def test_images_of_four_channels(self, ball, name, channels):
    self.check(ball, name, channels)

  def check(self, ball, name, channels):
    linear = Linear(near_classes=2, shape=(6, 5, channels), count=4)
    distances = linear.distances(ball)
    images, labels = tf.constant(linear.images), tf.constant(linear.labels)
    keys = hashing.stream_keys(0, linear.ids)
    epsilon = float(ROOM.get(name, 1.5) * distances.max())
    attacks = [*make_attacks(name, ball(epsilon), source=linear).values()]
    moved = np.stack(
      [run(quick(one), linear, images, labels, keys).numpy() for one in attacks]
    )
    self.assertAllInRange(moved, 0.0, 1.0)
    norms = np.stack(
      [norms_of(attacks[0].ball, each - linear.images) for each in moved]
    )
    self.assertAllLessEqual(norms, epsilon + 1e-6)
    broken = [linear(each).numpy().argmax(axis=1) != linear.labels for each in moved]
    self.assertAllEqual(np.any(broken, axis=0), np.full(4, True))
    self.assertAllGreaterEqual((norms / distances)[np.array(broken)], 1.0 - 1e-4)
    if name in SMALLEST:
      self.assertAllLess(norms[0] / distances, SMALLEST[name])


class FlatAroundTheImages:
  """Its gradient is zero around grey images, but not at most points of a ball.

  The label 0 loses to 1 where |w . (x - 0.5)| is large, and w . (x - 0.5) has to leave
  an interval around 0 before it counts.
  """

  def __init__(self, ball, channels):
    self.shape = (7, 9, channels)  # odd: no step of equal sizes adds up to 0
    size = np.prod(self.shape)
    signs = np.where(np.random.default_rng(3).random(size) < 0.5, -1.0, 1.0)
    self._weights = (signs / size).astype("f4")[:, None]
    dual = {LInfinity: 1.0, L2: size**-0.5, L1: 1.0 / size}[type(ball)]
    farthest = ball.epsilon * dual
    self._flat, self._needed = 0.002 * farthest, 0.15 * farthest

  def __call__(self, images):
    along = tf.reshape(images - 0.5, [-1, len(self._weights)]) @ self._weights
    rise = tf.nn.relu(tf.abs(along) - self._flat) / self._needed
    return tf.concat([1.0 - rise, rise - 1.0, -2.0 + 0 * rise, -3.0 + 0 * rise], 1)


class FlatTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.keys = hashing.stream_keys(0, tf.range(4))
    self.labels = tf.zeros(4, tf.int32)

  def ball(self, kind):
    return kind({LInfinity: 0.1, L2: 0.5, L1: 4.0}[kind])

  def check(self, flat, adversarial, steps):
    self.assertAllInRange(adversarial, 0.0, 1.0)
    moved = np.abs(adversarial.numpy() - 0.5).max(axis=(1, 2, 3))
    self.assertAllGreater(moved, 0.0)
    if steps > 1:
      self.assertAllEqual(tf.argmax(flat(adversarial), 1), np.ones(4))

  # Square follows no gradient.
  @parameterized.named_parameters(*(x for x in named(3) if x[2] != "square"))
  def test_no_attack_of_evaluation_stands_still(self, kind, name, channels):
    self.check_evaluation(kind, name, channels)

  @parameterized.named_parameters(*(x for x in named(1) if x[2] != "square"))
  @pytest.mark.long
  def test_nor_on_images_of_one_channel(self, kind, name, channels):
    self.check_evaluation(kind, name, channels)

  def check_evaluation(self, kind, name, channels):
    ball = self.ball(kind)
    flat = FlatAroundTheImages(ball, channels)
    images = tf.fill([4, *flat.shape], 0.5)
    gradient = losses.input_gradient(flat, images, self.labels)
    self.assertAllEqual(gradient, tf.zeros_like(images))
    for attack in make_attacks(name, ball, source=flat).values():
      attack = quick(attack)
      steps = attack.num_steps(images.shape[1:].num_elements()) - (name == "fgsm")
      adversarial = run(attack, flat, images, self.labels, self.keys)
      self.check(flat, adversarial, steps)

  @parameterized.product(kind=[LInfinity, L2, L1], channels=[1, 3])
  def test_no_attack_of_training_stands_still(self, kind, channels):
    ball = self.ball(kind)
    flat = FlatAroundTheImages(ball, channels)
    images, size = tf.fill([4, *flat.shape], 0.5), 0.25 * ball.epsilon
    bim = PGD(ball, size, 8, from_image)
    for attack in (
      PGD(ball, size, 8),
      bim,
      PGD(ball, size, 8, from_image, Momentum()),
      DynamicPGD(bim, 10),
      Curriculum(bim),
      WarmStart(bim, flat.shape),
      WRM(),
      PGD(ball, size, 8, gain=linearity_violation),
    ):
      adversarial = attack(flat, images, self.labels, self.keys)
      self.check(flat, adversarial, steps=8)
    one = PGD(ball, ball.epsilon, 1, from_image)
    self.check(flat, one(flat, images, self.labels, self.keys), steps=1)
    free = Free(ball, images.shape, step_size=size)
    seen = []

    def differentiate(batch, adversarial, with_respect_to):
      seen.append(with_respect_to())
      gradient = losses.input_gradient(flat, adversarial, batch.labels)
      return Pass(0.0, None, [], gradient)

    batch = Batch(images, self.labels, tf.ones(4), self.keys, tf.ones(4))
    for _ in range(9):
      free(batch, MinMax(None, flat, differentiate))
    self.check(flat, seen[-1], steps=8)
