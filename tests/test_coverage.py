"""No public part without a name, and none with a name outside of the tests of all."""

from __future__ import annotations

import inspect
import pathlib
import unittest

import tensorflow as tf
from config_case import needs

from dat_tf import attacks, communication, objectives, optimizers
from dat_tf import config as config_lib
from dat_tf.attacks import Iterative, Scheduled, TrainingPass, registry
from dat_tf.config.declaring import declarations
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
  def named(self, offered, made, registry):
    """Whether the names of a registry make all classes that a room offers."""
    for one in offered - made:
      self.fail(f"No name in {registry} makes {one.__name__}: give it one.")

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
    self.named(offered, made, "dat_tf/config/attacks.py")

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
    self.named(public(attacks, Iterative), made, "dat_tf/attacks/registry.py")

  def test_objectives(self):
    """By their names they all meet in tests/objectives/test_conformance.py."""
    made = set()
    for name, record in config_lib.OBJECTIVES.items():
      made.add(
        type(config_lib.make_objective(parse(objective=name, **needs(record)), 3))
      )
    for more in (
      {"attack": "none"},
      {"unlabeled_data": "u"},
      {"weight_perturbation": 1},
    ):
      made.add(type(config_lib.make_objective(parse(**more), 3)))
    offered = public(objectives, Objective, Wrapper)
    self.named(offered, made, "dat_tf/config/objectives.py")

  def test_optimizers(self):
    optimizer = tf.keras.optimizers.legacy.Optimizer
    made = {
      type(config_lib.make_optimizer(parse(optimizer=name), network(), 3))
      for name in declarations(config_lib.Settings)["optimizer"].options
    }
    self.named(public(optimizers, optimizer), made, "dat_tf/config/optimizers.py")

  def test_quantizers(self):
    path = HERE / "communication" / "test_quantizers.py"
    for name in communication.__all__:
      if name.endswith("Quantizer") and name not in path.read_text():
        self.fail(f"No test in {path.name} is of {name}: add one.")

  def test_networks(self):
    """One of each kind is built; the others differ in depth or activation."""
    paths = sorted((HERE / "models").glob("test_*.py"))
    text = "".join(path.read_text() for path in paths)
    kinds = {}
    for name, make in networks._OWN.items():
      kinds.setdefault((make.module, make.function), []).append(name)
    for names in kinds.values():
      if not any(f'"{name}' in text for name in names):
        self.fail(f"No test in tests/models builds any of {', '.join(names)}: add one.")

  def test_help_names_all(self):
    """That of --attacks is written by hand, for the registry imports TensorFlow."""
    named = declarations(config_lib.Settings)["attacks"].help
    for name in (*registry._ALONE, *registry._SUITES, *registry._L2_ONLY):
      if name not in named:
        self.fail(
          f"The help of --attacks, in dat_tf/config, does not name {name}: add it."
        )

  def test_each_method_has_a_flagfile(self):
    """So that benchmarks/methods.py measures a row of each."""
    used = set()
    paths = {*(HERE.parent / "flags" / "methods").glob("*.flags")}
    for path in paths - {HERE.parent / "flags/methods/common.flags"}:
      settings = config_lib.parse(["", f"--flagfile={path}", "--test_data=b"])
      used |= {settings.attack, settings.objective}
    for name in (*config_lib.ATTACKS, *config_lib.OBJECTIVES):
      if name not in used:
        self.fail(f"No flagfile in flags/methods is of {name}: add {name}.flags.")


if __name__ == "__main__":
  unittest.main()
