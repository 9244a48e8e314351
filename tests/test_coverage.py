"""No public part without a name, and none with a name outside of the tests of all."""

from __future__ import annotations

import inspect
import pathlib
import unittest

import tensorflow as tf

from dat_tf import attacks, communication, objectives, optimizers
from dat_tf import config as config_lib
from dat_tf.attacks import Iterative, Scheduled, TrainingPass, registry
from dat_tf.models import registry as networks
from dat_tf.objectives import Objective
from dat_tf.objectives.objective import Wrapper

HERE = pathlib.Path(__file__).resolve().parent
SHAPE = (2, 4, 4, 1)
BALLS = attacks.LInfinity(0.1), attacks.L2(1.0), attacks.L1(9.0)


def public(room, *bases):
  """The classes that a room offers, of these bases, but for the bases themselves."""
  classes = {getattr(room, name) for name in room.__all__}
  return {
    one
    for one in filter(inspect.isclass, classes)
    if issubclass(one, bases) and one not in bases
  }


def parse(**values):
  given = {"model_dir": "m", "train_data": "a", "test_data": "b", **values}
  return config_lib.parse(["run_dat.py", *(f"--{n}={v}" for n, v in given.items())])


def network():
  layers = tf.keras.layers
  inputs = tf.keras.Input(SHAPE[1:])
  x = layers.Flatten()(layers.Conv2D(2, 3)(inputs))
  return tf.keras.Model(inputs, layers.Dense(3)(x))


class CoverageTest(unittest.TestCase):
  def test_attacks_of_training(self):
    """By their names they all meet in tests/objectives/test_conformance.py."""
    trained = config_lib.Trained(network(), SHAPE, 3)
    made = {
      type(config_lib.make_attack(parse(attack=name), trained))
      for name in config_lib.ATTACKS
    }
    made.add(type(config_lib.make_attack(parse(steps_growing_epochs=1), trained)))
    one_call = {attacks.PGD, attacks.NFGSM, attacks.WRM}
    offered = public(attacks, Scheduled, TrainingPass) | one_call
    self.assertEqual(made - {type(None)}, offered)

  def test_attacks_of_evaluation(self):
    """By their names they all meet in tests/attacks/test_conformance.py."""
    names = [*registry._ALONE, "jsma", "pgd-5", "transfer-pgd-5"]
    made = {
      type(one)
      for ball in BALLS[1:]
      for name in names
      for one in registry.make_attacks(name, ball, source=tf.identity).values()
    }
    made |= {type(make(BALLS[1])) for make in registry._L2_ONLY.values()}
    self.assertEqual(made, public(attacks, Iterative))

  def test_objectives(self):
    """By their names they all meet in tests/objectives/test_conformance.py."""
    made = set()
    for name, record in config_lib.OBJECTIVES.items():
      more = {} if record.attacked else {"attack": "none"}
      more |= {"epsilon_growing_epochs": 1} if record.certified else {}
      made.add(type(config_lib.make_objective(parse(objective=name, **more), 3)))
    for more in (
      {"attack": "none"},
      {"unlabeled_data": "u"},
      {"weight_perturbation": 1},
    ):
      made.add(type(config_lib.make_objective(parse(**more), 3)))
    self.assertEqual(made, public(objectives, Objective, Wrapper))

  def test_optimizers_and_quantizers(self):
    optimizer = tf.keras.optimizers.legacy.Optimizer
    made = {
      type(config_lib.make_optimizer(parse(optimizer=name), network(), 3))
      for name in ("lamb", "lars", "sgd")
    }
    self.assertEqual(made, public(optimizers, optimizer))
    quantizers = [n for n in communication.__all__ if n.endswith("Quantizer")]
    self.assertCountEqual(quantizers, ["Quantizer", "BucketQuantizer"])

  def test_networks(self):
    """One of each kind is built; the others differ in depth or activation."""
    paths = sorted((HERE / "models").glob("test_*.py"))
    text = "".join(path.read_text() for path in paths)
    kinds = {}
    for name, make in networks._OWN.items():
      kinds.setdefault(getattr(make, "func", make), []).append(name)
    for names in kinds.values():
      self.assertTrue(any(f'"{name}' in text for name in names), names)


if __name__ == "__main__":
  unittest.main()
