"""Outcomes depend on the example only: not on its batch, nor on who has it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from dat_tf import models
from dat_tf.attacks import L1, L2, LInfinity, OneShot, losses
from dat_tf.attacks.apgd import APGD, apgd_for
from dat_tf.attacks.ascent import Ascent
from dat_tf.attacks.ddn import DDN
from dat_tf.attacks.deepfool import DeepFool
from dat_tf.attacks.fab import FAB
from dat_tf.attacks.jsma import JSMA
from dat_tf.attacks.penalized import LBFGS, CarliniWagner
from dat_tf.attacks.square import Square
from dat_tf.base import hashing
from dat_tf.evaluation import Evaluator

SHAPE, CLASSES, COUNT = (8, 8, 3), 5, 22


def autoattack(ball):
  return (
    apgd_for(ball)(ball, steps=10, restarts=2),
    apgd_for(ball)(ball, losses.targeted_dlr, steps=10, targets=9),
    FAB(ball, steps=10),
    Square(ball, steps=30, restarts=2),
  )


SEQUENCES = {
  "autoattack-linf": autoattack(LInfinity(0.012)),
  "autoattack-l2": autoattack(L2(0.12)),
  "autoattack-l1": autoattack(L1(0.9)),
  "eot": (APGD(LInfinity(0.008), losses.dlr, steps=5, samples=3),),
  "pgd": (Ascent(LInfinity(0.01), 0.002, 10, restarts=3),),
  "mi-fgsm": (Ascent(L2(0.1), 0.02, 10, momentum=1.0, random_start=False),),
  "fab-t": (FAB(L2(0.1), steps=10, minimal=True),),
  "deepfool": (DeepFool(L2(0.1)),),
  "ddn": (DDN(L2(0.2), steps=20, first_radius=0.3),),
  "cw-l2": (CarliniWagner(L2(0.1), steps=10, weights=3, first_weight=1.0),),
  "l-bfgs": (LBFGS(L2(0.1), steps=10, weights=3, first_weight=1.0),),
  "jsma": (JSMA(L1(5.0), steps=10),),
}


class RefillingTest(tf.test.TestCase, parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    tf.keras.utils.set_random_seed(1)
    model = models.make_model("small_cnn", SHAPE, CLASSES)
    # Inside some image's smallest perturbation, and beyond some other's.
    cls.classifier = staticmethod(lambda images: 10.0 * model(images, training=False))
    cls.images = np.random.default_rng(0).uniform(size=(COUNT, *SHAPE)).astype("f4")
    cls.labels = cls.classifier(cls.images).numpy().argmax(axis=1)
    cls.labels[5] = (cls.labels[5] + 1) % CLASSES

  def evaluate(self, evaluator, part):
    labels = self.labels[part]
    prediction, outcomes = evaluator(self.images[part], labels, 1000 + part)
    self.assertAllEqual(prediction == labels, part != 5)
    return outcomes["attack"]

  def test_splits_and_orders_give_the_same(self):
    self.check_splits("pgd")

  @parameterized.parameters(*(SEQUENCES.keys() - {"pgd"}))
  @pytest.mark.long
  def test_so_it_is_with_every_attack(self, name):
    self.check_splits(name)

  def check_splits(self, name):
    attacks = {"attack": SEQUENCES[name]}
    evaluator = Evaluator(self.classifier, attacks, batch_size=4)
    everything = np.arange(COUNT)
    whole = self.evaluate(evaluator, everything)
    self.assertEqual(whole.norm[5], 0.0)
    self.assertIn(whole.broken.sum(), range(2, COUNT))
    for parts in (
      [everything[::-1]],
      [everything[::2], everything[1::2]],
      [everything[:4], everything[4:9], everything[9:]],
    ):
      for part in parts:
        own = self.evaluate(evaluator, part)
        self.assertAllEqual(own.norm, whole.norm[part])
        self.assertAllEqual(own.attack, whole.attack[part])
        self.assertAllEqual(own.prediction, whole.prediction[part])
        self.assertAllEqual(own.images, whole.images[part])

  @parameterized.parameters("autoattack-linf", "pgd", "fab-t", "cw-l2")
  @pytest.mark.long
  def test_in_one_shot_the_same_is_found(self, name):
    *_, attack = SEQUENCES[name]
    part = np.arange(4)
    images, labels = self.images[part], self.labels[part]
    evaluator = Evaluator(self.classifier, {"attack": (attack,)}, batch_size=4)
    _, outcomes = evaluator(images, labels, part)
    keys = hashing.stream_keys(0, part)
    shot = tf.function(OneShot(attack))(
      self.classifier, tf.constant(images), labels, keys
    )
    found = np.isfinite(outcomes["attack"].norm)
    self.assertTrue(found.any())
    self.assertAllClose(shot[found], outcomes["attack"].images[found], atol=1e-5)

  def test_what_is_broken_costs_no_more(self):
    """Calls of the classifier by an attack of 40 steps, four examples at a time."""
    calls = tf.Variable(0)

    def classifier(images):
      calls.assign_add(1)
      # Of class 1 as soon as it is any darker; black images stay as they are.
      dark = tf.reduce_sum(images, axis=[1, 2, 3])
      return tf.stack([dark - 0.999 * SHAPE[0] * SHAPE[1] * SHAPE[2], 0 * dark], 1)

    attack = Ascent(LInfinity(0.1), 0.02, 40)
    evaluator = Evaluator(classifier, {"attack": (attack,)}, batch_size=4)
    white, grey = np.ones((16, *SHAPE), "f4"), np.full((16, *SHAPE), 0.2, "f4")
    taken = []
    for each in (17, 4, 1):  # which are hard: none, some in either batch, all
      labels = np.arange(1, 17) % each == 0
      images = np.where(labels[:, None, None, None], grey, white)
      calls.assign(0)
      _, outcomes = evaluator(images, labels, np.arange(16))
      self.assertAllEqual(outcomes["attack"].broken, ~labels)
      taken.append(calls.numpy())
    none, some, every = taken
    # A look every four steps, in either batch while there is work for both; and the
    # images are classified as they are and at the end, and once in two other batches.
    self.assertLessEqual(none, 4 * 4 + 4 + 4 + 1 + 2)
    self.assertGreaterEqual(every, 4 * 40)
    self.assertLessEqual(some, 40 + 5 * 4 + 4 + 4 + 1 + 2)

  @pytest.mark.long
  def test_restarts_break_more(self):
    part = np.flatnonzero(np.arange(COUNT) != 5)
    broken = []
    for restarts in (1, 30):
      attack = Ascent(LInfinity(0.02), 1e-4, 1, restarts)
      evaluator = Evaluator(self.classifier, {"attack": (attack,)}, batch_size=16)
      broken.append(self.evaluate(evaluator, part).broken)
    self.assertFalse((broken[0] & ~broken[1]).any())
    self.assertGreater(broken[1].sum(), broken[0].sum())
