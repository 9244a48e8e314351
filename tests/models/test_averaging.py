"""Averages of weights."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.models import make_model
from dat_tf.models.averaging import WeightAverage

SGD = tf.keras.optimizers.legacy.SGD


class WeightAverageTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters((0.8, 0, 1), (1.0, 0, 1), (1.0, 3, 2), (0.5, 2, 3))
  def test_the_average_of_a_run(self, decay, start, every):
    tf.keras.utils.set_random_seed(0)
    classifier = make_model("small_cnn", (8, 8, 1), 3)  # with statistics
    average = WeightAverage(classifier, decay, start, every)
    model = AdversarialModel(classifier, attack=None, average=average)
    model.compile(optimizer=SGD(0.1))
    rng = np.random.default_rng(0)
    data = tf.data.Dataset.from_tensor_slices(
      (rng.random((40, 8, 8, 1), "f4"), rng.integers(0, 3, size=40))
    ).batch(4, drop_remainder=True)
    history = []
    model.fit(
      data,
      verbose=0,
      callbacks=[
        tf.keras.callbacks.LambdaCallback(
          on_train_batch_end=lambda batch, logs: history.append(
            classifier.get_weights()
          )
        )
      ],
    )
    counted = history[start::every]
    expected = counted[0]
    for n, weights in enumerate(counted[1:], 1):
      d = min(decay, n / (n + 1))
      expected = [d * a + (1 - d) * w for a, w in zip(expected, weights)]
    if decay == 1:
      for a, *all_of_it in zip(expected, *counted):
        self.assertAllClose(a, np.mean(all_of_it, axis=0), rtol=1e-4, atol=1e-6)
    with average.applied():
      for mine, theirs in zip(classifier.get_weights(), expected):
        self.assertAllClose(mine, theirs, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(classifier.get_weights(), history[-1]):
      self.assertAllEqual(mine, theirs)

  def test_before_its_start_the_weights_stay(self):
    classifier = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)])
    before = classifier.get_weights()
    average = WeightAverage(classifier, start=10)
    average.update(tf.constant(10))
    with average.applied():
      self.assertAllEqual(classifier.get_weights()[0], before[0])

  def test_the_weights_come_back_after_an_error(self):
    classifier = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)])
    first = classifier.get_weights()
    average = WeightAverage(classifier)
    average.update(tf.constant(1))
    classifier.set_weights([w + 1 for w in first])
    with self.assertRaises(KeyError), average.applied():
      self.assertAllEqual(classifier.get_weights()[0], first[0])
      raise KeyError
    self.assertAllEqual(classifier.get_weights()[0], first[0] + 1)
