"""Learning-rate schedules and scaling against closed forms."""

from __future__ import annotations

import json
import math

import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.optimizers import SGD, WarmupDecay, scaled_learning_rate


class WarmupDecayTest(tf.test.TestCase, parameterized.TestCase):
  def assert_rates(self, schedule, rates):
    compiled = tf.function(schedule)
    for step, expected in rates.items():
      for rate in (
        schedule(step),
        compiled(tf.constant(step, tf.int64)),
        compiled(tf.constant(step, tf.float32)),  # what Keras passes
      ):
        self.assertEqual(rate.dtype, tf.float32)
        self.assertAllClose(rate, expected, rtol=1e-6, atol=1e-7, msg=f"step {step}")

  def test_warmup_then_constant(self):
    schedule = WarmupDecay(0.5, warmup_steps=4)
    rates = {0: 0.125, 1: 0.25, 2: 0.375, 3: 0.5, 4: 0.5, 5: 0.5, 10**6: 0.5}
    self.assert_rates(schedule, rates)

  def test_no_warmup_starts_at_the_peak(self):
    self.assert_rates(WarmupDecay(0.5), {0: 0.5, 1: 0.5})

  def test_step_decay(self):
    schedule = WarmupDecay(2.0, 5, decay="step", boundaries=[75, 90, 95])
    rates = {0: 0.4, 4: 2.0, 74: 2.0, 75: 0.2, 89: 0.2, 90: 0.02, 95: 0.002, 200: 0.002}
    self.assert_rates(schedule, rates)

  def test_step_decay_without_boundaries_is_constant(self):
    self.assert_rates(WarmupDecay(2.0, decay="step"), {0: 2.0, 100: 2.0})

  def test_cosine_decay(self):
    schedule = WarmupDecay(0.8, 10, decay="cosine", total_steps=110)
    rates = {
      0: 0.08,
      9: 0.8,
      10: 0.8,
      35: 0.4 * (1 + math.sqrt(0.5)),
      60: 0.4,
      85: 0.4 * (1 - math.sqrt(0.5)),
      109: 0.4 * (1 + math.cos(0.99 * math.pi)),
      110: 0.0,
      500: 0.0,
    }
    self.assert_rates(schedule, rates)

  def test_run_shorter_than_its_warmup(self):
    schedule = WarmupDecay(1.0, 10, decay="cosine", total_steps=5)
    self.assert_rates(schedule, {0: 0.1, 4: 0.5, 9: 1.0})

  def test_optimizer_takes_the_rate_of_its_step(self):
    optimizer = SGD(WarmupDecay(1.0, 4, decay="step", boundaries=[5]), momentum=0.0)
    variable = tf.Variable(0.0)
    taken = []
    for _ in range(6):
      before = variable.numpy()
      optimizer.apply_gradients([(tf.constant(1.0), variable)])
      taken.append(before - variable.numpy())
    self.assertAllClose(taken, [0.25, 0.5, 0.75, 1.0, 1.0, 0.1], rtol=1e-5)

  @parameterized.parameters(
    WarmupDecay(0.5, 3),
    WarmupDecay(0.5, 3, decay="step", boundaries=[7, 9]),
    WarmupDecay(0.5, 3, decay="cosine", total_steps=20),
  )
  def test_config_round_trip(self, schedule):
    config = tf.keras.optimizers.schedules.serialize(schedule)
    rebuilt = tf.keras.optimizers.schedules.deserialize(json.loads(json.dumps(config)))
    self.assertIsInstance(rebuilt, WarmupDecay)
    for step in (0, 2, 6, 8, 15):
      self.assertAllEqual(rebuilt(step), schedule(step))

  def test_mistakes(self):
    with self.assertRaisesRegex(UserError, "'linear'; choose 'constant', 'step'"):
      WarmupDecay(0.5, decay="linear")
    with self.assertRaisesRegex(UserError, "needs total_steps"):
      WarmupDecay(0.5, decay="cosine")


class ScaledLearningRateTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("none", 8192, 0.1),
    ("linear", 8192, 3.2),
    ("linear", 128, 0.05),
    ("sqrt", 1024, 0.2),
    ("sqrt", 64, 0.05),
    ("linear", 256, 0.1),
    ("sqrt", 256, 0.1),
  )
  def test_rules(self, rule, global_batch_size, expected):
    rate = scaled_learning_rate(
      0.1, reference_batch_size=256, global_batch_size=global_batch_size, rule=rule
    )
    self.assertAllClose(rate, expected, rtol=1e-12)

  def test_unknown_rule(self):
    with self.assertRaisesRegex(UserError, "'cubic'; choose one of none, linear, sqrt"):
      scaled_learning_rate(
        0.1, reference_batch_size=256, global_batch_size=512, rule="cubic"
      )


if __name__ == "__main__":
  tf.test.main()
