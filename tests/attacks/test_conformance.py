"""What every attack of evaluation keeps to, on images of one, three and four channels.

On a linear classifier whose smallest perturbations are known: what is found lies in the
ball and in the pixel range, and what is near enough is found.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from linear_model import Linear, norms_of

from dat_tf import hashing
from dat_tf.attacks import L1, L2, LInfinity, OneShot, make_attacks, registry
from dat_tf.attacks.ddn import DDN
from dat_tf.attacks.deepfool import DeepFool
from dat_tf.attacks.penalized import LBFGS, CarliniWagner
from dat_tf.attacks.square import Square
from dat_tf.attacks.transfer import Transfer

# The suites that are made of other attacks of the list are left out.
EVERYWHERE = [*registry._SUITES, "fgsm", "pgd-5", "cw-pgd-5", "bim-5", "mi-fgsm-5"]
EVERYWHERE = [name for name in EVERYWHERE if name != "autoattack"] + ["transfer-pgd-5"]
# How much longer than the smallest perturbation the one that they find may be.
SMALLEST = {"fab-t": 1.05, "deepfool": 1.05, "ddn": 1.2, "cw-l2": 1.2, "l-bfgs": 1.2}
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
  if isinstance(attack, DeepFool):
    return dataclasses.replace(attack, steps=3)
  changes = {"steps": 8, "samples": 2, "targets": 1, "restarts": 1}
  return dataclasses.replace(
    attack, **{k: v for k, v in changes.items() if v < getattr(attack, k, 0)}
  )


class ConformanceTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(case=[*cases()], channels=[1, 3, 4])
  def test_images_of_any_channels(self, case, channels):
    ball, name = case
    linear = Linear(near_classes=2, shape=(6, 5, channels), count=4)
    distances = linear.distances(ball)
    images, labels = tf.constant(linear.images), tf.constant(linear.labels)
    keys = hashing.stream_keys(0, linear.ids)
    epsilon = float(ROOM.get(name, 1.5) * distances.max())
    attacks = make_attacks(name, ball(epsilon), source=linear)
    moved = np.stack(
      [OneShot(quick(one))(linear, images, labels, keys).numpy() for one in attacks]
    )
    self.assertAllInRange(moved, 0.0, 1.0)
    norms = np.stack([norms_of(attacks[0].ball, each - linear.images) for each in moved])
    self.assertAllLessEqual(norms, epsilon + 1e-6)
    broken = [linear(each).numpy().argmax(axis=1) != linear.labels for each in moved]
    self.assertAllEqual(np.any(broken, axis=0), np.full(4, True))
    self.assertAllGreaterEqual((norms / distances)[np.array(broken)], 1.0 - 1e-4)
    if name in SMALLEST:
      self.assertAllLess(norms[0] / distances, SMALLEST[name])
