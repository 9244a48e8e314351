"""What training says before its first step."""

from __future__ import annotations

import contextlib
import io

import tensorflow as tf
from absl.testing import parameterized

from dat_tf import config as config_lib
from dat_tf.compat import keras
from dat_tf.models.registry import make_model
from dat_tf.program import training


def said(classifier, **values):
  values = {"model_dir": "m", "train_data": "a", "test_data": "b", **values}
  config = config_lib.parse(["run_dat.py", *(f"--{n}={v}" for n, v in values.items())])
  stdout = io.StringIO()
  with contextlib.redirect_stdout(stdout):
    training._warn_of_lagging_averages(config, classifier)
  return stdout.getvalue()


class LaggingAveragesTest(tf.test.TestCase, parameterized.TestCase):
  def network(self, momentum):
    layers = keras.layers
    # A network inside the network, as those of tf.keras.applications are.
    inner = keras.Sequential([layers.Dense(2), layers.BatchNormalization(momentum=0.5)])
    return keras.Sequential(
      [keras.Input((4,)), inner, layers.BatchNormalization(momentum=momentum)]
    )

  @parameterized.parameters({}, {"attack": "fgsm"}, {"objective": "trades"})
  def test_averages_over_many_steps_are_told(self, **values):
    line = said(self.network(0.99), model="ResNet50", **values)
    self.assertRegex(line, r"^Warning: .* of ResNet50 have momentum 0.99\. .*\n$")
    self.assertIn("--attack_in_training_mode", line)

  @parameterized.parameters(
    {"attack": "none"}, {"attack": "free"}, {"attack_in_training_mode": "true"}
  )
  def test_without_an_attack_in_inference_mode_nothing_is(self, **values):
    self.assertEqual(said(self.network(0.99), **values), "")

  def test_networks_of_the_package_are_not(self):
    self.assertEqual(said(self.network(0.9)), "")
    self.assertEqual(said(make_model("small_cnn", (8, 8, 1), 10)), "")
    self.assertEqual(said(make_model("plain_cnn", (8, 8, 1), 10)), "")


if __name__ == "__main__":
  tf.test.main()
