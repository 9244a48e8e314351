"""What training says before its first step, and checks after each epoch."""

from __future__ import annotations

import contextlib
import io
from unittest import mock

import tensorflow as tf
from absl.testing import parameterized

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError
from dat_tf.compat import keras
from dat_tf.models.registry import make_model
from dat_tf.program import training
from dat_tf.workers import joined
from dat_tf.workers.cluster import Cluster
from workers import run_workers


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


def _change_one_weight():
  """What is said while all weights are the same, and once one worker's are not."""
  cluster = Cluster.from_environment()
  workers = joined.join(cluster, joined.communication_options("auto", 0, 0))
  with workers.strategy.scope():
    layers = tf.keras.layers
    classifier = tf.keras.Sequential(
      [tf.keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()]
    )
  weights = classifier.trainable_variables
  for variable in weights:
    variable.assign(tf.fill(variable.shape, 0.25))
  training.check_same_weights(workers, weights, "step 1")
  if cluster.index == min(1, cluster.num_workers - 1):
    kernel = weights[0]
    kernel.assign(kernel.read_value() * tf.constant([[1.0, 1.0, 1.0000001]]))
  try:
    training.check_same_weights(workers, weights, "step 2")
  except UserError as error:
    return str(error)
  return None


class SameWeightsTest(tf.test.TestCase):
  def test_a_worker_with_other_weights_is_told_on_all(self):
    for number, others in ((2, "worker 0"), (3, "the 2 others")):
      for said in run_workers(_change_one_weight, number):
        self.assertStartsWith(
          said, f"After step 2 worker 1 has other weights than {others}: "
        )
    self.assertEqual(run_workers(_change_one_weight, 1), [None])

  def test_they_are_compared_at_the_steps_asked_for(self):
    compared = []
    callback = training.Verification(None, steps=5, every=4)
    callback.set_model(mock.Mock())
    with mock.patch.object(
      training, "check_same_weights", lambda *args: compared.append(args[2])
    ):
      for epoch in (1, 2):  # a run that goes on after an epoch
        callback.on_epoch_begin(epoch)
        for batch in range(5):
          callback.on_train_batch_end(batch)
    self.assertEqual(compared, ["step 8", "step 12"])


if __name__ == "__main__":
  tf.test.main()
