"""Networks: shapes, parameters counted by hand, and pixels at their border."""

from __future__ import annotations

import inspect
import sys

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.models import make_model, registry


def parameters(model):
  """(trainable, not trainable)."""
  count = lambda weights: sum(int(np.prod(w.shape)) for w in weights)  # noqa: E731
  return count(model.trainable_weights), count(model.non_trainable_weights)


def intermediate(model, layer):
  return tf.keras.Model(model.inputs, layer.output)


def random_images(*shape):
  images = np.random.default_rng(0).random(shape, "f4")
  images[0].flat[:2] = 0.0, 1.0
  return images


class OwnNetworksTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("small_cnn", (28, 28, 1), 10),
    ("small_cnn", (8, 8, 3), 3),
    ("preact_resnet18", (32, 32, 3), 10),
    ("preact_resnet18", (28, 28, 1), 7),
  )
  def test_images_in_logits_out(self, name, shape, num_classes):
    model = make_model(name, shape, num_classes)
    self.assertEqual(model.input_shape, (None, *shape))
    logits = model(random_images(5, *shape)).numpy()
    self.assertEqual(logits.shape, (5, num_classes))
    self.assertDTypeEqual(logits, np.float32)
    # No softmax: a matrix product and an offset.
    last = model.layers[-1]
    features = intermediate(model, model.layers[-2])(random_images(5, *shape))
    kernel, bias = last.get_weights()
    self.assertAllClose(logits, features @ kernel + bias, atol=1e-5)

  @parameterized.parameters(((28, 28, 1), 7), ((8, 9, 3), 2))
  def test_parameters_of_the_small_cnn(self, shape, last):
    height, width, channels = shape
    convolutions = [(channels, 16), (16, 32), (32, 32), (32, 64)]
    # Strides 1, 2, 1 and 2: each side is halved twice, rounded up.
    flat = -(-height // 4) * -(-width // 4) * 64
    trainable = sum(9 * i * o for i, o in convolutions)  # 3 x 3, without biases
    trainable += sum(2 * o for _, o in convolutions)  # batch-norm's scale and offset
    trainable += (flat + 1) * 64 + (64 + 1) * last
    statistics = sum(2 * o for _, o in convolutions)
    model = make_model("small_cnn", shape, last)
    self.assertEqual(parameters(model), (trainable, statistics))

  def test_parameters_of_preact_resnet18(self):
    # (in, out, stride) of the two blocks of each stage.
    blocks = [(64, 64), (64, 64), (64, 128), (128, 128)]
    blocks += [(128, 256), (256, 256), (256, 512), (512, 512)]
    kernels = 9 * 3 * 64
    norms = 0
    for before, after in blocks:
      kernels += 9 * before * after + 9 * after * after
      kernels += before * after if before != after else 0  # the 1 x 1 shortcut
      norms += before + after  # normalised before each convolution
    norms += 512  # after the last block
    trainable = kernels + 2 * norms + (512 + 1) * 10
    # As well known on CIFAR-10 is the number without that last normalisation.
    self.assertEqual(trainable - 2 * 512, 11_171_146)
    model = make_model("preact_resnet18", (32, 32, 3), 10)
    self.assertEqual(parameters(model), (trainable, 2 * norms))
    convolutions = [x for x in model.layers if isinstance(x, tf.keras.layers.Conv2D)]
    self.assertLen(convolutions, 1 + 16 + 3)
    # 32 x 32 without pooling in the stem, halved three times.
    self.assertEqual(model.get_layer("pool").input_shape, (None, 4, 4, 512))

  def test_a_block_of_preact_resnet18_is_that_of_numpy(self):
    model = make_model("preact_resnet18", (4, 4, 1), 3)
    rng = np.random.default_rng(1)
    for layer in model.layers:
      if isinstance(layer, tf.keras.layers.BatchNormalization):
        layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.weights])
    images = random_images(2, 4, 4, 1)
    before, after = (
      intermediate(model, model.get_layer(name))(images).numpy().astype("f8")
      for name in ("stage0_block1_add", "stage1_block0_add")
    )

    def normalized_relu(x, name):
      scale, offset, mean, variance = model.get_layer(name).get_weights()
      return np.maximum((x - mean) / np.sqrt(variance + 1e-5) * scale + offset, 0)

    def convolved(x, name, stride):
      (kernel,) = model.get_layer(name).get_weights()
      size = len(kernel)
      # TensorFlow's "same": an even side under stride 2 is padded at its end only.
      first = (size - stride) // 2 if size > 1 else 0
      x = np.pad(x, ((0, 0), (first, size), (first, size), (0, 0)))
      steps = range(0, 4, stride)
      rows = [
        [
          np.einsum("bhwi,hwio->bo", x[:, i : i + size, j : j + size], kernel)
          for j in steps
        ]
        for i in steps
      ]
      return np.moveaxis(np.array(rows), 2, 0)

    activated = normalized_relu(before, "stage1_block0_pre0_norm")
    inner = convolved(activated, "stage1_block0_conv0", 2)
    inner = normalized_relu(inner, "stage1_block0_pre1_norm")
    inner = np.pad(inner, ((0, 0), (0, 2), (0, 2), (0, 0)))  # its side is 2, not 4
    inner = convolved(inner, "stage1_block0_conv1", 1)[:, :2, :2]
    expected = inner + convolved(activated, "stage1_block0_shortcut", 2)
    self.assertAllClose(after, expected, rtol=1e-4, atol=1e-4)

  def test_normalization_is_the_first_layer(self):
    mean, deviation = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    for name, channels, shift, scale in (
      ("small_cnn", 1, 0.5, 0.5),
      ("small_cnn", 3, 0.5, 0.5),
      ("preact_resnet18", 1, 0.5, 0.5),
      ("preact_resnet18", 3, mean, deviation),  # CIFAR-10's
    ):
      model = make_model(name, (8, 8, channels), 10)
      images = random_images(2, 8, 8, channels)
      self.assertIsInstance(model.layers[0], tf.keras.layers.InputLayer)
      normalized = intermediate(model, model.layers[1])(images)
      self.assertAllClose(normalized, (images - shift) / scale, atol=1e-6)
      self.assertEmpty(model.layers[1].trainable_weights)


class ApplicationsTest(tf.test.TestCase, parameterized.TestCase):
  def test_resnet50_sees_what_its_preprocessing_makes_of_255_x(self):
    model = make_model("ResNet50", (32, 32, 3), 10)
    images = random_images(2, 32, 32, 3)
    network = model.layers[-1]
    seen = intermediate(model, model.layers[-2])(images)
    # Blue, green, red, in [0, 255], less ImageNet's mean.
    expected = 255 * images[..., ::-1] - np.array([103.939, 116.779, 123.68])
    self.assertAllClose(seen, expected, atol=1e-4)
    preprocess = tf.keras.applications.resnet.preprocess_input
    self.assertAllClose(seen, preprocess(255 * images), atol=1e-4)
    logits = model(images, training=False)
    self.assertAllClose(logits, network(expected, training=False), atol=1e-4)
    self.assertEqual(logits.shape, (2, 10))
    # Not probabilities.
    features = intermediate(network, network.layers[-2])(expected)
    kernel, bias = network.layers[-1].get_weights()
    self.assertAllClose(logits, features @ kernel + bias, atol=1e-4)
    # With 1,000 classes ResNet-50 has 25,557,032 parameters, and in Keras' form a bias
    # for each of the filters too.
    biases = 64 + sum(
      6 * n * f + 4 * f for n, f in ((3, 64), (4, 128), (6, 256), (3, 512))
    )
    trainable, _ = parameters(model)
    self.assertEqual(trainable + (2048 + 1) * 990, 25_557_032 + biases)

  def test_every_application_takes_what_it_is_given(self):
    arguments = {"weights", "input_shape", "classes", "classifier_activation"}
    constructors = {
      name: getattr(tf.keras.applications, name) for name in registry._applications()
    }
    self.assertContainsSubset({"ResNet50", "VGG16", "EfficientNetB0"}, constructors)
    for name, constructor in constructors.items():
      inspect.signature(constructor).bind(**dict.fromkeys(arguments))
      preprocess = sys.modules[constructor.__module__].preprocess_input
      self.assertEqual(preprocess(np.zeros((1, 2, 2, 3))).shape, (1, 2, 2, 3), name)


class PrecisionTest(tf.test.TestCase):
  def tearDown(self):
    tf.keras.mixed_precision.set_global_policy("float32")
    super().tearDown()

  def test_layers_compute_in_16_bits_between_weights_and_logits_of_32(self):
    model = make_model("small_cnn", (8, 8, 1), 10, precision="mixed_bfloat16")
    for layer in model.layers:
      if layer.weights:
        self.assertEqual(layer.compute_dtype, "bfloat16", layer.name)
        self.assertEqual(layer.dtype, "float32", layer.name)
    images = random_images(4, 8, 8, 1)
    logits = model(images)
    self.assertEqual(logits.dtype, tf.float32)
    self.assertEqual(model.output_shape, (None, 10))
    exact = make_model("small_cnn", (8, 8, 1), 10)
    self.assertEqual(exact.layers[1].compute_dtype, "float32")
    exact.set_weights(model.get_weights())
    expected = exact(images)
    scale = np.abs(expected).max()
    self.assertAllClose(logits, expected, rtol=0, atol=0.05 * scale)
    # No more than eight bits of a logit are its own.
    self.assertAllEqual(logits, tf.cast(tf.cast(logits, tf.bfloat16), tf.float32))
    self.assertNotAllEqual(logits, expected)

  def test_the_global_policy_is_what_it_was_also_after_a_mistake(self):
    for before in ("float32", "mixed_float16"):
      tf.keras.mixed_precision.set_global_policy(before)
      make_model("plain_cnn", (4, 4, 1), 3, precision="mixed_bfloat16")
      self.assertEqual(tf.keras.mixed_precision.global_policy().name, before)
      with self.assertRaises(UserError):
        make_model("smal_cnn", (4, 4, 1), 3, precision="mixed_bfloat16")
      self.assertEqual(tf.keras.mixed_precision.global_policy().name, before)


class MistakesTest(tf.test.TestCase, parameterized.TestCase):
  def assert_refused(self, name, shape, *words):
    with self.assertRaises(UserError) as caught:
      make_model(name, shape, 10)
    for word in (name, *words):
      self.assertIn(word, str(caught.exception))

  @parameterized.parameters(
    ("resnet50", "ResNet50"),
    ("preactresnet18", "preact_resnet18"),
    ("smal_cnn", "small_cnn"),
    ("EfficentNetB0", "EfficientNetB0"),
    ("qqqq", "small_cnn"),  # near nothing
    ("resnet", "ResNet"),  # a module, not a network
  )
  def test_an_unknown_name_is_answered_with_near_ones(self, name, near):
    self.assert_refused(name, (32, 32, 3), near)

  def test_images_that_a_network_does_not_take(self):
    self.assert_refused("VGG16", (8, 8, 3), "(8, 8, 3)", "32")
    self.assert_refused("VGG16", (32, 32, 1), "(32, 32, 1)")
