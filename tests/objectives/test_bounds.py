"""Bounds of logits against NumPy, and that nothing found by search is beyond them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.attacks import PGD, LInfinity
from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.models import make_model
from dat_tf.objectives import bounds

layers = tf.keras.layers
CLASSES = 4


def randomized(model, seed=0):
  """Weights, and above all statistics, unlike those of a new network."""
  rng = np.random.default_rng(seed)
  for layer in model.layers:
    if isinstance(layer, tf.keras.Model):
      randomized(layer, seed + 1)
    elif isinstance(layer, layers.BatchNormalization):
      scale, offset, mean = rng.normal(0.2, 0.7, size=(3, layer.weights[0].shape[0]))
      layer.set_weights([scale, offset, mean, rng.uniform(0.5, 2, size=mean.shape)])
    elif isinstance(layer, (layers.Conv2D, layers.Dense)) and layer.use_bias:
      kernel, bias = layer.get_weights()
      layer.set_weights([kernel, rng.normal(0, 0.3, size=bias.shape)])
  return model


def residual_network(pooling):
  """Every kind of layer that has bounds."""
  inputs = tf.keras.Input((6, 6, 2))
  x = layers.Rescaling(-2.0, offset=0.5)(inputs)
  x = layers.Normalization(mean=0.3, variance=0.5)(x)
  x = layers.Conv2D(4, 3, 2, padding="same", activation="relu")(x)
  y = layers.BatchNormalization()(x)
  y = layers.Activation("relu")(y)
  y = layers.Conv2D(4, 3, padding="valid", use_bias=False)(layers.ZeroPadding2D()(y))
  x = layers.Add()([x, y])
  x = layers.Concatenate()([x, layers.ReLU()(x)])
  x = layers.MaxPooling2D(2, 1)(x) if pooling else layers.AveragePooling2D(2, 1)(x)
  x = layers.Dropout(0.5)(x)
  inside = tf.keras.Input((2, 2, 8))
  inside = tf.keras.Model(inside, layers.Dense(6, activation="relu")(inside))
  x = layers.Flatten()(inside(x))
  x = layers.Dense(5, activation="relu")(layers.Reshape((24,))(x))
  return randomized(tf.keras.Model(inputs, layers.Dense(CLASSES)(x)))


def boxes(shape, size=3, epsilon=0.03, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.uniform(size=(size, *shape))
  lower, upper = np.maximum(images - epsilon, 0), np.minimum(images + epsilon, 1)
  return lower.astype("f4"), upper.astype("f4"), rng.integers(0, CLASSES, size=size)


def matrix(function, shape):
  """(M, c) of an affine function of images, found by trying: y = M x + c."""
  size = int(np.prod(shape))
  basis = np.eye(size, dtype="f4").reshape(size, *shape)
  constant = np.asarray(function(np.zeros((1, *shape), "f4")), "f8").ravel()
  columns = np.asarray(function(basis), "f8").reshape(size, -1) - constant
  return columns.T, constant


class Subclassed(tf.keras.Model):
  """A network that Keras knows no graph of."""

  def __init__(self):
    super().__init__()
    self.dense = layers.Dense(2)

  def call(self, images):
    return self.dense(layers.Flatten()(images))


class ReferenceTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((4, 4, 1))
    x = layers.Normalization(mean=0.5, variance=0.25)(inputs)
    x = layers.Conv2D(3, 3, 2, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(2, 2, padding="valid")(x)
    x = layers.AveragePooling2D(1)(layers.ReLU()(x))
    self.model = tf.keras.Model(
      inputs, layers.Dense(CLASSES)(layers.Flatten()(x)), name="reference"
    )
    randomized(self.model)
    # Affine pieces between the two rectifiers, as matrices.
    nodes = [x for x in self.model.layers if isinstance(x, layers.ReLU)]
    cuts = [self.model.inputs[0], nodes[0].input, nodes[0].output, nodes[1].input]
    cuts += [nodes[1].output, self.model.outputs[0]]
    self.pieces = []
    for start, end in zip(cuts[::2], cuts[1::2]):
      piece = tf.keras.Model(start, end)
      self.pieces.append(matrix(piece, start.shape[1:]))

  def intervals(self, lower, upper):
    """Before each rectifier, and at the logits; float64."""
    lower, upper = lower.ravel().astype("f8"), upper.ravel().astype("f8")
    result = []
    for m, c in self.pieces:
      plus, minus = np.maximum(m, 0), np.minimum(m, 0)
      pair = plus @ lower + minus @ upper + c, plus @ upper + minus @ lower + c
      result.append(pair)
      lower, upper = (np.maximum(x, 0) for x in pair)
    return result

  def test_interval_margins(self):
    lower, upper, labels = boxes((4, 4, 1), epsilon=0.1)
    margins = bounds.interval_margins(self.model, lower, upper, labels)
    for i, y in enumerate(labels):
      before = [np.maximum(x, 0) for x in self.intervals(lower[i], upper[i])[1]]
      m, c = self.pieces[-1]
      m, c = m - m[y], c - c[y]  # the last layer merged with the difference
      expected = np.maximum(m, 0) @ before[1] + np.minimum(m, 0) @ before[0] + c
      self.assertAllClose(margins[i], expected, rtol=1e-4, atol=1e-4)

  def test_linear_margins(self):
    lower, upper, labels = boxes((4, 4, 1), 5, epsilon=0.3)
    margins = bounds.linear_margins(self.model, lower, upper, labels)
    crossing = 0
    for i, y in enumerate(labels):
      between = self.intervals(lower[i], upper[i])
      for k in range(CLASSES):
        row, constant = np.eye(CLASSES)[k] - np.eye(CLASSES)[y], 0.0
        for piece in (2, 1, 0):
          m, c = self.pieces[piece]
          constant, row = constant + row @ c, row @ m
          if piece == 0:
            break
          for j, (low, high) in enumerate(zip(*between[piece - 1])):
            if high <= 0:
              row[j] = 0
            elif low < 0:
              crossing += 1
              if row[j] >= 0:  # the chord lies above
                constant -= row[j] * low * high / (high - low)
                row[j] *= high / (high - low)
              elif high <= -low:  # 0 lies below, and nearer than x
                row[j] = 0
        flat = [x[i].ravel().astype("f8") for x in (lower, upper)]
        expected = np.maximum(row, 0) @ flat[1] + np.minimum(row, 0) @ flat[0]
        self.assertAllClose(margins[i, k], expected + constant, rtol=1e-4, atol=1e-4)
    self.assertGreater(crossing, 40)

  def test_the_gradient_by_the_weights_is_that_of_the_bound(self):
    lower, upper, labels = boxes((4, 4, 1), epsilon=0.05)
    rng = np.random.default_rng(3)
    start = self.model.get_weights()
    ways = [rng.normal(size=w.shape) for w in start]
    trained = {w.ref() for w in self.model.trainable_weights}
    for margins in (bounds.interval_margins, bounds.linear_margins):
      with tf.GradientTape() as tape:
        total = tf.reduce_sum(margins(self.model, lower, upper, labels))
      gradients = dict(
        zip(
          (w.ref() for w in self.model.trainable_weights),
          tape.gradient(total, self.model.trainable_weights),
        )
      )
      slope = sum(
        float(tf.reduce_sum(gradients[w.ref()] * way))
        for w, way in zip(self.model.weights, ways)
        if w.ref() in trained
      )
      totals = []
      for h in (1e-3, -1e-3):
        self.model.set_weights(
          [
            w + h * way * (v.ref() in trained)
            for w, way, v in zip(start, ways, self.model.weights)
          ]
        )
        totals.append(float(tf.reduce_sum(margins(self.model, lower, upper, labels))))
      self.model.set_weights(start)
      self.assertAllClose(slope, (totals[0] - totals[1]) / 2e-3, rtol=0.02)


class SoundnessTest(tf.test.TestCase, parameterized.TestCase):
  def networks(self):
    tf.keras.utils.set_random_seed(0)
    for name in ("plain_cnn", "small_cnn"):
      yield randomized(make_model(name, (8, 8, 1), CLASSES)), (8, 8, 1)
    for pooling in (False, True):
      yield residual_network(pooling), (6, 6, 2)

  def test_nothing_found_is_beyond_the_bounds(self):
    rng = np.random.default_rng(1)
    for model, shape in self.networks():
      for epsilon in (0.003, 0.05):
        lower, upper, labels = boxes(shape, epsilon=epsilon)
        found = np.full((3, CLASSES), -np.inf)

        def meet(images, labels=labels, model=model, found=found):
          logits = model(images.astype("f4"), training=False).numpy()
          own = logits[np.arange(3), labels][:, np.newaxis]
          np.maximum(found, logits - own, out=found)

        for index in range(60):
          u = rng.uniform(size=lower.shape)
          u = np.round(u) if index % 2 else u  # corners, and points between
          meet(lower + u * (upper - lower))
        center = (lower + upper) / 2
        ball = LInfinity(float((upper - lower).min() / 2))
        for k in range(CLASSES):

          def climb(logits, y, k=k):
            return logits[:, k] - tf.gather(logits, y, axis=1, batch_dims=1)

          meet(
            PGD(ball, ball.epsilon / 4, 10)(
              lambda x, model=model: model(x, training=False),
              tf.constant(center),
              tf.constant(labels),
              hashing.stream_keys(k, tf.range(3)),
              climb,
            ).numpy()
          )
        interval, linear = (
          function(model, lower, upper, labels).numpy()
          for function in (bounds.interval_margins, bounds.linear_margins)
        )
        rounding = 1e-4 * (1 + np.abs(found))
        self.assertAllLessEqual(found - interval - rounding, 0.0)
        self.assertAllLessEqual(found - linear - rounding, 0.0)
        others = np.arange(CLASSES) != labels[:, np.newaxis]
        if epsilon == 0.003:
          # They are of use, too, and the linear ones of more.
          self.assertLess((linear - found)[others].mean(), 1.0)
          self.assertLess(linear[others].mean(), interval[others].mean())

  def test_a_box_without_extent_has_exact_bounds(self):
    for model, shape in self.networks():
      images, _, labels = boxes(shape, epsilon=0.0)
      logits = model(images, training=False).numpy()
      exact = logits - logits[np.arange(3), labels][:, np.newaxis]
      for function in (bounds.interval_margins, bounds.linear_margins):
        self.assertAllClose(
          function(model, images, images, labels), exact, rtol=1e-3, atol=1e-4
        )

  def test_logits_that_are_not_dense(self):
    inputs = tf.keras.Input((4, 4, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(CLASSES, 3)(inputs))
    model = randomized(tf.keras.Model(inputs, x))
    lower, upper, labels = boxes((4, 4, 1))
    margins = bounds.interval_margins(model, lower, upper, labels).numpy()
    self.assertAllEqual(margins[np.arange(3), labels], np.zeros(3))
    logits = model((lower + upper) / 2).numpy()
    own = logits[np.arange(3), labels][:, np.newaxis]
    self.assertAllLessEqual(logits - own - margins, 1e-5)

  def test_layers_without_bounds_are_refused_by_name(self):
    for layer, words in (
      (layers.LayerNormalization(name="ln"), "ln .LayerNormalization"),
      (layers.Activation("swish", name="act"), "act .Activation with swish"),
      (layers.Dense(3, activation="tanh", name="hidden"), "hidden .Dense with tanh"),
      (layers.ReLU(6.0, name="relu6"), "relu6 .ReLU"),
      (layers.Conv2DTranspose(2, 3, name="up"), "up .Conv2DTranspose"),
      (layers.BatchNormalization(axis=1, name="bn"), "bn .BatchNormalization"),
      (layers.ReLU(name="half", dtype="float16"), "half computes in float16"),
    ):
      inputs = tf.keras.Input((4, 4, 1))
      x = layers.Flatten()(layer(inputs))
      model = tf.keras.Model(inputs, layers.Dense(2)(x))
      advice = "mixed precision" if "half" in words else "plain_cnn"
      with self.assertRaisesRegex(UserError, f"{words}.*{advice}"):
        bounds.check(model)
    for subclassed in (Subclassed(), tf.keras.Sequential([Subclassed()])):
      subclassed(tf.keras.Input((4, 4, 1)))
      with self.assertRaisesRegex(UserError, "subclassed.*no graph of layers"):
        bounds.check(subclassed)
    for name in ("small_cnn", "plain_cnn"):
      bounds.check(make_model(name, (8, 8, 1), 3))
