"""Labels, weights and logits as users give them."""

from __future__ import annotations

import warnings

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import PGD, LInfinity
from dat_tf.base.errors import UserError
from dat_tf.data import examples
from dat_tf.evaluation import Evaluator, checks, probes, robustness

LABELS = np.array([2, 0, 1, 2, 1, 0, 0, 2])


def network(channels, activation=None):
  tf.keras.utils.set_random_seed(0)
  layers = tf.keras.layers
  return tf.keras.Sequential(
    [
      tf.keras.Input((2, 2, channels)),
      layers.Flatten(),
      layers.Dense(3, activation=activation),
    ]
  )


class Subclassed(tf.keras.Model):
  """Ends in a softmax that no layer shows."""

  def __init__(self):
    super().__init__()
    self._inner = network(1)

  def call(self, images, training=False):  # noqa: FBT002, Keras calls it so
    return tf.nn.softmax(self._inner(images))


def fitted(labels, weights=None, channels=1, classifier=None):
  """What `fit` and `evaluate` say of one batch of 8 images, and the weights then."""
  images = np.random.default_rng(0).random((8, 2, 2, channels), "f4")
  classifier = classifier or network(channels)
  model = AdversarialModel(classifier, PGD(LInfinity(0.1), 0.05, 1))
  model.compile(optimizer=tf.keras.optimizers.legacy.SGD(0.1))
  given = (images, labels) if weights is None else (images, labels, weights)
  dataset = tf.data.Dataset.from_tensors(given)
  history = model.fit(dataset, epochs=1, verbose=0).history
  figures = model.evaluate(dataset, verbose=0, return_dict=True)
  del history["reduction_ms"]
  return {**history, **figures}, classifier.get_weights()


class TrainingTest(tf.test.TestCase, parameterized.TestCase):
  def assert_same(self, found, expected):
    self.assertEqual(found[0], expected[0])
    for weight, known in zip(found[1], expected[1]):
      self.assertAllEqual(weight, known)

  @parameterized.parameters(1, 3)
  def test_class_numbers_of_any_kind_are_the_same(self, channels):
    expected = fitted(LABELS, channels=channels)
    for kind in ("u1", "u8", "f2", "f8"):
      self.assert_same(fitted(LABELS.astype(kind), channels=channels), expected)
    column = LABELS[:, None].astype("u1")
    self.assert_same(fitted(column, channels=channels), expected)

  def test_weights_of_any_kind_count_alike(self):
    weights = np.array([1, 2, 0, 1, 3, 1, 1, 0])
    expected = figures, trained = fitted(LABELS, weights.astype("f4"))
    for given in (weights, weights.astype("u1")[:, None], weights.astype("f8")):
      self.assert_same(fitted(LABELS, given), expected)
    images = np.random.default_rng(0).random((8, 4), "f4")
    right = (images @ trained[0] + trained[1]).argmax(axis=1) == LABELS
    share = (weights * right).sum() / weights.sum()
    self.assertAllClose(figures["accuracy"], share)

  def test_one_hot_rows_of_bytes(self):
    rows = np.eye(3)[LABELS]
    self.assert_same(fitted(rows.astype("u1")), fitted(rows.astype("f4")))

  def test_labels_of_several_shapes_one_after_the_other(self):
    # From the second on Keras traces the step for labels of any shape.
    images = np.random.default_rng(0).random((8, 2, 2, 1), "f4")
    classifier = network(1)
    model = AdversarialModel(classifier, PGD(LInfinity(0.1), 0.05, 1))
    model.compile(optimizer=tf.keras.optimizers.legacy.SGD(0.0))
    rows = np.eye(3)[LABELS]
    right = (classifier(images).numpy().argmax(axis=1) == LABELS).mean()
    for labels in (LABELS, LABELS[:, None], rows, LABELS.astype("u1"), rows, LABELS):
      given = tf.data.Dataset.from_tensors((images, labels))
      self.assertAllClose(model.fit(given, verbose=0).history["accuracy"], [right])
      figures = model.evaluate(given, verbose=0, return_dict=True)
      self.assertAllClose(figures["accuracy"], right)

  def test_shapes_that_mean_nothing(self):
    with self.assertRaisesRegex(UserError, "labels are of the shape"):
      fitted(np.zeros((8, 3, 1), "f4"))
    with self.assertRaisesRegex(UserError, "weights are of the shape"):
      fitted(LABELS, np.ones((8, 3), "f4"))
    with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "whole numbers"):
      fitted(LABELS + 0.5)

  def test_probabilities_are_not_taken_for_logits(self):
    for channels, classifier in (
      (1, network(1, "softmax")),
      (3, network(3, "softmax")),
      (1, Subclassed()),
    ):
      with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError, examples.PROBABILITIES
      ):
        fitted(LABELS, channels=channels, classifier=classifier)

  def test_logits_like_probabilities_in_one_image_pass(self):
    for rows in (
      [[0.2, 0.3, 0.5]],
      [[0.2, 0.3, 0.5], [0.2, 0.3, 0.6]],
      [[0.0] * 3] * 2,
    ):
      self.assertAllEqual(examples.checked_logits(tf.constant(rows)), np.float32(rows))


class BatchDependenceTest(tf.test.TestCase):
  """Batch-norm that always normalises by the batch, on one worker."""

  def classifier(self, channels, training):
    layers = tf.keras.layers
    inputs = tf.keras.Input((2, 2, channels))
    hidden = layers.BatchNormalization()(layers.Flatten()(inputs), training=training)
    return tf.keras.Model(inputs, layers.Dense(3)(hidden))

  def warnings(self, classify, images, batch_size):
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      evaluator = Evaluator(classify, {}, batch_size=batch_size)
      for _ in range(2):
        evaluator(images, np.zeros(len(images), int), np.arange(len(images)))
    return [w for w in caught if w.category is robustness.BatchDependence]

  def test_it_is_warned_of_once(self):
    for channels in (1, 3):
      images = np.random.default_rng(0).random((8, 2, 2, channels), "f4")
      for training, expected in ((True, 1), (False, 0)):
        model = self.classifier(channels, training)
        classify = lambda x, model=model: model(x, training=False)  # noqa: E731
        self.assertLen(self.warnings(classify, images, 4), expected)
        self.assertLen(self.warnings(classify, images[:3], 8), expected)
        found = probes.probe(
          classify,
          LInfinity(0.1),
          images,
          LABELS,
          example_ids=np.arange(8),
          batch_size=4,
        )
        names = [warning["check"] for warning in checks.from_probes(found)]
        self.assertEqual("batch_dependent" in names, bool(expected))

  def test_by_hand(self):
    images = np.random.default_rng(0).random((5, 2, 2, 1), "f4")
    classify = lambda x: tf.reshape(x, [len(x), 4]) + tf.reduce_mean(x)  # noqa: E731
    rows = images.reshape(5, 4)
    given, alone = rows[0] + rows.mean(), rows[0] + rows[0].mean()
    self.assertAllClose(
      robustness.batch_difference(classify, images),
      np.linalg.norm(given - alone) / np.linalg.norm(given),
    )

  def test_random_logits_are_another_matter(self):
    images = np.random.default_rng(0).random((4, 2, 2, 1), "f4")
    noisy = lambda x: tf.random.normal([len(x), 3])  # noqa: E731
    self.assertEqual(robustness.batch_difference(noisy, images), 0)


class EvaluatorTest(tf.test.TestCase, parameterized.TestCase):
  def evaluate(self, labels, channels=1):
    images = np.random.default_rng(0).random((8, 2, 2, channels), "f4")
    evaluator = Evaluator(network(channels), {}, batch_size=4)
    return evaluator(images, labels, np.arange(8))[0]

  @parameterized.product(kind=("u1", "i8", "f4"), channels=(1, 3), column=(0, 1))
  def test_class_numbers_of_any_kind(self, kind, channels, column):
    labels = LABELS.astype(kind)[:, None] if column else LABELS.astype(kind)
    expected = self.evaluate(LABELS, channels)
    self.assertAllEqual(self.evaluate(labels, channels), expected)

  def test_mistakes(self):
    for labels, message in (
      (np.eye(3)[LABELS], "argmax"),
      (LABELS + 0.5, "no whole numbers"),
      (LABELS + 1, "from 1 to 3, and the model has 3 classes"),
      (LABELS - 1, "from -1 to 1"),
    ):
      with self.assertRaisesRegex(UserError, message):
        self.evaluate(labels)


if __name__ == "__main__":
  tf.test.main()
