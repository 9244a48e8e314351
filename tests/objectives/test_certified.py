"""Certified training and certified accuracy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import PGD, LInfinity
from dat_tf.base import hashing
from dat_tf.objectives import Batch, CertifiedTraining, bounds, is_certified

layers = tf.keras.layers


def network(hidden=6, classes=3):
  return tf.keras.Sequential(
    [
      tf.keras.Input((2, 2, 1)),
      layers.Flatten(),
      layers.Dense(hidden, activation="relu"),
      layers.Dense(classes),
    ]
  )


def cross_entropy(logits, labels):
  logits = logits.astype("f8")
  return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]


class CertifiedTrainingTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    crown=[False, True],
    at=[(0, 0.0), (4, 0.0), (9, 0.5), (14, 1.0), (1000, 1.0)],
    soft=[False, True],
  )
  def test_the_loss_at_each_step(self, crown, at, soft):
    step, grown = at
    tf.keras.utils.set_random_seed(0)
    model = network()
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(5, 2, 2, 1)).astype("f4"), np.arange(5) % 3
    rows = 0.8 * np.eye(3, dtype="f4")[labels] + 0.2 / 3
    ones = tf.ones(5)
    batch = Batch(images, rows if soft else labels, ones, None, ones, tf.constant(step))
    # 4 steps of warm-up, 10 of growth.
    objective = CertifiedTraining(0.2, 4, 10, kappa=0.3, crown=crown)
    result = objective(model, batch, batch.images)

    radius = np.float32(0.2 * grown)
    box = np.maximum(images - radius, 0), np.minimum(images + radius, 1)
    margins = bounds.interval_margins(model, *box, labels).numpy()
    if crown:
      linear = bounds.linear_margins(model, *box, labels).numpy()
      margins = (1 - grown) * linear + grown * margins
    kappa = 1 - 0.7 * grown
    logits = model(images).numpy()
    clean = cross_entropy(logits, labels)
    if soft:
      log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
      clean = -(rows * log_p).sum(axis=1)
    expected = kappa * clean + (1 - kappa) * cross_entropy(margins, labels)
    self.assertAllClose(result.losses, expected, rtol=1e-4)
    self.assertAllClose(result.adversarial_logits, logits)

  def test_training_certifies(self):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=256)
    # One strong pixel, and three weak ones that are worth nothing under attack.
    images = 0.5 + 0.02 * (2 * labels[:, None] - 1) * np.ones((256, 4))
    images[:, 0] = 0.5 + 0.3 * (2 * labels - 1)
    images = (images + rng.normal(0, 0.01, size=images.shape)).reshape(-1, 2, 2, 1)
    images = images.astype("f4")
    data = tf.data.Dataset.from_tensors((images, labels)).repeat(150)
    for crown in (False, True):
      tf.keras.utils.set_random_seed(1)
      model = AdversarialModel(
        network(classes=2), None, CertifiedTraining(0.1, 20, 80, crown=crown)
      )
      model.compile(optimizer=tf.keras.optimizers.legacy.Adam(0.02))
      before = np.mean(is_certified(model.classifier, images, labels, 0.1))
      model.fit(data, verbose=0)
      after = np.mean(is_certified(model.classifier, images, labels, 0.1, crown=crown))
      self.assertLess(before, 0.7)
      self.assertGreater(after, 0.98)


class IsCertifiedTest(tf.test.TestCase):
  def test_of_a_linear_network_it_is_the_truth(self):
    rng = np.random.default_rng(0)
    inputs = tf.keras.Input((2, 2, 1))
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    images = rng.uniform(0.2, 0.8, size=(200, 2, 2, 1)).astype("f4")
    kernel = rng.normal(size=(4, 3)).astype("f4")
    model.set_weights([kernel, -0.5 * kernel.sum(axis=0)])  # all equal at mid-grey
    labels = np.argmax(model(images), axis=1)
    logits = model(images).numpy()
    own = kernel[:, labels].T
    # The distance to the nearest hyperplane, in the maximum norm.
    distances = np.full(200, np.inf)
    for k in range(3):
      margin = logits[np.arange(200), labels] - logits[:, k]
      slope = np.abs(own - kernel[:, k]).sum(axis=1)
      with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.where(
          labels == k, distances, np.minimum(distances, margin / slope)
        )
    for epsilon in (0.02, 0.1):
      for crown in (False, True):
        clear = np.abs(distances - epsilon) > 1e-5
        result = is_certified(model, images, labels, epsilon, crown=crown).numpy()
        self.assertAllEqual(result[clear], (distances > epsilon)[clear])
        self.assertBetween(result.mean(), 0.05, 0.95)
        wrong = is_certified(model, images, (labels + 1) % 3, epsilon, crown=crown)
        self.assertFalse(np.any(wrong))

  def test_it_is_never_above_accuracy_under_attack(self):
    tf.keras.utils.set_random_seed(0)
    model = network(hidden=32)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(300, 2, 2, 1)).astype("f4")
    labels = np.argmax(model(images), axis=1)
    for epsilon in (0.01, 0.05, 0.1):
      attack = PGD(LInfinity(epsilon), epsilon / 4, 20)
      adversarial = attack(
        model, tf.constant(images), labels, hashing.stream_keys(tf.range(300))
      )
      robust = np.argmax(model(adversarial), axis=1) == labels
      intervals, both = (
        is_certified(model, images, labels, epsilon, crown=crown).numpy()
        for crown in (False, True)
      )
      self.assertFalse(np.any(both & ~robust))
      self.assertFalse(np.any(intervals & ~both))
      self.assertGreater(both.mean(), 0.2)
