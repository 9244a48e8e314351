"""Training passes: free training and YOPO against NumPy, and what each costs."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from numpy_attacks import numeric_gradient, project, steepest

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import L2, PGD, YOPO, Free, LInfinity, fgsm
from dat_tf.attacks.yopo import split
from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.data.mixture import replayed
from dat_tf.models import make_model
from dat_tf.objectives import TRADES, AdversarialTraining, WeightPerturbation

SIZE, CLASSES = 5, 4
SGD = tf.keras.optimizers.legacy.SGD


class Counting(tf.keras.layers.Layer):
  """Passes images on, and counts how many go forward and how many back."""

  def __init__(self):
    super().__init__()
    self.forward = self.backward = 0

  def call(self, images):
    @tf.custom_gradient
    def count(x):
      self.forward += x.shape[0] or 0

      def gradient(upstream):
        self.backward += x.shape[0] or 0
        return upstream

      return tf.identity(x), gradient

    return count(images)


def network(*, counting=False):
  """A convolution, then a dense layer; counters before the one and the other."""
  layers = tf.keras.layers
  inputs = tf.keras.Input((4, 4, 1))
  x = first = Counting() if counting else layers.Activation("linear")
  x = layers.Conv2D(3, 3, padding="same", name="stem")(first(inputs))
  rest = Counting() if counting else layers.Activation("linear")
  x = layers.Flatten()(layers.Activation("tanh")(rest(x)))
  return tf.keras.Model(inputs, layers.Dense(CLASSES)(x)), first, rest


class PassesTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    self.images = rng.uniform(size=(SIZE, 4, 4, 1)).astype("f4")
    self.other = rng.uniform(size=(SIZE, 4, 4, 1)).astype("f4")
    self.labels = rng.integers(0, CLASSES, size=SIZE)

  def data(self, *images, replays=1):
    elements = {
      "image": tf.constant(np.stack(images)),
      "label": tf.constant(np.stack([self.labels] * len(images))),
      "weight": tf.ones([len(images), SIZE]),
      "example_id": tf.reshape(
        tf.range(len(images) * SIZE, dtype=tf.int64), [-1, SIZE]
      ),
      "epoch": tf.zeros([len(images), SIZE], tf.int64),
    }
    return replayed(tf.data.Dataset.from_tensor_slices(elements), replays)

  def gradients(self, classifier, clean, moved, clean_weight):
    """Of the mean loss, by the weights and by the moved images; loss of each image."""
    moved = tf.constant(moved, tf.float32)
    with tf.GradientTape() as tape:
      tape.watch(moved)
      losses = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(self.labels, classifier(x))
        for x in (tf.constant(clean), moved)
      ]
      loss = tf.reduce_mean(clean_weight * losses[0] + losses[1])
    *weights, slope = tape.gradient(loss, [*classifier.trainable_variables, moved])
    return weights, slope.numpy(), float(loss)

  @parameterized.product(ball=[LInfinity(0.3), L2(1.5)], clean_weight=[0.0, 1.0])
  def test_free_training(self, ball, clean_weight):
    classifier, _, _ = network()
    reference, _, _ = network()
    reference.set_weights(classifier.get_weights())
    delta, losses = np.zeros_like(self.images, "f8"), []
    for x in (self.images, self.images, self.other, self.other):
      moved = project(ball, x.astype("f8"), x + delta)
      weights, slope, loss = self.gradients(reference, x, moved, clean_weight)
      for variable, g in zip(reference.trainable_variables, weights):
        variable.assign_sub(g)
      step = 0.4 * ball.epsilon * steepest(ball, slope.astype("f8"))
      delta = project(ball, x.astype("f8"), moved + step) - x
      losses.append(loss)
    model = AdversarialModel(
      classifier,
      Free(ball, (SIZE, 4, 4, 1), step_size=0.4 * ball.epsilon),
      AdversarialTraining(clean_weight),
      evaluation_attack=fgsm(ball),
    )
    model.compile(optimizer=SGD(1.0))
    data = self.data(self.images, self.other, replays=2)
    logs = model.fit(data, verbose=0).history
    for mine, theirs in zip(classifier.get_weights(), reference.get_weights()):
      self.assertAllClose(mine, theirs, rtol=0, atol=1e-5)
    self.assertAllClose(logs["loss"], [np.mean(losses)], rtol=1e-5)

  def test_the_step_of_free_training_is_epsilon_unless_given(self):
    free = Free(LInfinity(0.1), (SIZE, 4, 4, 1))
    self.assertEqual(free._step_size, 0.1)

  @parameterized.product(ball=[LInfinity(0.3), L2(1.5)], clean_weight=[0.0, 1.0])
  def test_yopo(self, ball, clean_weight):
    classifier, _, _ = network()
    first, _ = split(classifier)
    keys = hashing.stream_keys(0, 0, tf.range(SIZE))
    start = ball.random_start(keys, tf.constant(self.images)).numpy()
    sums, losses, moved = None, [], start.astype("f8")
    of_first = [np.zeros(w.shape) for w in classifier.get_weights()[:2]]
    for _ in range(3):
      weights, _, loss = self.gradients(classifier, self.images, moved, clean_weight)
      sums = weights if sums is None else [a + b for a, b in zip(sums, weights)]
      losses.append(loss)
      # p: by differences of the loss of what follows the first layer.
      kernel, bias = (w.astype("f8") for w in classifier.get_weights()[:2])
      dense, offset = (w.astype("f8") for w in classifier.get_weights()[2:])

      def features(x, kernel=kernel, bias=bias):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        parts = [
          x[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3)
        ]
        return sum(parts) + bias

      def rest(z, dense=dense, offset=offset):
        logits = np.tanh(z).reshape(len(z), -1) @ dense + offset
        log_sum = np.log(np.exp(logits).sum(axis=1))
        return log_sum - logits[np.arange(len(z)), self.labels]

      p = numeric_gradient(rest, features(moved))
      for _ in range(4):
        hamiltonian = lambda x, p=p: (p * features(x)).sum(axis=(1, 2, 3))  # noqa: E731
        slope = numeric_gradient(hamiltonian, moved)
        moved = project(
          ball,
          self.images.astype("f8"),
          moved + 0.3 * ball.epsilon * steepest(ball, slope),
        )
      # H's gradient by the first layer's kernel and bias, where the pass ends.
      x = np.pad(moved, ((0, 0), (1, 1), (1, 1), (0, 0)))
      for i in range(3):
        for j in range(3):
          part = np.einsum("bhwc,bhwd->cd", x[:, i : i + 4, j : j + 4], p) / SIZE
          of_first[0][i, j] += part
      of_first[1] += p.sum(axis=(0, 1, 2)) / SIZE
    sums = [g.numpy() for g in sums]
    sums[:2] = [g + h for g, h in zip(sums, of_first)]
    expected = [w - g / 3 for w, g in zip(classifier.get_weights(), sums)]
    model = AdversarialModel(
      classifier,
      YOPO(classifier, ball, 0.3 * ball.epsilon, passes=3, inner_steps=4),
      AdversarialTraining(clean_weight),
      evaluation_attack=fgsm(ball),
    )
    model.compile(optimizer=SGD(1.0))
    logs = model.fit(self.data(self.images), verbose=0).history
    for mine, theirs in zip(classifier.get_weights(), expected):
      self.assertAllClose(mine, theirs, rtol=0, atol=1e-5)
    self.assertAllClose(logs["loss"], [np.mean(losses)], rtol=1e-5)

  @parameterized.parameters(
    # Through all layers, forward and back: the attack's images, and those that train,
    # or are only shown. Through the first layer, forward: those, and YOPO's own.
    ("fgsm", 1.0, 1 + 2, 1 + 2, 1 + 2),
    ("pgd-10", 1.0, 10 + 2, 10 + 2, 10 + 2),
    ("free", 1.0, 2, 2, 2),
    ("free", 0.0, 1 + 1, 1, 1 + 1),
    ("yopo-5-3", 1.0, 5 * 2, 5 * 2, 5 * (2 + 3 + 1)),
    ("yopo-5-3", 0.0, 5 * (1 + 1), 5, 5 * (1 + 1 + 3 + 1)),
  )
  def test_the_passes_are_those_of_the_papers(
    self, name, clean_weight, forward, backward, through_first
  ):
    ball = LInfinity(0.1)
    classifier, first, rest = network(counting=True)
    attack = {
      "fgsm": fgsm(ball),
      "pgd-10": PGD(ball, 0.02, 10),
      "free": Free(ball, (SIZE, 4, 4, 1)),
      "yopo-5-3": YOPO(classifier, ball, 0.02),
    }[name]
    model = AdversarialModel(
      classifier,
      attack,
      AdversarialTraining(clean_weight),
      evaluation_attack=fgsm(ball),
    )
    model.compile(optimizer=SGD(0.1), run_eagerly=True)
    first.forward = rest.forward = rest.backward = 0  # those of building
    model.fit(self.data(self.images), verbose=0)
    self.assertEqual(rest.forward, forward * SIZE)
    self.assertEqual(rest.backward, backward * SIZE)
    self.assertEqual(first.forward, through_first * SIZE)

  def test_yopo_refuses_what_it_cannot_split(self):
    layers = tf.keras.layers
    inputs = tf.keras.Input((4, 4, 1))
    both = layers.Concatenate()([layers.Conv2D(2, 3, padding="same")(inputs), inputs])
    passed_by = tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(both)))
    nested = tf.keras.Model(inputs, network()[0](inputs))
    without = tf.keras.Model(inputs, layers.Flatten()(inputs))

    class Subclassed(tf.keras.Model):
      def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

      def call(self, images):
        return self.dense(layers.Flatten()(images))

    subclassed = Subclassed()
    subclassed(inputs)
    for classifier, reason in (
      (passed_by, "also passes by"),
      (nested, "inside the network"),
      (without, "no layer with weights"),
      (subclassed, "no graph of layers"),
    ):
      with self.assertRaisesRegex(UserError, f"YOPO cannot split.*{reason}.*choose"):
        YOPO(classifier, LInfinity(0.1), 0.02)

  def test_own_networks_can_be_split(self):
    images = np.random.default_rng(0).random((2, 8, 8, 1), "f4")
    for name in ("small_cnn", "preact_resnet18"):
      classifier = make_model(name, (8, 8, 1), 3)
      first, rest = split(classifier)
      self.assertAllClose(rest(first(images)), classifier(images))
      self.assertLen(first.trainable_weights, 1)

  def test_other_objectives(self):
    ball = LInfinity(0.1)
    for objective in (TRADES(), WeightPerturbation(AdversarialTraining(0.0))):
      classifier, _, _ = network()
      yopo = YOPO(classifier, ball, 0.02, passes=2, inner_steps=2)
      for attack in (Free(ball, (SIZE, 4, 4, 1)), yopo):
        model = AdversarialModel(
          classifier, attack, objective, evaluation_attack=fgsm(ball)
        )
        model.compile(optimizer=SGD(0.1))
        before = classifier.get_weights()
        logs = model.fit(self.data(self.images, self.other), verbose=0).history
        self.assertAllInRange(logs["loss"], 0.1, 10)
        self.assertNotAllClose(before[0], classifier.get_weights()[0])

  def test_what_only_trains_needs_another_attack_to_evaluate_with(self):
    free = Free(LInfinity(0.1), (SIZE, 4, 4, 1))
    with self.assertRaisesRegex(UserError, "Free only trains"):
      AdversarialModel(network()[0], free)
    with self.assertRaisesRegex(UserError, "in parts"):
      AdversarialModel(
        network()[0], free, evaluation_attack=fgsm(LInfinity(0.1)), accumulation=2
      )
