"""What the flags of a run stand for: attacks, objectives, and what goes around them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf import attacks, objectives
from dat_tf import config as config_lib
from dat_tf.attacks import L1, L2, PGD, LInfinity
from dat_tf.objectives import Batch, mixing

EPSILON, STEPS_PER_EPOCH = 0.125, 20
BALL = LInfinity(EPSILON)
CLEAN = objectives.CleanTraining()
SHAPE = (6, 4, 4, 1)


def parse(**values):
  given = {"model_dir": "m", "train_data": "a", "test_data": "b", "epsilon": EPSILON}
  given.update(values)
  return config_lib.parse(["run_dat.py", *(f"--{n}={v}" for n, v in given.items())])


def network():
  inputs = tf.keras.Input(SHAPE[1:])
  x = tf.keras.layers.Conv2D(2, 3, name="first")(inputs)
  return tf.keras.Model(inputs, tf.keras.layers.Dense(3)(tf.keras.layers.Flatten()(x)))


def make_attack(**values):
  return config_lib.make_attack(
    parse(**values), config_lib.Trained(network(), SHAPE, STEPS_PER_EPOCH)
  )


class AttackTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ({"attack": "pgd"}, PGD(BALL, 0.03125, 10)),
    ({"attack": "pgd", "norm": "l2", "epsilon": 2}, PGD(L2(2.0), 0.5, 10)),
    (
      {"attack": "pgd", "norm": "l1", "epsilon": 9, "step_size": 3, "attack_steps": 7},
      PGD(L1(9.0), 3.0, 7),
    ),
    ({"attack": "bim", "attack_steps": 5}, PGD(BALL, 0.0625, 5, attacks.from_image)),
    ({"attack": "fgsm"}, PGD(BALL, 0.15625, 1)),
    ({"attack": "fgsm", "step_size": 0.5}, PGD(BALL, 0.5, 1)),
    ({"attack": "nfgsm"}, attacks.NFGSM(EPSILON, noise=2.0)),
    (
      {"attack": "momentum_pgd"},
      PGD(BALL, 0.03125, 10, direction=attacks.Momentum(1.0)),
    ),
    ({"attack": "wrm"}, attacks.WRM(0.385, 15)),
    (
      {"attack": "wrm", "wasserstein_penalty": 2, "attack_steps": 4},
      attacks.WRM(2.0, 4),
    ),
    (  # 5/6 of 12 epochs
      {"attack": "dynamic_pgd", "epochs": 12, "convergence": 0.25},
      attacks.DynamicPGD(PGD(BALL, 0.03125, 10), 200, 0.25),
    ),
    (
      {"steps_growing_epochs": 2, "epsilon_growing_epochs": 0.5},
      attacks.Curriculum(PGD(BALL, 0.03125, 10), 40, 10),
    ),
    (
      {"attack": "bim", "epsilon_growing_epochs": 1},
      attacks.Curriculum(PGD(BALL, 0.03125, 10, attacks.from_image), 0, 20),
    ),
    ({"attack": "none"}, None),
    (
      {"objective": "llr", "attack_steps": 2},
      PGD(BALL, BALL.epsilon, 2, gain=objectives.linearity_violation),
    ),
  )
  def test_attacks_that_are_their_settings(self, values, expected):
    self.assertEqual(make_attack(**values), expected)

  def test_the_ascent_of_attributions(self):
    for points, of_attack in ((5, 5), (50, 10)):
      attack = make_attack(
        objective="ig_norm", attack_steps=2, attribution_points=points
      )
      gain = attack.gain
      self.assertIs(gain.func, objectives.attribution_norm)
      self.assertEqual(gain.keywords, {"points": of_attack})
    self.assertEqual(attack, PGD(BALL, 0.15625, 2, gain=gain))

  def test_warm_start(self):
    attack = make_attack(attack="warm_start_pgd", attack_steps=5)
    self.assertIsInstance(attack, attacks.WarmStart)
    self.assertEqual(attack._attack, PGD(BALL, 0.0625, 5))
    self.assertEqual(attack._size, 16)

  def test_free(self):
    attack = make_attack(attack="free")
    self.assertIsInstance(attack, attacks.Free)
    self.assertEqual((attack._ball, attack._step_size), (BALL, EPSILON))
    self.assertEqual(attack._delta.shape, SHAPE)

  def test_yopo(self):
    attack = make_attack(attack="yopo", attack_steps=4, inner_steps=2)
    self.assertIsInstance(attack, attacks.YOPO)
    settings = attack._inner.step_size, attack._passes, attack._inner.steps
    self.assertEqual(settings, (EPSILON / 4, 4, 2))
    self.assertEqual(
      (attack._inner.ball, attack._first.layers[-1].name), (BALL, "first")
    )

  def test_every_name_is_one(self):
    for name in config_lib.ATTACKS:
      attack = make_attack(attack=name)
      self.assertTrue(callable(attack) or name == "none")

  def test_the_attack_of_evaluation(self):
    config = parse(attack="free", norm="l2", epsilon=2, evaluation_attack_steps=50)
    self.assertEqual(config_lib.make_evaluation_attack(config), PGD(L2(2.0), 0.1, 50))


class ObjectiveTest(tf.test.TestCase, parameterized.TestCase):
  def make(self, **values):
    return config_lib.make_objective(parse(**values), STEPS_PER_EPOCH)

  @parameterized.parameters(
    ({}, objectives.AdversarialTraining(1.0)),
    ({"clean_weight": 0.5}, objectives.AdversarialTraining(0.5)),
    ({"attack": "none"}, CLEAN),
    ({"objective": "trades"}, objectives.TRADES(6.0)),
    ({"objective": "mart"}, objectives.MART(5.0)),
    (
      {"objective": "alp", "clean_weight": 2, "penalty_weight": 3},
      objectives.AdversarialLogitPairing(3.0, 2.0),
    ),
    ({"objective": "clp"}, objectives.CleanLogitPairing(0.5, 0.5)),
    (
      {"objective": "clp", "pairing_noise": 16 / 255},
      objectives.CleanLogitPairing(0.5, 16 / 255),
    ),
    (
      {"objective": "cure", "curvature_step": 3},
      objectives.Regularized(CLEAN, objectives.Curvature(4.0, 3.0)),
    ),
    (
      {"objective": "input_gradient", "penalty_weight": 7},
      objectives.Regularized(CLEAN, objectives.InputGradient(7.0)),
    ),
    ({"objective": "cure"}, objectives.Regularized(CLEAN, objectives.Curvature(4.0))),
    (
      {"objective": "llr"},
      objectives.Regularized(CLEAN, objectives.LocalLinearity(4.0)),
    ),
    (
      {"objective": "ig_norm", "attribution_points": 7},
      objectives.Regularized(CLEAN, objectives.AttributionNorm(1.0, 7)),
    ),
    (  # 2.5 epochs, and a fifth of that before
      {"objective": "ibp", "epsilon_growing_epochs": 2.5},
      objectives.CertifiedTraining(EPSILON, 10, 50),
    ),
    (
      {
        "objective": "ibp",
        "epsilon_growing_epochs": 2.5,
        "certified_clean_weight": 0.25,
      },
      objectives.CertifiedTraining(EPSILON, 10, 50, kappa=0.25),
    ),
    (
      {"objective": "crown_ibp", "epsilon_growing_epochs": 0.05},
      objectives.CertifiedTraining(EPSILON, 0, 1, crown=True),
    ),
    (
      {"objective": "trades", "weight_perturbation": 0.01},
      objectives.WeightPerturbation(objectives.TRADES(6.0), 0.01),
    ),
    (
      {"unlabeled_data": "u", "unlabeled_weight": 3, "unlabeled_loss": "both"},
      objectives.SemiSupervised(
        1.0,
        3.0,
        pseudo_labels=True,
        consistency=True,
        consistency_growing=10 * STEPS_PER_EPOCH,
      ),
    ),
  )
  def test_objectives(self, values, expected):
    # What bounds or curvature train has no attack.
    attacked = config_lib.training_objective(values.get("objective", "at")).attacked
    attack = {} if attacked else {"attack": "none"}
    self.assertEqual(self.make(**{**attack, **values}), expected)

  def test_every_name_is_one(self):
    made = set()
    for name in config_lib.OBJECTIVES:
      objective = config_lib.training_objective(name)
      attack = {} if objective.attacked else {"attack": "none"}
      if objective.certified:
        attack["epsilon_growing_epochs"] = 1
      made.add(repr(self.make(objective=name, **attack)))
    self.assertLen(made, len(config_lib.OBJECTIVES))

  def test_gradient_alignment_goes_inside_the_attack_on_weights(self):
    made = self.make(
      attack="fgsm", norm="l2", gradient_alignment=0.5, weight_perturbation=0.01
    )
    self.assertIsInstance(made, objectives.WeightPerturbation)
    self.assertIsInstance(made.objective, objectives.Regularized)
    self.assertEqual(made.objective.objective, objectives.AdversarialTraining(1.0))
    penalty = made.objective.penalty
    self.assertIsInstance(penalty, objectives.GradientAlignment)
    self.assertEqual(penalty.weight, 0.5)
    self.assertEqual(penalty.random_start.__self__, L2(EPSILON))

  def test_gradients_are_aligned_in_the_mode_in_which_the_attack_takes_them(self):
    for mode in (False, True):
      made = self.make(
        attack="fgsm", gradient_alignment=0.5, attack_in_training_mode=mode
      )
      self.assertEqual(made.training, mode)


class AroundTest(tf.test.TestCase):
  def test_preparation(self):
    self.assertIsNone(config_lib.make_preparation(parse()))
    rng = np.random.default_rng(0)
    ones = tf.ones(6)
    batch = Batch(
      tf.constant(rng.random(SHAPE, "f4")),
      tf.constant(np.arange(6) % 3),
      ones,
      tf.constant(rng.integers(0, 2**32, size=(6, 2), dtype="u4")),
      ones,
    )
    smooth, mixup = mixing.LabelSmoothing(3, 0.3), mixing.Mixup(3, 0.5)
    cutmix = mixing.CutMix(3, 1.0)
    for values, expected in (
      ({"label_smoothing": 0.3}, smooth(batch)),
      ({"mixing": "cutmix"}, cutmix(batch)),
      (
        {"label_smoothing": 0.3, "mixing": "mixup", "mixing_alpha": 0.5},
        mixup(smooth(batch)),
      ),
    ):
      prepared = config_lib.make_preparation(parse(num_classes=3, **values))(batch)
      self.assertAllEqual(prepared.images, expected.images)
      self.assertAllClose(prepared.labels, expected.labels)

  def test_averages(self):
    def counted(**values):
      """The steps of 5 epochs whose weights count."""
      classifier = network()
      average = config_lib.make_average(parse(epochs=5, **values), classifier, 4)
      steps = []
      for step in range(1, 21):
        before = int(average._counted)
        average.update(tf.constant(step))
        steps += [step] if int(average._counted) > before else []
      return average, steps

    self.assertIsNone(config_lib.make_average(parse(), network(), 4))
    average, steps = counted(
      weight_average="exponential", average_from_epoch=2, average_decay=0.75
    )
    self.assertEqual(steps, list(range(9, 21)))
    self.assertEqual(average._decay, 0.75)
    average, steps = counted(weight_average="stochastic", average_from_epoch=2)
    self.assertEqual(steps, [12, 16, 20])  # the last of each epoch
    _, steps = counted(weight_average="stochastic", average_from_epoch=2.5)
    self.assertEqual(steps, [16, 20])
    self.assertEqual(average._decay, 1.0)

  def test_rates_by_layer(self):
    classifier = network()
    for decay, expected in ((0.5, {0.5, 1.0}), (1, set()), (0, set())):
      config = parse(layer_decay=decay, initialize_from="another/run")
      optimizer = config_lib.make_optimizer(config, classifier, 4)
      self.assertEqual(set(optimizer.rate_factors.values()), expected)


if __name__ == "__main__":
  tf.test.main()
