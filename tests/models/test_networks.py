"""The larger networks: published sizes, equations of their parts, exports, mistakes."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import textwrap
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.models import batch_norm, make_model
from dat_tf.models.resnet import resnet
from dat_tf.models.vit import vit_small
from dat_tf.models.wide_resnet import wide_resnet
from dat_tf.program import exporting


def trainable(model):
  return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def part(model, first, last):
  """The layers after `first`, up to `last`, as a model."""
  return tf.keras.Model(model.get_layer(first).output, model.get_layer(last).output)


def random_images(*shape):
  return np.random.default_rng(0).random(shape, "f4")


class SizesTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    # 36.5 M and 46.2 M (Zagoruyko and Komodakis; Zhang et al., TRADES).
    ("wide_resnet28_10", 32, 10, 36_479_194),
    ("wide_resnet34_10_swish", 32, 10, 46_160_474),
    # 11.7 M and 25.6 M, to the last one those of torchvision's.
    ("imagenet_resnet18", 64, 1000, 11_689_512),
    ("imagenet_resnet50", 64, 1000, 25_557_032),
  )
  def test_published_sizes(self, name, side, num_classes, size):
    model = make_model(name, (side, side, 3), num_classes)
    self.assertEqual(trainable(model), size)
    self.assertEqual(model.output_shape, (None, num_classes))
    self.assertIsInstance(model.layers[1], tf.keras.layers.Normalization)
    for layer in model.layers:
      if isinstance(layer, tf.keras.layers.BatchNormalization):
        self.assertEqual(layer.momentum, batch_norm.MOMENTUM)

  def test_size_of_the_vision_transformer(self):
    model = make_model("vit_small16", (224, 224, 3), 1000)
    stem = 9 * (3 * 48 + 48 * 96 + 96 * 192 + 192 * 384) + 3 * (48 + 96 + 192 + 384)
    embedding = 384 * 384 + 14 * 14 * 384
    block = 4 * (384 + 1) * 384 + (384 + 1) * 1536 + (1536 + 1) * 384 + 4 * 384
    self.assertEqual(
      trainable(model), stem + embedding + 12 * block + 2 * 384 + 385 * 1000
    )
    self.assertAllClose(trainable(model), 22.78e6, rtol=1e-3)  # Singh et al.'s

  def test_size_of_the_plain_network(self):
    model = make_model("plain_cnn", (28, 28, 1), 10)
    convolutions = 17 * 16 + (16 * 16 + 1) * 32
    self.assertEqual(
      trainable(model), convolutions + (14 * 14 * 32 + 1) * 100 + 101 * 10
    )

  def test_size_of_the_denoising_blocks(self):
    plain, denoising = (
      trainable(make_model(f"{form}_resnet50", (32, 32, 3), 10))
      for form in ("imagenet", "denoising")
    )
    # theta and phi to half the channels, a 1 x 1 convolution, scale and offset.
    extra = sum(2 * c * (c // 2) + c * c + 2 * c for c in (256, 512, 1024, 2048))
    self.assertEqual(denoising - plain, extra)

  def test_strides(self):
    for model, layer, side in (
      (resnet((64, 64, 3), 5, depth=18), "stem_pool", 16),
      (resnet((64, 64, 3), 5, depth=18), "stage3_block1_relu", 2),
      (wide_resnet((32, 32, 1), 5, depth=10, width=1), "head_relu", 8),
    ):
      shape = model.get_layer(layer).output_shape
      self.assertEqual(shape[1:3], (side, side))


class PartsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters("relu", "swish")
  def test_a_block_of_the_wide_network(self, activation):
    model = wide_resnet((4, 4, 2), 3, depth=10, width=1, activation=activation)
    rng = np.random.default_rng(1)
    for layer in model.layers:
      if isinstance(layer, tf.keras.layers.BatchNormalization):
        layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.weights])
    x = rng.normal(size=(2, 4, 4, 16)).astype("f4")
    result = part(model, "stage0_block0_add", "stage1_block0_add")(x)

    def act(y, name):
      scale, offset, mean, variance = model.get_layer(name).get_weights()
      y = (y - mean) / np.sqrt(variance + 1e-5) * scale + offset
      return np.maximum(y, 0) if activation == "relu" else y / (1 + np.exp(-y))

    def convolve(y, name, stride):
      (kernel,) = model.get_layer(name).get_weights()
      return tf.nn.conv2d(y.astype("f4"), kernel, stride, "SAME").numpy()

    before = act(x, "stage1_block0_pre0_norm")
    y = convolve(before, "stage1_block0_conv0", 2)
    y = convolve(act(y, "stage1_block0_pre1_norm"), "stage1_block0_conv1", 1)
    expected = y + convolve(before, "stage1_block0_shortcut", 2)
    self.assertAllClose(result, expected, rtol=1e-4, atol=1e-4)

  def test_the_denoising_block_is_that_of_the_paper(self):
    model = resnet((32, 32, 3), 3, depth=18, denoising=True)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 8, 8, 64)).astype("f4")
    block = part(model, "stage0_block1_relu", "stage0_denoise_add")
    self.assertAllClose(block(x), x)  # before training it does nothing
    scale, offset, mean, variance = rng.uniform(0.5, 1.5, size=(4, 64))
    norm = model.get_layer("stage0_denoise_norm")
    norm.set_weights([scale, offset, mean, variance])
    theta, phi, last = (
      model.get_layer(f"stage0_denoise_{name}").get_weights()[0][0, 0]
      for name in ("theta", "phi", "conv")
    )
    rows = x.reshape(2, 64, 64).astype("f8")  # places, channels
    likeness = np.einsum("bic,bjc->bij", rows @ theta, rows @ phi) / np.sqrt(32)
    weights = np.exp(likeness)
    weights /= weights.sum(axis=2, keepdims=True)
    y = np.einsum("bij,bjc->bic", weights, rows) @ last
    y = (y - mean) / np.sqrt(variance + 1e-5) * scale + offset
    expected = x + y.reshape(x.shape)
    self.assertAllClose(block(x), expected, rtol=1e-4, atol=1e-4)

  def test_a_bottleneck_has_its_stride_in_the_middle(self):
    model = resnet((32, 32, 3), 3, depth=50)
    convolutions = [model.get_layer(f"stage1_block0_conv{i}") for i in range(3)]
    self.assertEqual(
      [(c.filters, c.kernel_size[0], c.strides[0]) for c in convolutions],
      [(128, 1, 1), (128, 3, 2), (512, 1, 1)],
    )

  def test_tokens_know_their_place(self):
    model = vit_small((32, 48, 3), 5)
    embedding = model.get_layer("embedding")
    kernel, places = embedding.get_weights()
    tokens = random_images(2, 6, 384)
    expected = tokens @ kernel + places
    self.assertAllClose(embedding(tokens), expected, rtol=1e-4, atol=1e-4)
    self.assertGreater(np.abs(places[0] - places[1]).max(), 0.01)

  def test_a_block_of_the_transformer(self):
    model = vit_small((16, 32, 1), 5)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 2, 384)).astype("f4")
    names = ["norm0", "attention", "norm1", "dense0", "dense1"]
    weights = {}
    for name in names:
      layer = model.get_layer(f"block3_{name}")
      values = [rng.normal(0, 0.05, size=w.shape) for w in layer.weights]
      layer.set_weights(values)
      weights[name] = values

    def norm(y, name):
      scale, offset = weights[name]
      deviation = np.sqrt(y.var(axis=-1, keepdims=True) + 1e-6)
      return (y - y.mean(axis=-1, keepdims=True)) / deviation * scale + offset

    def gelu(y):
      return y * 0.5 * (1 + np.vectorize(__import__("math").erf)(y / np.sqrt(2)))

    q, qb, k, kb, v, vb, o, ob = weights["attention"]
    y = norm(x.astype("f8"), "norm0")
    project = lambda kernel, bias: np.einsum("btc,chd->bhtd", y, kernel) + bias[:, None]  # noqa: E731
    query, key, value = project(q, qb), project(k, kb), project(v, vb)
    scores = np.exp(np.einsum("bhtd,bhsd->bhts", query, key) / np.sqrt(64))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhts,bhsd->bthd", scores, value)
    y = x + np.einsum("bthd,hdc->btc", mixed, o) + ob
    hidden = gelu(norm(y, "norm1") @ weights["dense0"][0] + weights["dense0"][1])
    expected = y + hidden @ weights["dense1"][0] + weights["dense1"][1]
    result = part(model, "block2_add1", "block3_add1")(x)
    self.assertAllClose(result, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.long
class ExportTest(tf.test.TestCase):
  def test_exports_open_without_this_package(self):
    shape = (32, 32, 3)
    models = {
      "wide": wide_resnet(shape, 4, depth=10, width=1, activation="swish"),
      "denoising": resnet(shape, 4, depth=18, denoising=True),
      "vit": vit_small(shape, 4),
    }
    images = random_images(2, *shape)
    directory = tempfile.mkdtemp(dir=self.get_temp_dir())
    np.save(f"{directory}/images.npy", images)
    for name, model in models.items():
      self.assertDTypeEqual(model(images).numpy(), np.float32)
      lambdas = [x for x in model.layers if isinstance(x, tf.keras.layers.Lambda)]
      self.assertEmpty(lambdas)
      exporting.export(model, f"{directory}/{name}")
    code = textwrap.dedent(f"""
      import sys
      import numpy as np
      sys.modules["dat_tf"] = None  # importing it would fail
      import tensorflow as tf
      images = np.load("images.npy")
      for name in {list(models)}:
        model = tf.keras.models.load_model(name, compile=False)
        np.save(name + ".npy", model(images, training=False))
    """)
    subprocess.run([sys.executable, "-c", code], cwd=directory, check=True)
    for name, model in models.items():
      expected = model(images, training=False)
      self.assertAllClose(np.load(f"{directory}/{name}.npy"), expected, atol=1e-5)


class UsersOwnTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.mkdtemp(dir=self.get_temp_dir())
    pathlib.Path(directory, "their_networks.py").write_text(
      textwrap.dedent("""
        import tensorflow as tf
        def flat(image_shape, num_classes):
          return tf.keras.Sequential([
            tf.keras.Input(image_shape),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(num_classes),
          ])
        def of_ten(image_shape, num_classes):
          return flat(image_shape, 10)
        def nothing(image_shape, num_classes):
          pass
      """)
    )
    patch = mock.patch.object(sys, "path", [directory, *sys.path])
    patch.start()
    self.addCleanup(patch.stop)

  def test_a_network_of_the_users(self):
    model = make_model("their_networks:flat", (4, 5, 1), 3)
    self.assertEqual(model.output_shape, (None, 3))
    self.assertEqual(trainable(model), 21 * 3)

  def test_mistakes(self):
    for name, *words in (
      ("their_networks:round", "round", "package.module:function"),
      ("nowhere.at_all:flat", "nowhere", "PYTHONPATH"),
      ("their_networks:of_ten", "(None, 3)", "(None, 10)"),
      ("their_networks:nothing", "NoneType"),
      (":flat", "package.module:function"),
    ):
      with self.assertRaises(UserError) as caught:
        make_model(name, (4, 4, 1), 3)
      for word in (name, *words):
        self.assertIn(word, str(caught.exception))
    with self.assertRaisesRegex(UserError, "vit_small16.*multiples of 16"):
      make_model("vit_small16", (28, 28, 1), 10)
