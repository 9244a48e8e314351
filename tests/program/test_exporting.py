"""Exports open elsewhere, and give the same logits."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.models import make_model
from dat_tf.program import exporting

# Runs where the package cannot be imported.
LOAD = """
import sys
sys.modules["dat_tf"] = None
import numpy as np
import tensorflow as tf
for path in sys.argv[1:]:
  model = tf.keras.models.load_model(path)
  data = dict(np.load(path + ".npz"))
  logits = model(data["images"], training=False)
  np.savez(path + ".npz", **data, loaded=logits, layers=len(model.layers))
  assert isinstance(model, tf.keras.Model), type(model)
"""


def scalar_model(value):
  model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
  model.set_weights([np.full((1, 1), value), np.full(1, value)])
  return model


class KerasTest(tf.test.TestCase):
  @pytest.mark.long
  def test_an_export_opens_without_the_package_and_gives_the_same_logits(self):
    folder = tempfile.mkdtemp(dir=self.get_temp_dir())
    networks = {
      "small_cnn": (8, 8, 1),
      "preact_resnet18": (16, 16, 3),
      "VGG16": (32, 32, 3),
    }
    rng = np.random.default_rng(0)
    for name, shape in networks.items():
      model = make_model(name, shape, 7)
      for weight in model.weights:  # batch-norm starts as the identity
        if "moving" in weight.name:
          weight.assign(rng.uniform(0.5, 2.0, weight.shape))
      images = rng.random((3, *shape), "f4")
      path = os.path.join(folder, name)
      exporting.export(model, path)
      logits = model(images, training=False)
      np.savez(f"{path}.npz", images=images, logits=logits, expected=len(model.layers))
    done = subprocess.run(
      [sys.executable, "-c", LOAD, *(os.path.join(folder, name) for name in networks)],
      cwd=folder,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    for name in networks:
      data = np.load(os.path.join(folder, f"{name}.npz"))
      self.assertEqual(data["loaded"].shape, (3, 7))
      self.assertAllClose(data["loaded"], data["logits"], atol=1e-5, rtol=1e-5)
      self.assertEqual(data["layers"], data["expected"])
      self.assertNotAllClose(data["loaded"].sum(axis=1), np.ones(3), msg=name)

  def test_an_export_is_replaced_as_a_whole(self):
    folder = tempfile.mkdtemp(dir=self.get_temp_dir())
    path = os.path.join(folder, "export")
    exporting.export(scalar_model(1.0), path)
    with open(os.path.join(path, "leftover"), "w"):
      pass
    # The new one fails when half of it is written.
    failing = scalar_model(2.0)

    def save(directory, **kwargs):
      os.makedirs(directory)
      raise KeyboardInterrupt

    with mock.patch.object(failing, "save", save), self.assertRaises(KeyboardInterrupt):
      exporting.export(failing, path)
    self.assertEqual(os.listdir(folder), ["export"])
    ones = np.ones((1, 1), "f4")
    self.assertAllEqual(tf.keras.models.load_model(path)(ones), [[2.0]])
    exporting.export(scalar_model(2.0), path)
    self.assertEqual(os.listdir(folder), ["export"])
    self.assertNotIn("leftover", os.listdir(path))
    self.assertAllEqual(tf.keras.models.load_model(path)(ones), [[4.0]])


class FormatsTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model_dir = tempfile.mkdtemp(dir=self.get_temp_dir())
    rng = np.random.default_rng(0)
    self.model = make_model("small_cnn", (8, 8, 1), 5)
    for weight in self.model.weights:  # batch-norm starts as the identity
      if "moving" in weight.name:
        weight.assign(rng.uniform(0.5, 2.0, weight.shape))
    self.images = rng.random((3, 8, 8, 1), "f4")
    self.logits = self.model(self.images, training=False)

  def test_a_server_gets_logits_and_probabilities(self):
    (path,) = exporting.export_formats(self.model, self.model_dir, ["serving"])
    serve = tf.saved_model.load(path).signatures["serving_default"]
    results = serve(image=tf.constant(self.images))
    self.assertAllClose(results["logits"], self.logits, atol=1e-5)
    exponents = np.exp(self.logits)
    self.assertAllClose(
      results["probabilities"], exponents / exponents.sum(axis=1, keepdims=True)
    )

  def test_files_of_keras_and_tflite(self):
    paths = exporting.export_formats(self.model, self.model_dir, ["keras", "tflite"])
    loaded = tf.keras.models.load_model(paths[0], compile=False)
    self.assertAllClose(loaded(self.images), self.logits, atol=1e-5)
    interpreter = tf.lite.Interpreter(paths[1])
    interpreter.allocate_tensors()
    for image, logits in zip(self.images, self.logits):
      interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
      interpreter.invoke()
      output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
      self.assertAllClose(output[0], logits, atol=1e-5)
    self.assertCountEqual(os.listdir(self.model_dir), ["export.keras", "export.tflite"])

  def test_onnx(self):
    onnxruntime = self.importorskip("onnxruntime")
    (path,) = exporting.export_formats(self.model, self.model_dir, ["onnx"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": self.images})
    self.assertAllClose(logits, self.logits, atol=1e-5)

  def importorskip(self, name):
    try:
      return __import__(name)
    except ImportError:
      self.skipTest(f"{name} is not installed: pip install 'dat-tf[onnx]'")

  def test_without_its_packages_onnx_names_the_extra(self):
    with mock.patch.dict(sys.modules, tf2onnx=None):
      with self.assertRaisesRegex(UserError, r"onnx needs .*\[onnx\]"):
        exporting.export_formats(self.model, self.model_dir, ["keras", "onnx"])
    self.assertEmpty(os.listdir(self.model_dir))

  @parameterized.parameters("keras", "serving", "tflite")
  def test_other_logits_are_not_written(self, name):
    writer = exporting._WRITERS[name]

    def wrong(classifier, path):
      logits = writer(classifier, path)
      return lambda images: logits(images) + 0.01

    with mock.patch.dict(exporting._WRITERS, {name: wrong}):
      with self.assertRaisesRegex(UserError, f"{name}: its logits differ by 0.01"):
        exporting.export_formats(self.model, self.model_dir, [name])
    self.assertEmpty(os.listdir(self.model_dir))

  def test_formats_in_an_object_store(self):
    target = "ram://exports/run"
    for _ in range(2):  # the second replaces the first
      exporting.export_formats(self.model, target, ["keras", "serving"])
    loaded = tf.saved_model.load(f"{target}/serving").signatures["serving_default"]
    logits = loaded(image=tf.constant(self.images))["logits"]
    self.assertAllClose(logits, self.logits, atol=1e-5)
    self.assertTrue(tf.io.gfile.exists(f"{target}/export.keras"))


if __name__ == "__main__":
  tf.test.main()
