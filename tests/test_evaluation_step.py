"""What `evaluate` reports of an adversarial model."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from small_models import (
  batch_of,
  dataset_of,
  hidden_classifier,
  linear_classifier,
  softmax,
)

from dat_tf import objectives
from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import PGD, LInfinity
from dat_tf.models.averaging import WeightAverage

SGD = tf.keras.optimizers.legacy.SGD


class EvaluationTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    self.images = rng.uniform(size=(40, 4, 1, 1)).astype("f4")
    self.labels = rng.integers(0, 3, size=40)

  def test_it_is_of_the_average_and_leaves_the_weights(self):
    classifier = linear_classifier()
    model = AdversarialModel(
      classifier, attack=None, average=WeightAverage(classifier, decay=1.0)
    )
    model.compile(optimizer=SGD(3.0))
    after_steps = []
    note = tf.keras.callbacks.LambdaCallback(
      on_train_batch_end=lambda *_: after_steps.append(classifier.get_weights())
    )
    data = dataset_of(batch_of(self.images, self.labels))
    model.fit(data.repeat(3), callbacks=[note], verbose=0)
    figures = model.evaluate(data, return_dict=True, verbose=0)
    for mine, theirs in zip(classifier.get_weights(), after_steps[-1]):
      self.assertAllEqual(mine, theirs)
    self.assertLen(after_steps, 3)

    def loss(kernel, bias):
      probabilities = softmax(self.images.reshape(40, 4) @ kernel + bias)
      return -np.mean(np.log(probabilities[np.arange(40), self.labels]))

    kernel, bias = (np.mean(weights, axis=0) for weights in zip(*after_steps))
    self.assertAllClose(figures["loss"], loss(kernel, bias), rtol=1e-5)
    self.assertNotAllClose(figures["loss"], loss(*after_steps[-1]), rtol=1e-2)

  def test_certified_accuracy_counts_no_padding_and_is_below_the_robust_one(self):
    epsilon = 0.1
    classifier = hidden_classifier()
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 8))  # no unit, and no class, is always there
    classifier.set_weights(
      [kernel, -0.5 * kernel.sum(axis=0), rng.normal(size=(8, 3)), np.zeros(3)]
    )
    labels = np.argmax(classifier(self.images), axis=1)
    labels[:8] = (labels[:8] + 1) % 3
    expected = objectives.is_certified(classifier, self.images, labels, epsilon).numpy()
    self.assertBetween(expected.mean(), 0.2, 0.6)
    # Certified ones alone fill up the batch.
    padding = np.flatnonzero(expected)[:5]
    batch = batch_of(
      np.concatenate([self.images, self.images[padding]]),
      np.concatenate([labels, labels[padding]]),
      [1.0] * 40 + [0.0] * 5,
    )
    attack = PGD(LInfinity(epsilon), epsilon / 4, 10)
    for objective in (
      objectives.CertifiedTraining(epsilon),
      objectives.AdversarialTraining(),
    ):
      model = AdversarialModel(
        classifier, attack=None, objective=objective, evaluation_attack=attack
      )
      model.compile(optimizer=SGD(0.1))
      # Over two batches, and afresh in each evaluation.
      data = dataset_of(batch, batch)
      for _ in range(2):
        figures = model.evaluate(data, return_dict=True, verbose=0)
      if isinstance(objective, objectives.CertifiedTraining):
        self.assertAllClose(figures["certified_accuracy"], expected.mean(), atol=1e-6)
        self.assertLessEqual(figures["certified_accuracy"], figures["robust_accuracy"])
      else:
        self.assertNotIn("certified_accuracy", figures)
