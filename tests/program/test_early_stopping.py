"""Early stopping: which weights are kept, and when training ends."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import tensorflow as tf

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.base.errors import UserError
from dat_tf.models.averaging import WeightAverage
from dat_tf.program.early_stopping import EarlyStopping


class Script(tf.keras.callbacks.Callback):
  """Puts robust accuracies in place of those of an evaluation, and takes notes."""

  def __init__(self, accuracies):
    super().__init__()
    self._accuracies = accuracies
    self.weights, self.averages = {}, {}

  def on_epoch_end(self, epoch, logs=None):
    if self._accuracies[epoch] is not None:
      logs["val_robust_accuracy"] = self._accuracies[epoch]
    self.weights[epoch + 1] = self.model.classifier.get_weights()
    with self.model.final_weights():
      self.averages[epoch + 1] = self.model.classifier.get_weights()


class EarlyStoppingTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = os.path.join(tempfile.mkdtemp(dir=self.get_temp_dir()), "best")

  def train(self, accuracies, patience, *, first=0, average=False, is_chief=True):
    """Trains from epoch `first`, as a run does: epochs done, and what has seen them."""
    tf.keras.utils.set_random_seed(0)
    classifier = tf.keras.Sequential(
      [
        tf.keras.Input((2, 2, 1)),
        tf.keras.layers.Flatten(),
        tf.keras.layers.BatchNormalization(),
        tf.keras.layers.Dense(3),
      ]
    )
    model = AdversarialModel(
      classifier, attack=None, average=WeightAverage(classifier) if average else None
    )
    model.compile(optimizer=tf.keras.optimizers.legacy.SGD(0.5), run_eagerly=True)
    stopping = EarlyStopping(
      self.directory, classifier, patience=patience, is_chief=is_chief
    )
    script = Script(accuracies)
    rng = np.random.default_rng(first)
    data = tf.data.Dataset.from_tensors(
      (rng.random((12, 2, 2, 1), "f4"), rng.integers(0, 3, size=12))
    ).repeat()
    history = model.fit(
      data,
      steps_per_epoch=2,
      initial_epoch=first,
      epochs=len(accuracies),
      callbacks=[script, stopping],
      verbose=0,
    )
    return history.epoch[-1] + 1, stopping, script, model

  def assert_weights(self, model, expected):
    self.assertLen(expected, 6)
    for mine, theirs in zip(model.classifier.get_weights(), expected):
      self.assertAllEqual(mine, theirs)

  def test_training_ends_after_patience_and_the_best_weights_come_back(self):
    # The third is as good as the second, not better.
    epochs, stopping, script, model = self.train([0.2, 0.5, 0.5, 0.4, 0.9, 0.9], 2)
    self.assertEqual(epochs, 4)
    self.assertEqual(stopping.best_epoch, 2)
    self.assert_weights(model, script.weights[4])
    stopping.restore()
    self.assert_weights(model, script.weights[2])
    self.assertNotAllClose(script.weights[2][-2], script.weights[4][-2])
    self.assertTrue(stopping.is_over(4))
    self.assertFalse(stopping.is_over(3))

  def test_a_better_epoch_renews_patience_and_replaces_the_best(self):
    epochs, stopping, script, model = self.train([0.2, 0.1, 0.3, 0.2, 0.1, 0.9], 2)
    self.assertEqual((epochs, stopping.best_epoch), (5, 3))
    stopping.restore()
    self.assert_weights(model, script.weights[3])
    names = {name.split(".")[0] for name in os.listdir(self.directory)}
    self.assertEqual(names, {"checkpoint", "epoch-3"})

  def test_of_averaged_weights_the_averages_are_kept(self):
    _, stopping, script, model = self.train([0.2, 0.6, 0.5], 5, average=True)
    self.assertNotAllClose(script.averages[2][-2], script.weights[2][-2])
    self.assert_weights(model, script.weights[3])  # training goes on with its own
    stopping.restore()
    self.assert_weights(model, script.averages[2])

  def test_epochs_without_an_evaluation_count_but_decide_nothing(self):
    epochs, stopping, _, _ = self.train([None, 0.5, None, None, None, 0.4, 0.9], 3)
    self.assertEqual((epochs, stopping.best_epoch), (6, 2))

  def test_accuracy_0_is_better_than_none(self):
    self.assertEqual(self.train([0.0, 0.0], 3)[1].best_epoch, 1)

  def test_a_continued_run_knows_the_best(self):
    epochs, _, first, _ = self.train([0.2, 0.5, 0.4], 2)
    self.assertEqual(epochs, 3)
    # The fourth epoch is the second without a better accuracy.
    epochs, stopping, _, model = self.train([0.0] * 3 + [0.45, 0.9], 2, first=3)
    self.assertEqual((epochs, stopping.best_epoch), (4, 2))
    stopping.restore()
    self.assert_weights(model, first.weights[2])
    # With more patience it goes on, and finds a better one.
    epochs, stopping, third, model = self.train([0.0] * 4 + [0.6], 9, first=4)
    self.assertEqual((epochs, stopping.best_epoch), (5, 5))
    stopping.restore()
    self.assert_weights(model, third.weights[5])

  def test_a_run_that_was_over_is_known_to_be(self):
    self.train([0.5, 0.4, 0.3], 2)
    classifier = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
    stopping = EarlyStopping(self.directory, classifier, patience=2, is_chief=True)
    self.assertTrue(stopping.is_over(3))
    fresh = EarlyStopping("nowhere", classifier, patience=2, is_chief=True)
    self.assertFalse(fresh.is_over(3))

  def test_damaged_weights_are_told_and_stay(self):
    self.train([0.5, 0.4], 2)
    (index,) = (n for n in os.listdir(self.directory) if n.endswith(".index"))
    os.remove(os.path.join(self.directory, index))
    before = sorted(os.listdir(self.directory))
    with self.assertRaisesRegex(UserError, f"{index} is missing"):
      self.train([0.0] * 2 + [0.6], 2, first=2)
    self.assertEqual(sorted(os.listdir(self.directory)), before)

  def test_workers_other_than_the_chief_leave_no_file(self):
    _, stopping, _, _ = self.train([0.5, 0.4], 2, is_chief=False)
    self.assertEqual(stopping.best_epoch, 1)
    self.assertFalse(os.path.exists(self.directory))


if __name__ == "__main__":
  tf.test.main()
