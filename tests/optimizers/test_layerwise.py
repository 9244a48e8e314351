"""LAMB, LARS and SGD against NumPy, and as citizens of Keras and tf.distribute."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import unittest

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

import dat_tf
from dat_tf import optimizers
from dat_tf.base.errors import UserError

HAS_ADDONS = importlib.util.find_spec("tensorflow_addons") is not None
NAMES = ("lamb", "lars", "sgd")
# All exact in float32, as which Keras stores some of them: with float64 variables the
# optimizers and the references then differ by float64's rounding alone.
LEARNING_RATE = 0.0625
MOMENTUM = BETA_1 = 0.875
BETA_2 = 0.984375
TRUST_COEFFICIENT = 0.125
EPSILON = 1e-6
WEIGHT_DECAY = 0.125
CLAMP = (0.5, 2.0)


def make(
  name, weight_decay=WEIGHT_DECAY, norm_bounds=CLAMP, learning_rate=LEARNING_RATE
):
  return optimizers.make_optimizer(
    name,
    learning_rate,
    weight_decay=weight_decay,
    momentum=MOMENTUM,
    beta_1=BETA_1,
    beta_2=BETA_2,
    trust_coefficient=TRUST_COEFFICIENT,
    norm_bounds=norm_bounds,
  )


def initial_weights():
  """Layers for every case of the rules; the names mislead about the rank."""
  rng = np.random.default_rng(0)

  def layer(norm, *shape):
    values = rng.normal(size=shape)
    return values * norm / np.linalg.norm(values)

  return {
    "within": layer(1.0, 3, 3, 2, 4),
    "below_c_l": layer(0.01, 4, 3),
    "above_c_u": layer(30.0, 4, 3),
    "zero": np.zeros((4, 2)),
    "idle": layer(1.0, 2, 2),
    "batch_norm_bias": layer(1.0, 2, 3),
    "kernel": layer(1.0, 5),
    "zero_kernel": np.zeros(3),
    "scalar": np.array(0.5),
  }


def gradients_of_steps(steps):
  rng = np.random.default_rng(1)
  shapes = {name: w.shape for name, w in initial_weights().items()}
  for _ in range(steps):
    gradients = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    yield gradients | {"idle": np.zeros(shapes["idle"])}


def reference_ratio(weights, update, norm_bounds, coefficient):
  weights_norm = math.sqrt(np.sum(weights**2))
  update_norm = math.sqrt(np.sum(update**2))
  if weights.ndim < 2 or weights_norm == 0 or update_norm == 0:
    return 1.0
  clamped_norm = min(max(weights_norm, norm_bounds[0]), norm_bounds[1])
  return coefficient * clamped_norm / update_norm


def lamb_layer(weights, gradients, weight_decay, norm_bounds):
  m = v = np.zeros_like(weights)
  for step, g in enumerate(gradients, 1):
    m = BETA_1 * m + (1 - BETA_1) * g
    v = BETA_2 * v + (1 - BETA_2) * g**2
    update = m / (1 - BETA_1**step) / (np.sqrt(v / (1 - BETA_2**step)) + EPSILON)
    if weights.ndim > 1:
      update = update + weight_decay * weights
    ratio = reference_ratio(weights, update, norm_bounds, 1.0)
    weights = weights - LEARNING_RATE * ratio * update
  return weights, ratio


def lars_layer(weights, gradients, weight_decay, norm_bounds):
  velocity = np.zeros_like(weights)
  for g in gradients:
    update = g + weight_decay * weights if weights.ndim > 1 else g
    ratio = reference_ratio(weights, update, norm_bounds, TRUST_COEFFICIENT)
    velocity = MOMENTUM * velocity - LEARNING_RATE * ratio * update
    weights = weights + velocity
  return weights, ratio


def sgd_layer(weights, gradients, weight_decay, norm_bounds):
  del norm_bounds
  velocity = np.zeros_like(weights)
  for g in gradients:
    update = g + weight_decay * weights if weights.ndim > 1 else g
    velocity = MOMENTUM * velocity - LEARNING_RATE * update
    weights = weights + velocity
  return weights, None


def reference(name, steps, weight_decay=WEIGHT_DECAY, norm_bounds=CLAMP):
  """(weights, last trust ratios of the tensors of rank > 1), by layer."""
  layer_rule = {"lamb": lamb_layer, "lars": lars_layer, "sgd": sgd_layer}[name]
  gradients = list(gradients_of_steps(steps))
  results = {
    layer: layer_rule(w, [g[layer] for g in gradients], weight_decay, norm_bounds)
    for layer, w in initial_weights().items()
  }
  weights = {layer: w for layer, (w, _) in results.items()}
  ratios = {
    layer: ratio
    for layer, (w, ratio) in results.items()
    if w.ndim > 1 and ratio is not None
  }
  return weights, ratios


def make_variables():
  return {
    layer: tf.Variable(w, name=layer, dtype=tf.float64)
    for layer, w in initial_weights().items()
  }


def apply(optimizer, variables, gradients):
  optimizer.apply_gradients(
    (tf.convert_to_tensor(gradients[layer]), variable)
    for layer, variable in variables.items()
  )


class TrustRatioTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ((3.0, 4.0), (0.0, 2.0), (0.0, 10.0), 2.5),
    ((3.0, 4.0), (0.0, 2.0), (0.0, 2.0), 1.0),
    ((3.0, 4.0), (0.0, 2.0), (6.0, 10.0), 3.0),
    ((30.0, 40.0), (0.0, 2.0), (0.0, math.inf), 25.0),
    ((0.0, 0.0), (0.0, 2.0), (6.0, 10.0), 1.0),
    ((3.0, 4.0), (0.0, 0.0), (0.0, 10.0), 1.0),
    ((0.0, 0.0), (0.0, 0.0), (6.0, 10.0), 1.0),
  )
  def test_known_values(self, weights, update, norm_bounds, expected):
    ratio = optimizers.trust_ratio(
      tf.constant([weights]), tf.constant([update]), norm_bounds=norm_bounds
    )
    self.assertEqual(ratio.dtype, tf.float32)
    self.assertAllClose(ratio, expected, rtol=1e-6, atol=0)

  def test_bounds_are_clamped_to_10_by_default(self):
    ratio = optimizers.trust_ratio(tf.constant([[50.0]]), tf.constant([[1.0]]))
    self.assertAllClose(ratio, 10.0)

  def test_coefficient_scales_only_adapted_layers(self):
    weights, update = tf.constant([[3.0, 4.0]]), tf.constant([[0.0, 2.0]])
    ratio = optimizers.trust_ratio(weights, update, trust_coefficient=0.1)
    self.assertAllClose(ratio, 0.25)
    ratio = optimizers.trust_ratio(weights, 0 * update, trust_coefficient=0.1)
    self.assertAllClose(ratio, 1.0)

  @parameterized.product(
    optimizer=(optimizers.LAMB, optimizers.LARS),
    bounds=((2.0, 1.0), (-1.0, 1.0), (0.0, math.nan)),
  )
  def test_bad_bounds(self, optimizer, bounds):
    with self.assertRaisesRegex(UserError, "norm_bounds must be 0 <= c_l <= c_u"):
      optimizer(norm_bounds=bounds)


class UpdateTest(tf.test.TestCase, parameterized.TestCase):
  def check(self, optimizer, variables, expected):
    weights, ratios = expected
    for layer, variable in variables.items():
      self.assertAllClose(variable, weights[layer], rtol=1e-9, atol=1e-12, msg=layer)
    if ratios:
      actual = optimizer.trust_ratios()
      self.assertEqual(set(actual), set(ratios))
      for layer, ratio in ratios.items():
        self.assertAllClose(actual[layer], ratio, rtol=1e-9, atol=0, msg=layer)
        slot = optimizer.get_slot(variables[layer], "trust_ratio")
        self.assertIs(slot, actual[layer])

  @parameterized.parameters(
    itertools.product(
      NAMES, (1, 5), (0.0, WEIGHT_DECAY), (CLAMP, (0.0, 10.0), (0.0, math.inf))
    )
  )
  def test_equals_numpy(self, name, steps, weight_decay, norm_bounds):
    optimizer = make(name, weight_decay, norm_bounds)
    variables = make_variables()
    for gradients in gradients_of_steps(steps):
      apply(optimizer, variables, gradients)
    self.check(optimizer, variables, reference(name, steps, weight_decay, norm_bounds))

  @parameterized.parameters(*NAMES)
  def test_equals_numpy_in_a_mirrored_strategy(self, name):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
      optimizer = make(name)
      variables = make_variables()

    @tf.function
    def step(gradients):
      strategy.run(apply, (optimizer, variables, gradients))

    for gradients in gradients_of_steps(3):
      step({layer: tf.constant(g) for layer, g in gradients.items()})
    self.check(optimizer, variables, reference(name, 3))

  @parameterized.parameters(*NAMES)
  def test_a_layers_rate_is_that_of_an_optimizer_of_its_own(self, name):
    factors = {"within": 0.5, "kernel": 0.25, "above_c_u": 0.0, "scalar": 0.0}
    optimizer, variables = make(name), make_variables()
    optimizer.rate_factors = {f"{layer}:0": f for layer, f in factors.items()}
    alone = {}
    for layer, variable in make_variables().items():
      rate = LEARNING_RATE * factors.get(layer, 1.0)
      alone[layer] = make(name, learning_rate=rate), variable
    for gradients in gradients_of_steps(3):
      apply(optimizer, variables, gradients)
      for layer, (own, variable) in alone.items():
        apply(own, {layer: variable}, gradients)
    initial = initial_weights()
    for layer, variable in variables.items():
      expected = alone[layer][1]
      self.assertAllClose(variable, expected, rtol=1e-9, atol=1e-12, msg=layer)
      if factors.get(layer) == 0:
        self.assertAllEqual(variable, initial[layer])

  @parameterized.parameters(*NAMES)
  def test_a_layers_rate_holds_for_its_copies_on_further_replicas(self, name):
    # As tf.distribute names them.
    variable = tf.Variable(initial_weights()["within"], name="within/replica_1")
    before = variable.numpy()
    optimizer = make(name)
    optimizer.rate_factors = {"within:0": 0.0}
    apply(optimizer, {"within": variable}, next(gradients_of_steps(1)))
    self.assertAllEqual(variable, before)

  @unittest.skipUnless(HAS_ADDONS, "TensorFlow Addons is not installed")
  def test_lamb_without_clamp_equals_tensorflow_addons(self):
    import tensorflow_addons as tfa

    rng = np.random.default_rng(2)
    initial = rng.normal(size=(20, 30), scale=3.0).astype(np.float32)
    ours = optimizers.LAMB(0.02, weight_decay=0.01, norm_bounds=(0.0, math.inf))
    theirs = tfa.optimizers.LAMB(0.02, weight_decay=0.01)
    variable, their_variable = tf.Variable(initial), tf.Variable(initial)
    for _ in range(5):
      gradient = tf.constant(rng.normal(size=initial.shape).astype(np.float32))
      ours.apply_gradients([(gradient, variable)])
      theirs.apply_gradients([(gradient, their_variable)])
    self.assertNotAllClose(variable, initial, rtol=1e-2)
    self.assertAllClose(variable, their_variable, rtol=1e-6, atol=1e-6)

  @parameterized.parameters(*NAMES)
  def test_sparse_gradients_are_refused(self, name):
    variable = tf.Variable(tf.ones([4, 2]))
    gradient = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([1]), (4, 2))
    with self.assertRaisesRegex(NotImplementedError, "dense gradients"):
      make(name).apply_gradients([(gradient, variable)])

  def test_unknown_name(self):
    with self.assertRaisesRegex(UserError, "'adam'; choose 'lamb', 'lars' or 'sgd'"):
      optimizers.make_optimizer("adam", 0.1)


class StateTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_checkpoint_restores_the_whole_state(self, name):
    *first, last = gradients_of_steps(4)
    optimizer, variables = make(name), make_variables()
    for gradients in first:
      apply(optimizer, variables, gradients)
    checkpoint = tf.train.Checkpoint(optimizer=optimizer, **variables)
    path = checkpoint.save(os.path.join(self.get_temp_dir(), name))

    restored, restored_variables = make(name), make_variables()
    checkpoint = tf.train.Checkpoint(optimizer=restored, **restored_variables)
    status = checkpoint.restore(path)
    for layer, ratio in reference(name, len(first))[1].items():
      slot = restored.get_slot(restored_variables[layer], "trust_ratio")
      self.assertAllClose(slot, ratio, rtol=1e-9, atol=0)
    apply(optimizer, variables, last)
    apply(restored, restored_variables, last)
    status.assert_consumed()
    for layer, variable in variables.items():
      self.assertAllEqual(variable, restored_variables[layer])

  @parameterized.product(
    case=(
      (optimizers.LAMB, {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3}),
      (optimizers.LAMB, {"norm_bounds": [0.25, math.inf]}),
      (optimizers.LARS, {"momentum": 0.5, "trust_coefficient": 0.25}),
      (optimizers.LARS, {"norm_bounds": [0.25, 3.0], "nesterov": True}),
      (optimizers.SGD, {"momentum": 0.5, "global_clipnorm": 2.0}),
    ),
    legacy=(False, True),
  )
  def test_config_round_trip(self, case, legacy):
    optimizer_class, settings = case
    settings = settings | {"weight_decay": 0.375, "name": "mine"}
    schedule = optimizers.WarmupDecay(0.5, 10, decay="step", boundaries=[20, 30])
    optimizer = optimizer_class(learning_rate=schedule, **settings)
    config = tf.keras.optimizers.serialize(optimizer, use_legacy_format=legacy)
    rebuilt = tf.keras.optimizers.deserialize(
      json.loads(json.dumps(config)), use_legacy_format=legacy
    )
    self.assertIs(type(rebuilt), optimizer_class)
    rebuilt_config = json.loads(json.dumps(rebuilt.get_config()))
    self.assertEqual(settings, {key: rebuilt_config[key] for key in settings})
    self.assertEqual(rebuilt.learning_rate.get_config(), schedule.get_config())


@unittest.skipUnless(HAS_ADDONS, "TensorFlow Addons is not installed")
class WarningsTest(tf.test.TestCase):
  def test_only_the_end_of_life_warning_is_hidden(self):
    # Pretending another TensorFlow makes TensorFlow Addons give a second warning.
    code = """
import warnings
import tensorflow
tensorflow.__version__ = "2.99.0"
filters = list(warnings.filters)
import dat_tf.optimizers
import tensorflow_addons
assert warnings.filters == filters
"""
    process = subprocess.run(
      [sys.executable, "-W", "always::UserWarning", "-c", code],
      cwd=os.path.dirname(os.path.dirname(dat_tf.__file__)),
      check=False,
      capture_output=True,
      text=True,
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    self.assertNotIn("has ended development", process.stderr)
    self.assertIn("Tensorflow Addons supports using Python ops", process.stderr)


if __name__ == "__main__":
  tf.test.main()
