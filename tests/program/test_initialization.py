"""What --initialize_from may name."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError
from dat_tf.models import make_model, transfer
from dat_tf.models.averaging import WeightAverage
from dat_tf.program import exporting, initialization
from dat_tf.program.checkpoint_files import Position
from dat_tf.program.checkpointing import Checkpoints

SHAPE = (8, 8, 1)


class SourceModelTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.model_dir = tempfile.mkdtemp(dir=self.get_temp_dir())

  def dense(self):
    inputs = tf.keras.Input((2,))
    return tf.keras.Model(inputs, tf.keras.layers.Dense(3)(inputs))

  def network(self, seed, num_classes=7, **kwargs):
    """With other statistics than those of a new one."""
    tf.keras.utils.set_random_seed(seed)
    model = make_model("small_cnn", SHAPE, num_classes, **kwargs)
    rng = np.random.default_rng(seed)
    for weight in model.weights:
      weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model

  def write_run(self, model, *flags):
    """As a run leaves it before its export: settings, and all that it tracks."""
    required = [f"--model_dir={self.model_dir}", "--train_data=a", "--test_data=b"]
    config_lib.save(
      config_lib.parse(["", *required, "--num_classes=7", "--attack_steps=3", *flags])
    )
    optimizer = tf.keras.optimizers.legacy.SGD(0.1, momentum=0.9)
    optimizer._create_all_weights(model.trainable_variables)
    tracked = {
      "classifier": model,
      "optimizer": optimizer,
      "average": WeightAverage(model),
    }
    path = os.path.join(self.model_dir, "checkpoints")
    checkpoints = Checkpoints(path, tracked, tracked)
    checkpoints.save(Position(3))
    checkpoints.finish()

  def source(self, path=None, shape=SHAPE):
    return initialization.source_model(path or self.model_dir, "small_cnn", shape)

  def test_no_module_of_another_run_is_imported(self):
    self.write_run(self.network(0), "--model=module_that_is_not_there:make")
    with self.assertRaisesRegex(
      UserError, "trained with --model=module_that.*the same"
    ):
      self.source()

  def test_code_of_a_model(self):
    path = os.path.join(self.model_dir, "model.h5")
    layers = [tf.keras.Input((2,)), tf.keras.layers.Lambda(lambda x: x)]
    tf.keras.Sequential(layers).save(path)
    with self.assertRaisesRegex(UserError, "code of its own"):
      self.source(path)
    initialization.source_model(path, "small_cnn", SHAPE, unsafe=True)

  def assert_weights(self, model, expected):
    self.assertEqual(len(model.weights), len(expected.weights))
    for mine, theirs in zip(model.weights, expected.weights):
      self.assertAllEqual(mine, theirs)

  def assert_refused(self, *words, **kwargs):
    with self.assertRaises(UserError) as caught:
      self.source(**kwargs)
    message = str(caught.exception)
    self.assertLen(message.splitlines(), 1)
    for word in ("--initialize_from=", *words):
      self.assertIn(word, message)

  def test_a_savedmodel_that_keras_did_not_write_is_refused(self):
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    path = os.path.join(self.model_dir, "module")
    tf.saved_model.save(module, path)
    self.assert_refused("Keras did not write", path=path)

  def test_a_model_with_an_unknown_layer_is_refused(self):
    class Unknown(tf.keras.layers.Layer):
      pass

    path = os.path.join(self.model_dir, "unknown.keras")
    tf.keras.Sequential([tf.keras.Input((2,)), Unknown()]).save(path)
    self.assert_refused("Unknown", path=path)

  def test_a_runs_export_goes_before_its_checkpoint(self):
    exported = self.dense()
    self.write_run(self.network(2))
    exporting.export(exported, os.path.join(self.model_dir, "export"))
    self.assert_weights(self.source(), exported)

  def test_a_runs_newest_checkpoint_and_a_new_head(self):
    for flags in ((), ("--precision=mixed_bfloat16",)):
      precision = {"precision": "mixed_bfloat16"} if flags else {}
      trained = self.network(1, **precision)
      self.write_run(trained, *flags)
      source = self.source()
      self.assert_weights(source, trained)
      target = self.network(2, num_classes=10)
      head = [w.numpy() for w in target.weights[-2:]]
      self.assertTrue(transfer.copy_weights_by_layer(source, target))
      for mine, theirs in zip(target.weights[:-2], trained.weights[:-2]):
        self.assertAllEqual(mine, theirs)
      self.assertEqual(head[0].shape, (64, 10))
      for mine, theirs in zip(target.weights[-2:], head):
        self.assertAllEqual(mine, theirs)

  def test_a_checkpoint_of_images_of_another_size(self):
    self.write_run(self.network(1))
    self.assert_refused(self.model_dir, "(16, 16, 1)", shape=(16, 16, 1))

  def test_saved_keras_models(self):
    model = self.dense()
    # With state of an optimizer, as others than the package's own runs save them.
    model.compile(optimizer="sgd", loss="mse")
    for name in ("model.keras", "saved_model"):
      path = os.path.join(self.model_dir, name)
      model.save(path)
      self.assert_weights(self.source(path), model)

  def test_there_is_nothing_of_the_kind(self):
    self.assert_refused(self.model_dir, "--model_dir", "imagenet")  # an empty directory
    for name, text in (("missing", None), ("notes.txt", b"no model"), ("x.keras", b"")):
      path = os.path.join(self.model_dir, name)
      if text is not None:
        with open(path, "wb") as file:
          file.write(text)
      self.assert_refused(path, "--model_dir", path=path)


if __name__ == "__main__":
  tf.test.main()
