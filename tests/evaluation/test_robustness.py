"""Tests of attacks on linear classifiers, whose smallest perturbations are known."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized
from linear_model import CLASSES, Linear, norms_of

from dat_tf.attacks import L1, L2, LInfinity, losses, make_attacks
from dat_tf.attacks.apgd import APGD, SparseAPGD
from dat_tf.attacks.ascent import Ascent
from dat_tf.attacks.ddn import DDN
from dat_tf.attacks.deepfool import DeepFool
from dat_tf.attacks.fab import FAB
from dat_tf.attacks.iterative import Examples
from dat_tf.attacks.jsma import JSMA
from dat_tf.attacks.penalized import LBFGS, CarliniWagner
from dat_tf.attacks.square import Square
from dat_tf.attacks.transfer import Transfer
from dat_tf.base.errors import UserError
from dat_tf.evaluation import Evaluator
from dat_tf.objectives.losses import cross_entropy

SHAPE = (5, 5, 1)
BALLS = (LInfinity, L2, L1)


class LinearTestCase(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.two, self.many = Linear(near_classes=2), Linear()

  def check_images(self, linear, ball, outcome):
    """Every image that is said to fool does, and has the norm that is said."""
    found = np.isfinite(outcome.norm)
    images = outcome.images[found]
    norms = norms_of(ball, images - linear.images[found])
    self.assertAllClose(norms, outcome.norm[found], rtol=0, atol=1e-6)
    self.assertAllInRange(images, 0.0, 1.0)
    predicted = linear(images).numpy().argmax(axis=1)
    self.assertAllEqual(predicted != linear.labels[found], np.full(found.sum(), True))
    self.assertAllEqual(outcome.broken, outcome.norm <= ball.epsilon + 1e-6)
    broken = outcome.broken[found]
    self.assertAllEqual(outcome.prediction[found][broken], predicted[broken])
    self.assertAllEqual(
      outcome.prediction[~outcome.broken], linear.labels[~outcome.broken]
    )

  def check_broken(self, linear, ball, name):
    epsilon = linear.epsilon(ball)
    outcome = linear.evaluate(ball(epsilon), name)
    self.check_images(linear, ball(epsilon), outcome)
    self.assertAllEqual(outcome.broken, linear.distances(ball) < epsilon)
    self.assertAllLessEqual(outcome.norm[outcome.broken], epsilon + 1e-6)

  def check_smallest(self, linear, ball, name, most):
    epsilon = linear.epsilon(ball)
    outcome = linear.evaluate(ball(epsilon), name)
    self.check_images(linear, ball(epsilon), outcome)
    ratio = outcome.norm / linear.distances(ball)
    self.assertAllInRange(ratio, 1.0 - 1e-4, most)


class EvaluatorTest(LinearTestCase):
  def test_what_is_nearer_than_epsilon_breaks_and_nothing_else(self):
    self.check_broken(self.two, LInfinity, "pgd-40x2")

  def test_what_is_wrong_as_it_is_stays_as_it_is(self):
    linear = self.two
    linear.labels[3] = 1 - linear.labels[3]
    evaluator = Evaluator(linear, {"none": ()}, batch_size=8)
    prediction, outcomes = evaluator(linear.images, linear.labels, linear.ids)
    self.assertAllEqual(np.flatnonzero(prediction != linear.labels), [3])
    none = outcomes["none"]
    self.assertAllEqual(none.norm, np.where(np.arange(30) == 3, 0, np.inf))
    self.assertAllEqual(none.prediction, prediction)
    self.assertAlmostEqual(none.robust_accuracy, 29 / 30)

  @parameterized.parameters(-0.1, 255.0, np.nan)
  def test_pixels_out_of_range(self, value):
    evaluator = Evaluator(self.two, {}, batch_size=8)
    self.two.images[7, 2, 2] = value
    with self.assertRaisesRegex(UserError, r"Pixels reach from .*\[0, 1\]"):
      evaluator(self.two.images, self.two.labels, self.two.ids)

  def test_labels_of_other_images(self):
    evaluator = Evaluator(self.two, {}, batch_size=8)
    with self.assertRaisesRegex(UserError, "30 images, 29 labels and 30 example_ids"):
      evaluator(self.two.images, self.two.labels[1:], self.two.ids)

  def test_all_names_make_attacks(self):
    names = ["fgsm", "pgd-20", "pgd-50x10", "bim-10", "mi-fgsm-10", "cw-pgd-20x2"]
    names += ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
    names += ["autoattack", "autoattack-plus", "autoattack-rand", "deepfool"]
    for ball in (LInfinity(0.1), L2(1.0), L1(10.0)):
      for name in names:
        for attack in make_attacks(name, ball).values():
          self.assertEqual(attack.ball, ball)
    for ball in (L2(1.0), L1(10.0)):
      self.assertEqual(make_attacks("jsma", ball)["jsma"].ball, ball)
    with self.assertRaisesRegex(UserError, r"ball in l1 or l2 \(`norm`"):
      make_attacks("jsma", LInfinity(0.1))
    for name in ("ddn", "cw-l2", "l-bfgs"):
      self.assertEqual(make_attacks(name, L2(1.0))[name].ball, L2(1.0))
      with self.assertRaisesRegex(UserError, r"ball in l2 \(`norm=l2`"):
        make_attacks(name, LInfinity(0.1))

  def test_what_each_name_stands_for(self):
    linf, l2 = LInfinity(0.1), L2(1.0)

    def ascent(*settings):
      return (Ascent(linf, *settings),)

    ce, margin = cross_entropy, losses.margin
    for name, expected in {
      "fgsm": ascent(0.1, 1, 1, 0.0, False, ce),
      "pgd-50x10": ascent(2.5 * 0.1 / 50, 50, 10, 0.0, True, ce),
      "cw-pgd-20": ascent(2.5 * 0.1 / 20, 20, 1, 0.0, True, margin),
      "bim-10": ascent(0.1 / 10, 10, 1, 0.0, False, ce),
      "mi-fgsm-10": ascent(0.1 / 10, 10, 1, 1.0, False, ce),
      "apgd-ce": (APGD(linf, ce, 100, 1, 0, 1),),
      "apgd-dlr": (APGD(linf, losses.dlr, 100, 1, 0, 1),),
      "apgd-t": (APGD(linf, losses.targeted_dlr, 100, 1, 9, 1),),
      "fab": (FAB(linf, 100, 0, True, 5),),
      "fab-t": (FAB(linf, 100, 9, True, 1),),
      "square": (Square(linf, 5000, 1, 0.8),),
      "autoattack-rand": (
        APGD(linf, ce, 100, 1, 0, 20),
        APGD(linf, losses.dlr, 100, 1, 0, 20),
      ),
      "deepfool": (DeepFool(linf, 50, 10),),
    }.items():
      self.assertEqual((*make_attacks(name, linf).values(),), expected, name)
    for name, expected in {
      "ddn": DDN(l2, steps=100, change=0.05, first_radius=1.0),
      "cw-l2": CarliniWagner(
        l2, steps=1000, weights=9, learning_rate=0.01, first_weight=1e-3
      ),
      "l-bfgs": LBFGS(l2, steps=60, weights=12, first_weight=1e-2, memory=5),
      "jsma": JSMA(l2, steps=None, targets=9),
    }.items():
      self.assertEqual(make_attacks(name, l2), {name: expected})

  def test_autoattack_has_the_official_order_and_budgets(self):
    for ball, apgd, restarts, targets in (
      (LInfinity(0.1), APGD, 1, 9),
      (L2(1.0), APGD, 1, 9),
      (L1(9.0), SparseAPGD, 5, 5),
    ):
      attacks = make_attacks("autoattack", ball)
      expected = {
        "apgd-ce": apgd(ball, cross_entropy, restarts=restarts),
        "apgd-t": apgd(ball, losses.targeted_dlr, targets=targets),
        "fab-t": FAB(ball, minimal=False),
        "square": Square(ball),
      }
      self.assertEqual([*attacks.items()], [*expected.items()])
      first, second, third, fourth = attacks.values()
      self.assertEqual(
        [a.num_rounds(10) for a in (first, second, third, fourth)],
        [restarts, targets, 9, 1],
      )
      self.assertEqual(
        [first.steps, second.steps, third.steps, fourth.steps], [100, 100, 100, 5000]
      )
      self.assertEqual(second.num_rounds(4), 3)

  @parameterized.parameters(LInfinity(0.1), L2(1.0))
  def test_autoattack_plus_has_the_official_order_and_budgets(self, ball):
    attacks = make_attacks("autoattack-plus", ball)
    expected = {
      "apgd-ce": APGD(ball, cross_entropy, steps=100, restarts=5),
      "apgd-dlr": APGD(ball, losses.dlr, steps=100, restarts=5),
      "fab": FAB(ball, steps=100, targets=0, minimal=False, restarts=5),
      "square": Square(ball, steps=5000, restarts=1),
      "apgd-t": APGD(ball, losses.targeted_dlr, steps=100, restarts=1, targets=9),
      "fab-t": FAB(ball, steps=100, targets=9, minimal=False, restarts=1),
    }
    self.assertEqual([*attacks.items()], [*expected.items()])
    rounds = [each.num_rounds(10) for each in attacks.values()]
    self.assertEqual(rounds, [5, 5, 5, 1, 9, 9])

  @parameterized.parameters(
    ("autoatack", "autoattack"),
    ("pgd20", "pgd-20"),
    ("cw", "cw-l2"),
    ("pgd-0", "pgd-20"),
    ("FGSM", "fgsm"),
  )
  def test_an_unknown_name_is_answered_with_the_nearest(self, name, nearest):
    with self.assertRaisesRegex(UserError, f"No attack is called {name};.*{nearest}"):
      make_attacks(name, L2(1.0))

  @parameterized.product(name=("apgd-dlr", "apgd-t"), num_classes=(2, 3))
  def test_dlr_of_few_classes(self, name, num_classes):
    self.check_broken(Linear(num_classes=num_classes), L2, name)

  def test_many_attacks_bring_no_warning_of_tracing(self):
    with mock.patch.object(tf.get_logger(), "warning") as warning:
      for steps in range(1, 8):
        self.two.evaluate(LInfinity(0.1), f"bim-{steps}")
    warning.assert_not_called()

  def test_chance_breaks_nothing(self):
    """A classifier that no image fools, and that errs now and then."""
    linear, broken = self.two, {}
    right = tf.one_hot(linear.labels[:8], CLASSES)

    def erring(images):
      errs = tf.random.uniform(tf.shape(images)[:1]) < 0.05
      # So that there is a gradient to follow.
      zero = 1e-6 * tf.reduce_sum(images, axis=[1, 2, 3])
      return tf.where(errs[:, None], 1.0 - right, right) + zero[:, None]

    for samples in (1, 20):
      attack = APGD(L2(0.1), losses.dlr, steps=20, samples=samples)
      evaluator = Evaluator(erring, {"attack": (attack,)}, batch_size=8)
      tf.random.set_seed(1)
      prediction, outcomes = evaluator(
        linear.images[:8], linear.labels[:8], np.arange(8)
      )
      broken[samples] = outcomes["attack"].broken[prediction == linear.labels[:8]]
    self.assertGreater(broken[1].sum(), 0)
    self.assertAllEqual(broken[20], np.zeros(len(broken[20]), bool))

  def test_logits_that_are_no_numbers_are_the_users_mistake(self):
    evaluator = Evaluator(lambda x: self.two(x) / 0.0, {}, batch_size=8)
    with self.assertRaisesRegex(UserError, "30 of 30 images as they are .* not finite"):
      evaluator(self.two.images, self.two.labels, self.two.ids)

  @parameterized.parameters("pgd-5", "apgd-ce", "square")
  def test_an_attack_that_finds_logits_that_are_no_numbers_has_not_failed(self, name):
    def classifier(images):
      darkest = tf.reduce_min(images, axis=[1, 2, 3])[:, None]
      return tf.one_hot([0], 5) + tf.math.log(darkest - 0.15)

    images = np.full((6, *SHAPE), 0.2, "f4")
    attacks = {name: make_attacks(name, LInfinity(0.1)).values()}
    with self.assertRaisesRegex(UserError, f"images under {name} are not finite"):
      Evaluator(classifier, attacks)(images, np.zeros(6, int), np.arange(6))


# Together they take minutes: graphs of many attacks are built.
@pytest.mark.long
class LinearTest(LinearTestCase):
  @parameterized.product(
    ball=BALLS,
    name=["apgd-ce", "apgd-dlr", "apgd-t", "pgd-40x2", "bim-40", "cw-pgd-40"]
    + ["autoattack-rand"],
  )
  def test_what_is_nearer_than_epsilon_breaks_and_nothing_else(self, ball, name):
    self.check_broken(self.two, ball, name)

  @parameterized.parameters(LInfinity, L2)
  def test_one_step_is_enough_where_the_gradient_is_the_same(self, ball):
    self.check_broken(self.two, ball, "fgsm")

  @parameterized.parameters(*BALLS)
  def test_momentum_loses_nothing(self, ball):
    self.check_broken(self.two, ball, "mi-fgsm-40")

  @parameterized.product(ball=BALLS, name=["apgd-t", "autoattack"])
  def test_so_it_is_with_many_classes_in_reach(self, ball, name):
    self.check_broken(self.many, ball, name)

  @parameterized.product(ball=BALLS, name=["fab", "fab-t", "deepfool"])
  def test_the_smallest_norm_is_found(self, ball, name):
    self.check_smallest(self.many, ball, name, 1.04)

  @parameterized.parameters("ddn", "l-bfgs")
  def test_the_smallest_l2_norm_is_found(self, name):
    self.check_smallest(self.two, L2, name, 1.05)

  def test_carlini_wagner_finds_the_smallest_norm(self):
    ball = L2(0.1)
    attack = CarliniWagner(ball, steps=100, weights=8, first_weight=0.01)
    outcome = self.two.attacked(attack)
    self.check_images(self.two, ball, outcome)
    ratio = outcome.norm / self.two.distances(L2)
    self.assertAllInRange(ratio, 1.0 - 1e-4, 1.05)

  @parameterized.parameters(*BALLS)
  def test_square_breaks_most_of_what_is_nearer_and_nothing_else(self, ball):
    epsilon = self.two.epsilon(ball)
    outcome = self.two.attacked(Square(ball(epsilon), steps=600))
    self.check_images(self.two, ball(epsilon), outcome)
    distances = self.two.distances(ball)
    self.assertAllLessEqual(distances[outcome.broken], epsilon)
    near = distances < 0.8 * epsilon
    self.assertGreater(near.sum(), 3)
    # The smallest window covers a third of the image: in l1 that is a loss.
    share = 0.5 if ball is L1 else 1.0
    self.assertGreaterEqual(outcome.broken[near].mean(), share)

  def test_jsma_sets_few_entries_to_one(self):
    steps = 8
    outcome = self.two.attacked(JSMA(L1(100.0), steps, targets=1))
    self.check_images(self.two, L1(100.0), outcome)
    self.assertAllEqual(outcome.broken, np.full(len(outcome.norm), True))
    changed = outcome.images != self.two.images
    self.assertAllEqual(outcome.images[changed], np.ones(changed.sum()))
    counts = changed.sum(axis=(1, 2, 3))
    self.assertAllInRange(counts, 2, 2 * steps)
    # The pairs that count most, one after the other.
    for index, count in enumerate(counts):
      label = self.two.labels[index]
      other = self.two.weights[:, 1 - label].astype("f8")
      rest, free, chosen = self.two.weights.sum(axis=1) - other, np.ones(25, bool), []
      for _ in range(count // 2):
        up, down = other[:, None] + other, rest[:, None] + rest
        taken = (up > 0) & (down < 0) & free & free[:, None] & ~np.eye(25, dtype=bool)
        pair = np.argmax(np.where(taken, -up * down, 0))
        chosen += [pair // 25, pair % 25]
        free[chosen] = False
      self.assertAllEqual(np.sort(chosen), np.flatnonzero(changed[index].ravel()))

  def test_eot_sees_through_random_outputs(self):
    """The gradient of one call points anywhere; the mean of many points the way."""
    linear, epsilon = self.two, self.two.epsilon(L2)
    noise = 10.0 * np.random.default_rng(0).normal(size=(4096, 25)).astype("f4")

    def noisy(images):
      flat = tf.reshape(images, [-1, np.prod(SHAPE)])
      rows = tf.random.uniform(tf.shape(flat)[:1], 0, len(noise), tf.int32)
      turn = tf.gather(noise, rows)
      # No change of the logits, but of their gradient.
      zero = flat - tf.stop_gradient(flat)
      extra = tf.reduce_sum(zero * turn, axis=1, keepdims=True)
      return linear(images) + extra * tf.one_hot([0], CLASSES)

    broken = {}
    for samples in (1, 20):
      attack = APGD(L2(epsilon), losses.dlr, steps=20, samples=samples)
      evaluator = Evaluator(noisy, {"attack": (attack,)}, batch_size=8)
      outcome = evaluator(linear.images, linear.labels, linear.ids)[1]["attack"]
      broken[samples] = outcome.broken.sum()
    self.assertGreater(broken[20], 2 * broken[1])

  def test_a_transfer_attack_aims_by_the_logits_of_the_source(self):
    class Spy:
      """Remembers the logits that it is shown."""

      def __init__(self, attack):
        self.attack, self.seen = attack, []

      def start(self, examples):
        self.seen.append(examples.logits)
        return self.attack.start(examples)

      def step(self, classifier, examples, state, k):
        self.seen.append(examples.logits)
        return self.attack.step(classifier, examples, state, k)

      def __getattr__(self, name):
        return getattr(self.attack, name)

    spy = Spy(make_attacks("pgd-2", L2(1.0))["pgd-2"])
    source = lambda x: self.two(x)[:, ::-1]  # noqa: E731
    attack, images = Transfer(spy, source), tf.constant(self.two.images)
    zeros = tf.zeros(len(images), tf.int32)
    keys = tf.zeros([len(images), 2], tf.uint32)
    examples = Examples(images, zeros, keys, self.two(images), zeros)
    state = attack.start(examples)
    attack.step(self.two, examples, state, zeros)
    self.assertLen(spy.seen, 2)
    for logits in spy.seen:
      self.assertAllEqual(logits, source(images))

  def test_a_transfer_attack_sees_only_the_source(self):
    ball = L2(self.two.epsilon(L2))
    direct = self.two.evaluate(ball, "pgd-20")
    attack = make_attacks("pgd-20", ball)["pgd-20"]
    of_itself = self.two.attacked(Transfer(attack, self.two))
    self.check_images(self.two, ball, of_itself)
    self.assertAllEqual(of_itself.broken, direct.broken)
    # Of a model that sees only the first rows, they are perturbed alone.
    mask = np.arange(5)[:, None, None] < 2
    of_another = self.two.attacked(Transfer(attack, lambda x: self.two(x * mask)))
    self.check_images(self.two, ball, of_another)
    self.assertGreater(of_another.broken.sum(), 0)
    self.assertLess(of_another.broken.sum(), direct.broken.sum())
    noise = make_attacks("bim-20", ball)["bim-20"]
    moved = self.two.attacked(Transfer(noise, lambda x: self.two(x * mask))).images
    self.assertAllEqual((moved - self.two.images)[:, 2:], 0 * moved[:, 2:])
