"""What the training step does with maximisers that change, and with parts."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
import unittest

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import L2, PGD, LInfinity, Scheduled
from dat_tf.base.errors import UserError

CLASSES = 4
SGD = tf.keras.optimizers.legacy.SGD


class TrainStepTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.images = rng.uniform(size=(12, 4, 4, 1)).astype("f4")
    self.labels = rng.integers(0, CLASSES, size=12)

  def train(
    self, attack, *, epochs=3, rate=0.1, weights=None, size_known=True, **kwargs
  ):
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    classifier = tf.keras.Sequential(
      [
        tf.keras.Input((4, 4, 1)),
        layers.Conv2D(3, 3, padding="same", activation="tanh"),
        layers.Flatten(),
        layers.Dense(CLASSES),
      ]
    )
    model = AdversarialModel(classifier, attack, **kwargs)
    model.compile(optimizer=SGD(rate))
    elements = {
      "image": self.images,
      "label": self.labels,
      "weight": np.ones(12, "f4") if weights is None else weights,
      "example_id": np.arange(12),
      "epoch": np.zeros(12, "i8"),
    }
    data = tf.data.Dataset.from_tensor_slices(elements).batch(
      12, drop_remainder=size_known
    )
    logs = model.fit(data, epochs=epochs, verbose=0).history
    return classifier.get_weights(), logs

  def test_the_maximiser_is_that_of_the_step(self):
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Spy(PGD, Scheduled):
      def for_batch(self, batch):
        tf.py_function(
          lambda *x: seen.append([int(x[0]), x[1].numpy().tolist()]),
          [batch.step, batch.example_ids],
          [],
        )
        return PGD(self.ball, self.step_size, self.steps)

    spied, _ = self.train(Spy(LInfinity(0.1), 0.05, 2))
    plain, _ = self.train(PGD(LInfinity(0.1), 0.05, 2))
    self.assertEqual(seen, [[step, list(range(12))] for step in range(3)])
    for a, b in zip(spied, plain):
      self.assertAllEqual(a, b)

  def test_an_attack_that_changes_says_so_by_its_class(self):
    class Duck:
      def for_batch(self, batch):
        raise AssertionError

      def __call__(self, classifier, images, *_):
        return images

    with self.assertRaisesRegex(UserError, "Duck has for_batch: .* Scheduled"):
      self.train(Duck())

  def test_parts_are_compiled_together(self):
    traces = []

    def attack(classifier, images, *_):
      traces.append(images.shape)
      return images

    self.train(attack, epochs=1, jit_compile=True, accumulation=4)
    self.assertLessEqual(len(traces), 2)  # Keras traces a step twice

  @parameterized.parameters(True, False)
  def test_parts_add_up_to_the_whole(self, size_known):
    weights = np.array([1, 1, 0.5, 1, 1, 2, 1, 1, 1, 1, 0, 0], "f4")
    attack = PGD(L2(0.4), 0.1, 2)
    whole, whole_logs = self.train(attack, weights=weights)
    for parts in (3, 12):
      cut, logs = self.train(
        attack, weights=weights, size_known=size_known, accumulation=parts
      )
      for a, b in zip(cut, whole):
        self.assertAllClose(a, b, rtol=0, atol=1e-6)
      for name in ("loss", "robust_accuracy", "gradient_norm"):
        self.assertAllClose(logs[name], whole_logs[name], rtol=1e-5)
    if size_known:
      with self.assertRaisesRegex(UserError, "12 images .* 5 equal parts"):
        self.train(attack, accumulation=5)

  @unittest.skipUnless(sys.platform == "linux", "needs /proc")
  def test_parts_are_not_in_memory_together(self):
    code = """
      import re, sys
      from dat_tf.adversarial_model import AdversarialModel
      from dat_tf.attacks import LInfinity, fgsm
      from dat_tf.models.small_cnn import small_cnn
      import tensorflow as tf

      model = AdversarialModel(
        small_cnn((28, 28, 1), 10), fgsm(LInfinity(0.1)), accumulation=int(sys.argv[1])
      )
      model.compile(optimizer=tf.keras.optimizers.legacy.SGD(0.1))
      batch = tf.random.uniform((1024, 28, 28, 1)), tf.zeros(1024, tf.int64)

      def peak():  # kB, of this program alone
        return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])

      before = peak()
      model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
      print(peak() - before)
    """

    def growth(parts):
      command = [sys.executable, "-c", textwrap.dedent(code), str(parts)]
      return int(subprocess.run(command, capture_output=True, check=True).stdout)

    self.assertLess(growth(8), 0.5 * growth(1))

  @parameterized.parameters(True, False)
  def test_a_clipped_gradient_is_as_long_as_allowed(self, size_known):
    free, logs = self.train(None, epochs=1)
    norm = logs["gradient_norm"][0]
    self.assertGreater(norm, 0.2)
    start, _ = self.train(None, epochs=1, rate=0.0)
    clipped, logs = self.train(
      None, epochs=1, size_known=size_known, clip_norm=0.5 * norm
    )
    self.assertAllClose(logs["gradient_norm"], [0.5 * norm], rtol=1e-5)
    for a, b, c in zip(start, free, clipped):
      self.assertAllClose(c - a, 0.5 * (b - a), rtol=0, atol=1e-6)
    unclipped, _ = self.train(None, epochs=1, clip_norm=2 * norm)
    for a, b in zip(free, unclipped):
      self.assertAllClose(a, b, rtol=0, atol=1e-7)

  def test_batches_are_prepared_before_the_attack(self):
    darker = lambda batch: batch._replace(images=0.5 * batch.images)  # noqa: E731
    prepared, _ = self.train(PGD(LInfinity(0.1), 0.05, 2), prepare=darker)
    self.images = 0.5 * self.images
    expected, _ = self.train(PGD(LInfinity(0.1), 0.05, 2))
    for a, b in zip(prepared, expected):
      self.assertAllClose(a, b, rtol=0, atol=1e-6)
