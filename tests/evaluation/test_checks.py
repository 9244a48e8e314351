"""Each warning is given of a model that is made for it, and none of a healthy one."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.attacks import L1, L2, LInfinity
from dat_tf.base.errors import UserError
from dat_tf.evaluation import checks, probes

SHAPE, CLASSES, COUNT = (4, 4, 1), 3, 50
EPSILON = 0.1
BALL = LInfinity(EPSILON)
counter = tf.Variable(0)


def _kernel():
  kernel = np.random.default_rng(0).normal(size=(16, CLASSES))
  return (kernel - kernel.mean(axis=0)).astype("f4")


def _images():
  return np.random.default_rng(1).uniform(size=(COUNT, *SHAPE)).astype("f4")


def linear(images):
  """All classes are equal in the middle of [0, 1]."""
  return tf.reshape(images - 0.5, [-1, 16]) @ _kernel()


def saturated(images):
  return 1e6 * linear(images)


def rounded(images):
  return linear(tf.round(images * 4.0) / 4.0)


def dropped(images):
  return linear(tf.nn.dropout(images, 0.1))


def _is_one_of(images, others):
  """bool [B, 1, 1, 1], whether an image is one of those others."""
  apart = tf.reduce_max(tf.abs(images[:, None] - others), axis=[2, 3, 4])
  return tf.reduce_any(apart < 1e-6, axis=1)[:, None, None, None]


def masked_away_from_the_images(images):
  """The gradient is there at the images that are probed, and nowhere else."""
  shown = _is_one_of(images, _images())
  return linear(tf.where(shown, images, tf.stop_gradient(images)))


def masked_at_a_wrong_image(images):
  """At the one that is classified wrong."""
  hidden = _is_one_of(images, _images()[7:8])
  return linear(tf.where(hidden, tf.stop_gradient(images), images))


def noisy_beside_large_logits(images):
  """Noise that is small beside the largest logits, not beside each image's own."""
  large = tf.reduce_mean(images, axis=[1, 2, 3]) > 0.6
  logits = linear(images) * tf.where(large, 1e7, 1.0)[:, None]
  return logits + 0.01 * tf.random.normal(tf.shape(logits))


def seldom_otherwise(images):
  """One call in eight gives other logits."""
  counter.assign_add(1)
  odd = tf.cast(counter % 8 == 0, tf.float32)
  return linear(images) + 0.1 * odd * tf.constant([1.0, 0.0, 0.0])


def reversed_gradient(images):
  return linear(2.0 * tf.stop_gradient(images) - images)


@functools.cache
def probed(classifier, ball=BALL):
  images = _images()
  labels = linear(images).numpy().argmax(axis=1)
  labels[7] = (labels[7] + 1) % CLASSES
  example_ids = 100 + np.arange(COUNT)
  return probes.probe(
    classifier, ball, images, labels, example_ids=example_ids, batch_size=32
  )


def names(warnings):
  return {warning["check"] for warning in warnings}


class FromProbesTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(BALL, L2(0.3), L1(1.0))
  def test_a_healthy_model_gives_no_warning(self, ball):
    self.assertEqual(checks.from_probes(probed(linear, ball)), [])

  @parameterized.parameters(
    (saturated, "zero_gradient"),
    (rounded, "zero_gradient"),
    (rounded, "robust_to_anything"),
    (masked_at_a_wrong_image, "zero_gradient"),
    (masked_away_from_the_images, "zero_gradient"),
    (dropped, "random_outputs"),
    (noisy_beside_large_logits, "random_outputs"),
    (seldom_otherwise, "random_outputs"),
    (reversed_gradient, "weaker_than_noise"),
    (reversed_gradient, "loss_does_not_rise"),
    (reversed_gradient, "robust_to_anything"),
  )
  def test_a_model_that_hides_its_gradient_is_told(self, classifier, check):
    warnings = checks.from_probes(probed(classifier))
    self.assertIn(check, names(warnings))
    for warning in warnings:
      self.assertRegex(warning["message"], r"^[A-Z][^\n]+\.$")

  def test_only_what_is_wrong_is_told(self):
    self.assertEqual(names(checks.from_probes(probed(dropped))), {"random_outputs"})
    self.assertNotIn("zero_gradient", names(checks.from_probes(probed(dropped))))
    self.assertNotIn(
      "random_outputs", names(checks.from_probes(probed(reversed_gradient)))
    )

  def test_no_probes_no_warnings(self):
    self.assertEqual(checks.from_probes({}), [])


class ProbesTest(tf.test.TestCase):
  def test_shapes_and_kinds(self):
    found = probed(linear)
    for name, shape, kind in (
      ("epsilons", (9,), "f"),
      ("epsilon_accuracy", (9,), "f"),
      ("noise_accuracy", (9,), "f"),
      ("steps", (7,), "i"),
      ("steps_accuracy", (7,), "f"),
      ("steps_loss", (7,), "f"),
      ("surface_gradient", (21,), "f"),
      ("surface_random", (21,), "f"),
      ("surface", (21, 21), "f"),
      ("gallery_image", (8, *SHAPE), "f"),
      ("gallery_adversarial", (8, *SHAPE), "f"),
      ("gallery_label", (8,), "i"),
      ("gallery_prediction", (8,), "i"),
      ("gallery_adversarial_prediction", (8,), "i"),
      ("gallery_confidence", (8,), "f"),
      ("gallery_adversarial_confidence", (8,), "f"),
    ):
      self.assertEqual(found[name].shape, shape, name)
      self.assertEqual(found[name].dtype, np.dtype(f"{kind}4"), name)
    self.assertAllClose(found["epsilons"][[0, 4, 8]], [0.0, EPSILON, 4 * EPSILON])
    self.assertAllEqual(found["steps"], [0, 1, 2, 5, 10, 20, 50])
    self.assertAllEqual(found["example_id"], 100 + np.arange(COUNT))

  def test_accuracies_are_those_of_a_linear_model(self):
    """Of which the distance to each boundary is known."""
    found = probed(linear)
    self.assertAlmostEqual(found["epsilon_accuracy"][0], 1 - 1 / COUNT, places=6)
    images = np.random.default_rng(1).uniform(size=(COUNT, *SHAPE)).astype("f4")
    labels = linear(images).numpy().argmax(axis=1)
    kernel = _kernel()
    for epsilon, accuracy in zip(found["epsilons"], found["epsilon_accuracy"]):
      stay = []
      for image, label in zip(images, labels):
        moves = []
        for other in set(range(CLASSES)) - {label}:
          way = (kernel[:, other] - kernel[:, label]).reshape(SHAPE)
          moved = np.clip(image + epsilon * np.sign(way), 0.0, 1.0)
          moves.append(((moved - 0.5) * way).sum() < 0)
        stay.append(all(moves))
      stay[7] = False
      # PGD may miss the better of two classes.
      self.assertBetween(accuracy - np.mean(stay), -1e-6, 0.05)
    self.assertAllGreaterEqual(
      found["noise_accuracy"] - found["epsilon_accuracy"], -1e-6
    )
    self.assertAllLessEqual(np.diff(found["epsilon_accuracy"]), 1e-6)
    # What is broken stays so, also where PGD leads back.
    for model in (linear, reversed_gradient):
      self.assertAllLessEqual(np.diff(probed(model)["steps_accuracy"]), 1e-6)

  def test_the_surface_is_the_loss_on_a_plane(self):
    found = probed(linear)
    images = np.random.default_rng(1).uniform(size=(COUNT, *SHAPE)).astype("f4")[:8]
    labels = linear(images).numpy().argmax(axis=1)
    labels[7] = (labels[7] + 1) % CLASSES

    def loss(moved):
      logits = linear(moved).numpy().astype("f8")
      return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(8), labels])

    middle = 10
    self.assertAllClose(found["surface"][middle, middle], loss(images), atol=1e-5)
    one_hot = np.eye(CLASSES)[labels]
    powers = np.exp(linear(images).numpy())
    slope = (powers / powers.sum(1, keepdims=True) - one_hot) @ _kernel().T
    moved = images + 2 * EPSILON * np.sign(slope).reshape(images.shape)
    expected = loss(np.clip(moved, 0, 1).astype("f4"))
    self.assertAllClose(found["surface"][-1, middle], expected, atol=1e-5)

  def test_the_gallery_begins_with_what_attacks_change(self):
    found = probed(linear)
    labels, clean = found["gallery_label"], found["gallery_prediction"]
    attacked = found["gallery_adversarial_prediction"]
    self.assertAllEqual(labels, clean)
    self.assertTrue((attacked != labels).all())
    change = np.abs(found["gallery_adversarial"] - found["gallery_image"])
    self.assertAllInRange(change, 0.0, EPSILON + 1e-6)
    self.assertAllEqual(
      linear(found["gallery_adversarial"]).numpy().argmax(axis=1), attacked
    )
    self.assertAllInRange(found["gallery_confidence"], 1 / CLASSES, 1.0)

  def test_logits_that_are_no_numbers(self):
    with self.assertRaisesRegex(UserError, "not finite"):
      probed(lambda images: linear(images) / 0.0)


def table(sequence, attack, count=1000):
  """Rows: all right as they are; which attack broke the first."""
  found_by = np.full(count, -1)
  found_by[: len(attack)] = attack
  return {
    "example_id": np.arange(count),
    "label": np.zeros(count, int),
    "prediction": np.zeros(count, int),
    "adversarial_prediction": (found_by >= 0).astype(int),
    "attack": found_by,
    "sequence": np.array(sequence),
  }


class FromOutcomesTest(tf.test.TestCase):
  def warned(self, probes=None, **tables):
    return names(checks.from_outcomes(tables, probes or {}, 10))

  def test_square_alone_breaks_some(self):
    suite = "apgd-ce", "apgd-t", "fab-t", "square"
    self.assertEqual(self.warned(aa=table(suite, [0, 1, 2, 3, 3])), set())
    self.assertEqual(
      self.warned(aa=table(suite, [0, 3, 3, 3])), {"black_box_is_stronger"}
    )

  def test_square_breaks_what_no_other_attack_does(self):
    square, pgd = table(["square"], [0] * 9), table(["pgd-5"], [0] * 3)
    self.assertEqual(self.warned(square=square, pgd=pgd), {"black_box_is_stronger"})
    self.assertEqual(self.warned(square=square), set())
    more = table(["pgd-5x9"], [0] * 9)
    self.assertEqual(self.warned(square=square, pgd=pgd, more=more), set())

  def test_another_models_images_break_what_no_other_attack_does(self):
    transferred, pgd = table(["transfer-pgd-5"], [0] * 9), table(["pgd-5"], [0] * 3)
    square = table(["square"], [0] * 5)
    self.assertEqual(self.warned(t=transferred, pgd=pgd), {"black_box_is_stronger"})
    both = {"square": square, "t": table(["transfer-square"], [0] * 9)}
    self.assertEqual(self.warned(**both, pgd=pgd), {"black_box_is_stronger"})
    self.assertEqual(self.warned(**both), set())

  def test_noise_breaks_what_an_attack_does_not(self):
    broken = np.arange(200) < 5
    noise = {"example_id": np.arange(200), "noise_broken": broken}
    noise["pgd_broken"] = np.zeros(200, bool)
    weak, strong = table(["fgsm"], [0]), table(["pgd-5"], [0] * 5)
    self.assertEqual(
      self.warned(noise, fgsm=weak, pgd=strong), {"fgsm_weaker_than_noise"}
    )

  def test_pgd_breaks_what_withstands_all_attacks(self):
    ids, none = np.arange(200), np.zeros(200, bool)
    probes = {"example_id": ids, "noise_broken": none, "pgd_broken": ids < 31}
    few, more = table(["fgsm"], [0] * 20), table(["deepfool"], [0] * 21)
    self.assertEqual(self.warned(probes, fgsm=few), {"pgd_is_stronger"})
    made, suite = "an attack made for", "autoattack"
    for name, advice in (("fgsm", suite), (suite, made), (f"{suite}-plus", made)):
      (warning,) = checks.from_outcomes({name: few}, probes, 10)
      self.assertIn(f"Evaluate {advice}", warning["message"])
    self.assertEqual(self.warned(probes, deepfool=more), set())
    self.assertEqual(self.warned(probes, fgsm=few, deepfool=more), set())

  def test_losses_of_more_classes(self):
    tables = {"autoattack": table(["apgd-ce", "apgd-t", "fab-t", "square"], [0] * 9)}
    tables["transfer-apgd-dlr"] = table(["transfer-apgd-dlr"], [0] * 9)
    for num_classes, too_few in (
      (2, {"few_classes_for_apgd-t", "few_classes_for_transfer-apgd-dlr"}),
      (3, {"few_classes_for_apgd-t"}),
      (4, set()),
    ):
      self.assertEqual(names(checks.from_outcomes(tables, {}, num_classes)), too_few)

  def test_a_model_that_guesses(self):
    rows, none = table(["pgd-5"], []), np.zeros(1000, bool)
    probes = {"example_id": np.arange(1000), "noise_broken": none, "pgd_broken": none}
    for wrong, expected in ((882, {"no_better_than_chance"}), (880, set())):
      # Two standard deviations above 10 % are 11.9 %.
      rows["prediction"] = rows["adversarial_prediction"] = np.arange(1000) < wrong
      self.assertEqual(self.warned(probes, pgd=rows), expected)
      self.assertEqual(self.warned(pgd=rows), expected)

  def test_nothing_was_attacked(self):
    self.assertEqual(self.warned(), set())
