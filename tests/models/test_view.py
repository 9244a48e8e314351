"""A network as an attack meets it gives the logits and gradients of the network."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import PGD, LInfinity
from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.models import make_model, registry
from dat_tf.models.view import NoViewError, attacked_view, inference_view
from dat_tf.objectives.losses import cross_entropy, input_gradient

layers = tf.keras.layers

SIZES = {"plain_cnn": 28, "small_cnn": 28, "vit_small16": 32}
# Their layers normalise by example, or attend: a view does not know them.
WITHOUT = {"denoising_resnet18", "denoising_resnet50", "vit_small16"}


def with_statistics(model, seed=0):
  """The model, its batch-norm as after training: nothing is 0 or 1."""
  generator = np.random.default_rng(seed)
  for layer in model.submodules:
    if isinstance(layer, layers.BatchNormalization):
      for weight, low in (
        *((w, 0.5) for w in (layer.gamma, layer.moving_variance) if w is not None),
        *((w, -0.5) for w in (layer.beta, layer.moving_mean) if w is not None),
      ):
        weight.assign(generator.uniform(low, low + 1, weight.shape))
  return model


def images_for(model, count=2):
  shape = (count, *model.input_shape[1:])
  return tf.constant(np.random.default_rng(1).random(shape, np.float32))


def with_gradient(network, images):
  """Logits, and the gradient of the cross-entropy with respect to the images."""

  @tf.function
  def both(images):
    labels = tf.range(len(images)) % 3
    logits = network(images)
    return logits, input_gradient(network, images, labels, cross_entropy)

  return both(images)


def multiplications(network, images):
  """How often it multiplies activations with something, but for their products."""
  graph = tf.function(network).get_concrete_function(images).graph
  kinds = [
    op.type
    for op in graph.get_operations()
    if op.outputs and op.outputs[0].shape.rank == 4
  ]
  return len([kind for kind in kinds if kind in ("Mul", "FusedBatchNormV3")])


class NetworksTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.named_parameters(
    *((name, name) for name in sorted(registry._OWN.keys() - WITHOUT))
  )
  def test_logits_and_gradients_are_the_networks(self, name):
    side = SIZES.get(name, 32)
    channels = 1 if side == 28 else 3
    model = with_statistics(make_model(name, (side, side, channels), 10))
    images = images_for(model)
    expected = with_gradient(lambda x: model(x, training=False), images)
    seen = with_gradient(inference_view(model)(), images)
    (logits, gradient), (their_logits, theirs) = seen, expected
    largest = np.abs(their_logits).max()
    self.assertAllClose(logits, their_logits, rtol=1e-5, atol=1e-5 * largest)
    # A unit of relu whose input is about 0 may fall to the other side.
    bound = 1e-3 if name.endswith("_swish") else 0.02
    self.assertLess(tf.norm(gradient - theirs), bound * tf.norm(theirs))

  @parameterized.parameters(*sorted(WITHOUT))
  def test_networks_of_other_layers_run_as_they_are(self, name):
    model = make_model(name, (32, 32, 3), 10)
    with self.assertRaisesRegex(NoViewError, "the layer .* is a "):
      inference_view(model)
    images = images_for(model)
    with self.assertLogs("dat_tf.models.view", "INFO") as logged:
      view = attacked_view(model, "float32", training=False)
    self.assertLen(logged.output, 1)
    self.assertIn("runs the network as it is", logged.output[0])
    self.assertAllEqual(view()(images), model(images, training=False))
    with self.assertRaisesRegex(UserError, "attacked in bfloat16.*is a .*float32"):
      attacked_view(model, "bfloat16", training=False)


class FoldingTest(tf.test.TestCase, parameterized.TestCase):
  def check(self, outputs, inputs, left):
    """So many multiplications are left of batch-norm; the logits stay."""
    model = with_statistics(tf.keras.Model(inputs, outputs))
    images = images_for(model)
    view = inference_view(model)()
    self.assertEqual(multiplications(view, images), left)
    self.assertAllClose(view(images), model(images, training=False), rtol=1e-5)

  @parameterized.product(
    use_bias=[False, True], scale=[False, True], center=[False, True]
  )
  def test_into_the_layer_before(self, use_bias, scale, center):
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, 2, "same", groups=3, use_bias=use_bias)(inputs)
    x = layers.BatchNormalization(scale=scale, center=center)(x)
    x = layers.Activation("relu")(x)
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    x = layers.Dense(5, use_bias=use_bias)(x)
    x = layers.BatchNormalization(scale=scale, center=center)(x)
    self.check(layers.Dense(3)(layers.ELU()(x)), inputs, left=0)

  def test_through_averages(self):
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.AveragePooling2D(2)(layers.Conv2D(4, 3, dilation_rate=2)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    self.check(layers.Dense(3)(x), inputs, left=0)

  def test_not_into_what_others_see_too(self):
    inputs = tf.keras.Input((8, 8, 3))
    before = layers.Conv2D(4, 3)(inputs)
    x = layers.Add()([before, layers.BatchNormalization()(before)])
    x = layers.BatchNormalization()(x)
    self.check(layers.Dense(3)(layers.Flatten()(x)), inputs, left=2)

  def test_not_through_an_activation_a_maximum_or_padding(self):
    inputs = tf.keras.Input((8, 8, 3))
    x = inputs
    for between in (
      layers.ReLU(),
      layers.MaxPooling2D(2),
      layers.ZeroPadding2D(1),
      layers.Activation("tanh"),
    ):
      x = layers.BatchNormalization()(between(layers.Conv2D(4, 3, padding="same")(x)))
    x = layers.Conv2D(4, 3, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    self.check(layers.Dense(3)(layers.Flatten()(x)), inputs, left=5)

  def test_one_of_two_in_a_row(self):
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(inputs)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
    x = layers.BatchNormalization()(x)
    self.check(layers.Dense(3)(layers.Flatten()(x)), inputs, left=2)

  def test_networks_inside_and_what_ends_in_batch_norm(self):
    inner_inputs = tf.keras.Input((8, 8, 3))
    inner = tf.keras.Model(inner_inputs, layers.Conv2D(4, 3)(inner_inputs))
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(inner(layers.Rescaling(2.0, -1.0)(inputs)))
    x = layers.Dense(3)(layers.Flatten()(x))
    self.check(layers.BatchNormalization()(x), inputs, left=1)  # the rescaling

  @parameterized.product(
    kernel=[(3, 3), (5, 1), (1, 3), (7, 7), (4, 3)],
    options=[
      {"padding": "same"},
      {"padding": "valid"},
      {"padding": "same", "strides": 2},
      {"padding": "same", "dilation_rate": 2},
    ],
  )
  def test_the_gradient_of_a_convolution_of_one_channel(self, kernel, options):
    inputs = tf.keras.Input((9, 8, 1))
    x = layers.Conv2D(5, kernel, **options)(inputs)
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    images = images_for(model, 4)
    _, expected = with_gradient(lambda x: model(x, training=False), images)
    _, gradient = with_gradient(inference_view(model)(), images)
    self.assertAllClose(gradient, expected, rtol=1e-4, atol=1e-6)
    # The kernel's is not what attacks ask for, but it is right.
    weights = model.trainable_variables
    view = inference_view(model)
    with tf.GradientTape(persistent=True) as tape:
      ours, theirs = view()(images)[:, 1], model(images)[:, 1]
    self.assertAllClose(
      tape.gradient(ours, weights), tape.gradient(theirs, weights), rtol=1e-4, atol=1e-5
    )

  def test_the_weights_of_the_moment(self):
    model = with_statistics(make_model("small_cnn", (28, 28, 1), 10))
    view, images = inference_view(model), images_for(model)
    before = view()
    with_statistics(model, seed=5)
    self.assertAllClose(view()(images), model(images, training=False), rtol=1e-5)
    self.assertNotAllClose(before(images), view()(images), rtol=1e-3)

  def test_what_is_not_known(self):
    images = tf.keras.Input((8, 8, 3))
    flat = layers.Flatten()

    class Own(layers.Dense):
      pass

    def without_first(layer):
      return tf.keras.Model(images, layers.Dense(3)(flat(layer(images))))

    whole = tf.keras.Model(images, [layers.Dense(3)(flat(images))] * 2)
    for model, reason in (
      (without_first(Own(2)), "is a Own"),
      (without_first(layers.Conv2D(2, 3, dtype="mixed_bfloat16")), "in bfloat16"),
      (without_first(layers.BatchNormalization(axis=1)), "another axis"),
      (without_first(layers.MaxPooling2D(data_format="channels_first")), "first"),
      (whole, "no graph of layers"),
    ):
      with self.assertRaisesRegex(NoViewError, reason):
        inference_view(model)


class Bfloat16Test(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters("small_cnn", "preact_resnet18")
  def test_logits_and_signs_are_nearly_the_networks(self, name):
    model = make_model(name, (28, 28, 1), 10)
    images = images_for(model, 4)
    logits, gradient = with_gradient(lambda x: model(x, training=False), images)
    coarse = with_gradient(inference_view(model, tf.bfloat16)(), images)
    self.assertEqual([x.dtype for x in coarse], [tf.float32, tf.float32])
    self.assertAllClose(coarse[0], logits, atol=0.05 * np.abs(logits).max())
    self.assertGreater(np.mean(np.sign(gradient) == np.sign(coarse[1])), 0.9)

  def test_another_precision_is_refused(self):
    model = make_model("small_cnn", (28, 28, 1), 10)
    for precision in ("float16", "", None):
      with self.assertRaisesRegex(UserError, "float32 or bfloat16, not in"):
        AdversarialModel(model, None, attack_precision=precision)

  def test_in_training_mode_there_is_none(self):
    model = make_model("small_cnn", (28, 28, 1), 10)
    with self.assertRaisesRegex(UserError, "training mode"):
      attacked_view(model, "bfloat16", training=True)


class TrainingTest(tf.test.TestCase):
  def test_the_attack_is_as_strong(self):
    model = with_statistics(make_model("small_cnn", (28, 28, 1), 10))
    images, labels = images_for(model, 32), tf.range(32) % 10
    attack = PGD(LInfinity(0.1), 0.025, 10)
    keys = hashing.stream_keys(0, tf.range(32))
    plain = lambda x: model(x, training=False)  # noqa: E731
    losses = [
      np.mean(
        cross_entropy(plain(attack(seen, images, labels, keys)), labels), dtype="f8"
      )
      for seen in (plain, inference_view(model)())
    ]
    self.assertAllClose(losses[0], losses[1], rtol=1e-5)

  def test_a_step_attacks_the_view(self):
    """Its weights move with training, in either precision."""
    images = np.random.default_rng(0).random((16, 28, 28, 1), np.float32)
    data = tf.data.Dataset.from_tensor_slices((images, np.arange(16) % 3)).batch(8)
    losses = {}
    for precision in ("float32", "bfloat16"):
      tf.keras.utils.set_random_seed(0)
      model = AdversarialModel(
        make_model("small_cnn", (28, 28, 1), 3),
        PGD(LInfinity(0.1), 0.025, 3),
        attack_precision=precision,
      )
      model.compile(tf.keras.optimizers.legacy.SGD(0.01))
      losses[precision] = model.fit(data, epochs=2, verbose=0).history["loss"]
    # Two epochs of so few images carry each rounding far.
    self.assertAllClose(losses["float32"], losses["bfloat16"], rtol=0.25)
    self.assertNotEqual(losses["float32"], losses["bfloat16"])


if __name__ == "__main__":
  tf.test.main()
