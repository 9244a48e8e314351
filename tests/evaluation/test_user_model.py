"""Models of a user's own: what is taken, and what is said of those that are not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import tempfile
import unittest
import unittest.mock
import zipfile

import h5py
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.attacks import L2, LInfinity, make_attacks
from dat_tf.base import files
from dat_tf.base.errors import UserError
from dat_tf.evaluation import Evaluator, UserModel, checks

KERAS_3 = importlib.metadata.version("keras").startswith("3.")
SHAPE, CLASSES = (3, 4, 1), 3
IMAGES = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype("f4")
KERNEL = np.random.default_rng(1).normal(size=(12, CLASSES)).astype("f4")


def logits(images):
  return np.asarray(images).reshape(-1, 12) @ KERNEL


def softmax(x):
  powers = np.exp(x.astype("f8"))
  return powers / powers.sum(axis=1, keepdims=True)


def keras_model(*last, shape=SHAPE, first=()):
  layers = tf.keras.layers
  dense = layers.Dense(CLASSES, use_bias=False)
  model = tf.keras.Sequential(
    [tf.keras.Input(shape), *first, layers.Flatten(), dense, *last]
  )
  if shape == SHAPE:
    dense.set_weights([KERNEL])
  return model


class Plain(tf.Module):
  """What `tf.saved_model.save` makes a SavedModel without Keras of."""

  def __init__(self):
    super().__init__()
    self.kernel = tf.Variable(KERNEL)

  def signature(self, function, dtype=tf.float32, shape=(None, *SHAPE)):
    spec = tf.TensorSpec(shape, dtype, "pixels")
    return tf.function(function, input_signature=[spec])

  def logits(self, pixels):
    return tf.reshape(tf.cast(pixels, tf.float32), [-1, 12]) @ self.kernel


class UserModelTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = tempfile.mkdtemp(dir=self.get_temp_dir())

  def test_a_model_for_pixels_in_another_range_is_told(self):
    def model(low, high):
      scale = tf.keras.layers.Rescaling(1 / (high - low), -low / (high - low))
      center = tf.keras.layers.Lambda(lambda x: tf.clip_by_value(x, 0.0, 1.0) - 0.5)
      made = keras_model(first=(scale, center))
      path = self.saved(made, f"{high:g}{low:g}", save_format="tf")
      return UserModel(path, given, unsafe=True)  # it has a Lambda

    labels = (logits(IMAGES - 0.5)).argmax(axis=1)
    for low, high in ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)):
      for given in ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)):
        user_model = model(low, high)
        shares = user_model.accuracies(IMAGES, labels, batch_size=2)
        self.assertEqual(shares[low, high], 1.0)
        self.assertEqual(user_model.range, given)
        found = checks.from_ranges(shares, given)
        if shares[given] == 1.0:
          self.assertEmpty(found)
        else:
          self.assertIn(f"`input_range={low:g},{high:g}`", found[0]["message"])
    self.assertLess(shares[0.0, 1.0], 1.0)

  def path(self, name="model"):
    return os.path.join(self.folder, name)

  def saved(self, model, name="model.keras", **settings):
    model.save(self.path(name), **settings)
    return self.path(name)

  def plain(self, function, name="serving_default", **spec):
    module = Plain()
    signature = module.signature(lambda x: function(module, x), **spec)
    tf.saved_model.save(module, self.path(), signatures={name: signature})
    return self.path()

  @parameterized.parameters("model.keras", "model.h5", "model")
  def test_code_of_its_own(self, name):
    witness = self.path("witness")
    code = lambda x, witness=witness: tf.io.gfile.mkdir(witness) or x  # noqa: E731
    inner = tf.keras.Sequential(
      [tf.keras.Input((CLASSES,)), tf.keras.layers.Lambda(code)]
    )
    path = self.saved(keras_model(inner), name)
    tf.io.gfile.rmtree(witness)  # building it made that
    with self.assertRaisesRegex(UserError, "holds code of its own .a Lambda.*unsafe"):
      UserModel(path)
    self.assertFalse(tf.io.gfile.exists(witness))
    UserModel(path, unsafe=True)(IMAGES)
    if name != "model":  # whose graph ran when it was traced
      self.assertTrue(tf.io.gfile.exists(witness))

  @parameterized.parameters("shutil", "os.path", "dat_tf.base.files")
  def test_modules_to_be_imported(self, module):
    path = self.saved(keras_model())
    with zipfile.ZipFile(path) as archive:
      parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"][1].update(module=module, class_name="rmtree")
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
      for part, content in parts.items():
        archive.writestr(part, content)
    with self.assertRaisesRegex(UserError, f"the module {module}"):
      UserModel(path)

  @parameterized.parameters(False, True)
  def test_operations_that_reach_files(self, by_keras):
    def logits(module, x):
      with tf.control_dependencies([tf.io.write_file(self.path("witness"), "x")]):
        return module.logits(tf.identity(x))

    if by_keras:

      class Writes(tf.keras.layers.Layer):
        def call(self, x):
          with tf.control_dependencies([tf.io.write_file(witness, "x")]):
            return tf.identity(x)

      witness = self.path("witness")
      path = self.saved(keras_model(Writes()), "model")
    else:
      path = self.plain(logits)
    if tf.io.gfile.exists(self.path("witness")):
      tf.io.gfile.remove(self.path("witness"))
    with self.assertRaisesRegex(UserError, "operation WriteFile.*`unsafe_model`"):
      UserModel(path)
    UserModel(path, unsafe=True)(tf.constant(IMAGES))
    self.assertTrue(tf.io.gfile.exists(self.path("witness")))

  def assert_refused(self, model, pattern, images=IMAGES, num_classes=CLASSES):
    with self.assertRaisesRegex(UserError, pattern) as caught:
      model().check(images, num_classes)
    self.assertNotIn("\n", str(caught.exception))
    self.assertStartsWith(str(caught.exception), str(self.folder))

  def assert_taken(self, model):
    model.check(IMAGES, CLASSES)
    self.assertAllClose(tf.function(model)(IMAGES), logits(IMAGES), atol=1e-5)

  @parameterized.parameters(("model.keras", {}), ("model.h5", {}), ("model", {"f": 1}))
  def test_what_keras_saves(self, name, settings):
    form = {"save_format": "tf"} if settings else {}
    self.assert_taken(UserModel(self.saved(keras_model(), name, **form)))

  @parameterized.parameters("model.keras", "model.h5")
  def test_a_file_of_keras_3_beside_keras_2_alone(self, name):
    path = self.path(name)
    if name.endswith(".h5"):
      with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "3.15.1"
    else:
      with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
    keras_2 = unittest.mock.Mock(__version__="2.15.0")
    for module in (keras_2, None):
      with unittest.mock.patch.dict(sys.modules, keras=module):
        self.assert_refused(
          lambda: UserModel(path), "written by Keras 3.15.1.*TensorFlow 2.16.*3.12"
        )

  @unittest.skipUnless(KERAS_3, "Keras 3 is not installed")
  @parameterized.parameters("model.keras", "model.h5", "exported")
  def test_what_keras_3_writes(self, name):
    import keras

    layers = keras.layers
    network = keras.Sequential(
      [
        keras.Input(SHAPE),
        layers.Conv2D(2, 3, padding="same", activation="relu"),
        layers.BatchNormalization(),
        layers.Dropout(0.9),
        layers.Flatten(),
        layers.Dense(CLASSES),
      ]
    )
    network.build((None, *SHAPE))
    if name == "exported":
      network.export(self.path(name), verbose=False)
    else:
      network.save(self.path(name))
    model = UserModel(self.path(name))
    model.check(IMAGES, CLASSES)
    expected = network(IMAGES, training=False)
    self.assertAllClose(tf.function(model)(IMAGES), expected, atol=1e-5)
    # The evaluation takes the model itself as well, and both are attacked alike.
    labels, ids = expected.numpy().argmax(axis=1), np.arange(len(IMAGES))
    names = ["pgd-5", "apgd-ce", "fab-t", "ddn"]
    attacks = {name: make_attacks(name, LInfinity(0.2)).values() for name in names[:3]}
    attacks["ddn"] = make_attacks("ddn", L2(0.5)).values()
    found = [
      Evaluator(classifier, attacks, batch_size=4)(IMAGES, labels, ids)[1]
      for classifier in (model, network)
    ]
    self.assertTrue(any(outcome.broken.any() for outcome in found[0].values()))
    for name in names:
      of_file, of_model = (outcomes[name] for outcomes in found)
      self.assertAllClose(of_file.norm, of_model.norm, atol=1e-3, msg=name)

  def test_inference_mode(self):
    noise = tf.keras.layers.Dropout(0.9)
    self.assert_taken(UserModel(self.saved(keras_model(noise))))

  @parameterized.parameters("serving_default", "classify")
  def test_a_saved_model_with_a_signature(self, name):
    path = self.plain(lambda module, x: {"output": module.logits(x)}, name)
    self.assert_taken(UserModel(path))

  def test_of_several_outputs_the_one_that_is_named(self):
    def both(module, x):
      outputs = module.logits(x)
      return {"probabilities": tf.nn.softmax(outputs), "logits": outputs}

    path = self.plain(both)
    self.assert_taken(UserModel(path))
    model = UserModel(path, probabilities=True)
    model.check(IMAGES, CLASSES)
    self.assertAllClose(model(IMAGES), np.log(softmax(logits(IMAGES))), atol=1e-5)

  @parameterized.parameters((0, 255), (-1, 1))
  def test_input_range(self, low, high):
    model = UserModel(self.saved(keras_model()), (low, high))
    expected = logits(low + (high - low) * IMAGES)
    for call in (model, tf.function(model)):
      self.assertAllClose(call(IMAGES), expected, rtol=1e-4, atol=1e-3)

  def test_probabilities_become_logits_that_are_finite(self):
    path = self.saved(keras_model(tf.keras.layers.Softmax()))
    model = UserModel(path, (0, 1e4), probabilities=True)
    model.check(IMAGES, CLASSES)
    for call in (model, tf.function(model)):
      found = call(IMAGES).numpy()
      self.assertAllEqual(found.argmax(axis=1), logits(IMAGES).argmax(axis=1))
      self.assertAllInRange(found, -90.0, 0.0)

  def test_half_precision_gives_float32(self):
    cast = tf.keras.layers.Activation("linear", dtype="float16")
    self.assertEqual(UserModel(self.saved(keras_model(cast)))(IMAGES).dtype, tf.float32)

  def test_probabilities_passed_as_logits(self):
    path = self.saved(keras_model(tf.keras.layers.Softmax()))
    self.assert_refused(lambda: UserModel(path), "gives probabilities.*`probabilities`")

  def test_logits_passed_as_probabilities(self):
    path = self.saved(keras_model())
    self.assert_refused(
      lambda: UserModel(path, probabilities=True), "no probabilities.*drop `prob"
    )

  def test_logits_that_add_up_to_one_are_logits(self):
    shift = tf.keras.layers.Lambda(
      lambda x: x + (1.0 - tf.reduce_sum(x, axis=1, keepdims=True)) / CLASSES
    )
    path = self.saved(keras_model(shift), "model", save_format="tf")
    model = UserModel(path, unsafe=True)
    model.check(IMAGES, CLASSES)

  @parameterized.parameters("model.keras", "missing.keras")
  def test_no_model(self, name):
    with open(self.path("model.keras"), "w", encoding="utf-8") as file:
      file.write("no model\n")
    self.assert_refused(lambda: UserModel(self.path(name)), "cannot be|no such file")

  def test_the_directory_of_a_run(self):
    os.makedirs(self.path("run/export"))
    self.assert_refused(lambda: UserModel(self.path("run")), "name .*run/export")

  def test_another_image_shape(self):
    path = self.saved(keras_model(shape=(28, 28, 3)))
    self.assert_refused(
      lambda: UserModel(path), "images of any x 28 x 28 x 3.*would get 5 x 3 x 4 x 1"
    )
    path = self.plain(lambda module, x: module.logits(x), shape=(1, *SHAPE))
    self.assert_refused(lambda: UserModel(path), "1 x 3 x 4 x 1.*`global_batch_size=1`")

  @parameterized.parameters(
    ((1, 3, 4), "Permute((3, 1, 2))", tf.keras.layers.Permute((3, 1, 2))),
    ((12,), "Flatten()", tf.keras.layers.Flatten()),
  )
  def test_a_layer_that_brings_images_to_the_shape(self, shape, advised, layer):
    model = keras_model(shape=shape)
    path = self.saved(model)
    pattern = re.escape(f"Sequential([Input((3, 4, 1)), {advised}, model])")
    self.assert_refused(lambda: UserModel(path), pattern)
    wrapped = tf.keras.Sequential([tf.keras.Input(SHAPE), layer, model])
    UserModel(self.saved(wrapped, "wrapped.keras")).check(IMAGES, CLASSES)

  def test_another_number_of_classes(self):
    path = self.saved(keras_model())
    self.assert_refused(
      lambda: UserModel(path), r"\(5, 3\), and `num_classes=10`", num_classes=10
    )

  def test_a_model_of_words(self):
    path = self.plain(
      lambda module, x: tf.strings.length(x), dtype=tf.string, shape=(None,)
    )
    self.assert_refused(lambda: UserModel(path), "would get|does not take the images")

  def test_several_inputs(self):
    inputs = [tf.keras.Input(SHAPE), tf.keras.Input(SHAPE)]
    added = tf.keras.layers.Add()(inputs)
    outputs = tf.keras.layers.Dense(CLASSES)(tf.keras.layers.Flatten()(added))
    path = self.saved(tf.keras.Model(inputs, outputs))
    self.assert_refused(lambda: UserModel(path), "2 inputs")

  def test_several_outputs(self):
    path = self.plain(lambda module, x: {"a": module.logits(x), "b": module.logits(x)})
    self.assert_refused(
      lambda: UserModel(path), "2 outputs, none of them called logits"
    )

  def test_what_cannot_be_differentiated(self):
    path = self.plain(lambda module, x: module.logits(x), dtype=tf.uint8)
    self.assert_refused(
      lambda: UserModel(path, (0, 255)), "has no gradient with respect to the image"
    )

  @parameterized.parameters("pgd-2", "mi-fgsm-2", "apgd-ce", "deepfool")
  def test_attacks_take_a_model_that_forgets_the_batch_size(self, name):
    def halved(module, pixels):
      return module.logits(tf.image.resize(pixels, SHAPE[:2]))

    model = UserModel(self.plain(halved, shape=(None, None, None, 1)))
    model.check(IMAGES, CLASSES)
    attacks = {name: make_attacks(name, LInfinity(1.0)).values()}
    evaluator = Evaluator(model, attacks, batch_size=4)
    labels = logits(IMAGES).argmax(axis=1)
    _, outcomes = evaluator(IMAGES, labels, np.arange(len(IMAGES)))
    self.assertAllEqual(outcomes[name].broken, np.full(len(IMAGES), True))

  def test_the_fingerprint_is_of_the_weights(self):
    prints = []
    for bias in (0.0, 0.0, 1e-6):
      module = Plain()
      module.kernel.assign_add(bias * tf.ones_like(module.kernel))
      path = self.path()
      signature = module.signature(module.logits)
      tf.saved_model.save(module, path, signatures={"serving_default": signature})
      prints.append(files.fingerprint(path))
      self.assertEqual(files.fingerprint(path), prints[-1])
    self.assertNotEqual(prints[1], prints[2])
