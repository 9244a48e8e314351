"""Transfer learning: weights that are copied, frozen or trained at other rates."""

from __future__ import annotations

import functools
import os
import tempfile
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.base.errors import UserError
from dat_tf.models import make_model, make_pretrained, registry, transfer

layers = tf.keras.layers
MobileNetV2 = tf.keras.applications.MobileNetV2
SHAPE = (32, 32, 3)


def network(names="abc", units=(4, 5, 3), *, batch_norm=True, pixels=4):
  """Dense layers, the last of which makes the logits."""
  inputs = tf.keras.Input((pixels, 1, 1))
  x = layers.Flatten()(inputs)
  for name, size in zip(names[:-1], units):
    x = layers.Dense(size, name=name)(x)
    if batch_norm:
      x = layers.BatchNormalization(name=f"{name}_norm")(x)
    x = layers.ReLU()(x)
  return tf.keras.Model(inputs, layers.Dense(units[-1], name=names[-1])(x), name="net")


def stir(model, seed=0):
  """Gives all weights, statistics among them, other values."""
  rng = np.random.default_rng(seed)
  for weight in model.weights:
    weight.assign(rng.uniform(0.5, 1.5, weight.shape))


def values(variables):
  return [variable.numpy() for variable in variables]


class TransferTest(tf.test.TestCase):
  def assert_refused(self, function, *words):
    with self.assertRaises(UserError) as caught:
      function()
    message = str(caught.exception)
    self.assertLen(message.splitlines(), 1)
    for word in words:
      self.assertIn(word, message)

  def assert_same(self, first, second):
    self.assertEqual(len(first), len(second))
    for a, b in zip(first, second):
      self.assertAllEqual(a, b)


class CopyTest(TransferTest):
  def test_all_weights_of_one_architecture(self):
    source, target = network(), network("xyz")
    stir(source)
    self.assertFalse(transfer.copy_weights_by_layer(source, target))
    self.assert_same(source.get_weights(), target.get_weights())

  def test_a_head_for_other_classes_stays_new(self):
    source, target = network(), network(units=(4, 5, 7))
    stir(source)
    head = values(target.weights[-2:])
    self.assertTrue(transfer.copy_weights_by_layer(source, target))
    self.assert_same(target.get_weights(), source.get_weights()[:-2] + head)

  def test_a_source_without_a_head(self):
    source, target = network(), network()
    stir(source)
    body = tf.keras.Model(source.inputs, source.layers[-2].output)
    head = values(target.weights[-2:])
    self.assertTrue(transfer.copy_weights_by_layer(body, target))
    self.assert_same(target.get_weights(), source.get_weights()[:-2] + head)

  def test_to_a_network_under_a_strategy(self):
    source = network()
    stir(source)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
      target = network(units=(4, 5, 7))
    self.assertTrue(transfer.copy_weights_by_layer(source, target))
    self.assert_same(target.get_weights()[:-2], source.get_weights()[:-2])

  def test_another_architecture_leaves_the_target_as_it_is(self):
    target = network()
    before = target.get_weights()
    copy = functools.partial(transfer.copy_weights_by_layer, target=target)
    self.assert_refused(
      lambda: copy(network("abcd", (4, 5, 5, 3))),
      "net has 7 layers with weights, net has 5",
      "must be of one architecture",
    )
    # Shorter by one, but not by its head.
    self.assert_refused(lambda: copy(network("ab", (4, 3))), "has 3 layers", "has 5")
    # The first of all layers fits.
    self.assert_refused(
      lambda: copy(network(units=(4, 6, 3))),
      "Layer b of net has weights of shapes [(4, 6), (6,)]",
      "[(4, 5), (5,)]",
      "must be of one architecture",
    )
    self.assert_refused(lambda: copy(network(pixels=5)), "(5, 4)", "(4, 4)")
    self.assert_same(before, target.get_weights())


class ApplicationTest(TransferTest):
  """A network of Keras', whose own weights would be downloaded."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.backbone = MobileNetV2(
      input_shape=SHAPE, alpha=0.35, include_top=False, weights=None
    )
    stir(cls.backbone)
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    path = os.path.join(folder.name, "weights.h5")
    cls.backbone.save_weights(path)

    @functools.wraps(MobileNetV2)
    def constructor(weights, **kwargs):
      weights = path if weights == "imagenet" else weights
      return MobileNetV2(alpha=0.35, weights=weights, **kwargs)

    patch = mock.patch.dict(registry._applications(), MobileNetV2=constructor)
    patch.start()
    cls.addClassCleanup(patch.stop)
    cls.model = make_model("MobileNetV2", SHAPE, 7)

  def test_its_backbone_takes_keras_weights_and_its_head_is_new(self):
    head = values(self.model.weights[-2:])
    source = make_pretrained("MobileNetV2", SHAPE)
    self.assertTrue(transfer.copy_weights_by_layer(source, self.model))
    self.assert_same(self.model.get_weights()[:-2], self.backbone.get_weights())
    self.assert_same(values(self.model.weights[-2:]), head)
    # They are where they belong: the features are those of Keras' own network.
    images = np.random.default_rng(1).random((2, *SHAPE), "f4")
    features = self.backbone(2 * images - 1, training=False)
    pooled = np.mean(features, axis=(1, 2))
    logits = self.model(images, training=False)
    self.assertAllClose(logits, pooled @ head[0] + head[1], rtol=1e-3, atol=1e-3)

  def test_freezing_reaches_into_the_network(self):
    network = self.model.layers[-1]
    self.addCleanup(setattr, network, "trainable", True)
    transfer.freeze_backbone(self.model)
    last = network.layers[-1]
    self.assertIsInstance(last, layers.Dense)
    self.assertCountEqual(
      [v.name for v in self.model.trainable_variables], [v.name for v in last.weights]
    )

  def test_rates_reach_into_the_network(self):
    factors = transfer.layer_rate_factors(self.model, 0.5)
    self.assertCountEqual(factors, [v.name for v in self.model.trainable_variables])
    kernels = [v.name for v in self.model.trainable_variables]
    self.assertEqual([factors[name] for name in kernels[-2:]], [1.0, 1.0])
    self.assertEqual(factors[kernels[0]], min(factors.values()))

  @pytest.mark.long
  def test_every_family_takes_keras_weights_but_for_the_head(self):
    for name, size in (
      ("ConvNeXtTiny", 32),
      ("DenseNet121", 32),
      ("EfficientNetV2B0", 32),
      ("InceptionV3", 75),
      ("InceptionResNetV2", 75),
      ("MobileNet", 32),
      ("MobileNetV3Large", 32),
      ("MobileNetV3Small", 32),
      ("NASNetMobile", 32),
      ("RegNetX002", 32),
      ("ResNet50", 32),
      ("ResNet50V2", 32),
      ("ResNetRS50", 32),
      ("VGG16", 32),
      ("Xception", 71),
    ):
      constructor = registry._applications()[name]
      downloaded = functools.wraps(constructor)(
        lambda weights, make=constructor, **kwargs: make(weights=None, **kwargs)
      )
      with (
        self.subTest(name),
        mock.patch.dict(registry._applications(), {name: downloaded}),
      ):
        source = make_pretrained(name, (size, size, 3))
        target = make_model(name, (size, size, 3), 7)
        self.assertTrue(transfer.copy_weights_by_layer(source, target))
        count = len(target.get_weights()) - 2
        self.assert_same(target.get_weights()[:count], source.get_weights()[:count])
      tf.keras.backend.clear_session()

  def test_what_keras_has_no_weights_for(self):
    self.assert_refused(
      lambda: make_pretrained("small_cnn", SHAPE),
      "weights of ImageNet",
      "small_cnn",
      "ResNet50",
    )

  def test_what_keras_changes_where_it_loads_weights(self):
    self.assert_refused(
      lambda: make_pretrained("EfficientNetB0", SHAPE), "ImageNet", "EfficientNetV2B0"
    )

  def test_a_download_that_fails(self):
    def constructor(**kwargs):
      raise Exception("URL fetch failure on https://host/file:\nName unknown")

    with mock.patch.dict(registry._applications(), ResNet50=constructor):
      self.assert_refused(
        lambda: make_pretrained("ResNet50", SHAPE),
        "The weights could not be downloaded: URL fetch failure",
        "https://host/file: Name unknown",
      )

  def test_images_that_it_does_not_take(self):
    self.assert_refused(
      lambda: make_pretrained("ResNet50", (8, 8, 3)), "model ResNet50", "(8, 8, 3)"
    )

  def test_dense_layers_before_the_last_bind_the_size(self):
    self.assert_refused(
      lambda: make_pretrained("VGG16", (64, 64, 3)), "model VGG16", "(224, 224, 3)"
    )


class TrainTest(TransferTest):
  def train(self, classifier):
    rng = np.random.default_rng(0)
    model = AdversarialModel(classifier, attack=None)
    model.compile(optimizer=tf.keras.optimizers.legacy.SGD(0.5))
    data = rng.random((8, 4, 1, 1), "f4"), rng.integers(0, 3, size=8)
    model.fit(tf.data.Dataset.from_tensors(data).repeat(2), verbose=0)

  def test_of_a_frozen_network_the_last_layer_alone_changes(self):
    classifier = network()
    stir(classifier)
    before = classifier.get_weights()
    transfer.freeze_backbone(classifier)
    self.train(classifier)
    # Batch-norm statistics too stay what they were.
    self.assert_same(classifier.get_weights()[:-2], before[:-2])
    for mine, theirs in zip(classifier.get_weights()[-2:], before[-2:]):
      self.assertNotAllClose(mine, theirs)

  def test_layers_of_one_name_are_refused(self):
    def inner(name):
      layer = tf.keras.layers.Dense(2, name="same")
      return tf.keras.Sequential([tf.keras.Input((2,)), layer], name=name)

    model = tf.keras.Sequential([tf.keras.Input((2,)), inner("a"), inner("b")])
    with self.assertRaisesRegex(UserError, "same/kernel:0"):
      transfer.layer_rate_factors(model, 0.5)

  def test_factors_by_depth(self):
    self.assertEqual(
      transfer.layer_rate_factors(network(), 0.5),
      {
        "a/kernel:0": 0.0625,
        "a/bias:0": 0.0625,
        "a_norm/gamma:0": 0.125,
        "a_norm/beta:0": 0.125,
        "b/kernel:0": 0.25,
        "b/bias:0": 0.25,
        "b_norm/gamma:0": 0.5,
        "b_norm/beta:0": 0.5,
        "c/kernel:0": 1.0,
        "c/bias:0": 1.0,
      },
    )


if __name__ == "__main__":
  tf.test.main()
