"""Tests of the training step on one worker."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from small_models import (
  batch_of,
  dataset_of,
  hidden_classifier,
  linear_classifier,
  softmax,
)

from dat_tf.adversarial_model import NON_FINITE, AdversarialModel
from dat_tf.attacks import PGD, Free, LInfinity
from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.communication import BucketQuantizer, FullPrecision, QuantizedAllReduce
from dat_tf.models import batch_norm, make_model
from dat_tf.objectives import AdversarialTraining

SGD = tf.keras.optimizers.legacy.SGD


class TrainStepTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    self.images = rng.uniform(size=(8, 4, 1, 1)).astype("f4")
    self.labels = rng.integers(0, 3, size=8)

  def test_layers_on_tokens_have_quantized_gradients(self):
    layers = tf.keras.layers
    classifier = tf.keras.Sequential(
      [
        tf.keras.Input((4, 1, 1)),
        layers.Reshape((2, 2)),
        layers.Dense(5),
        layers.Flatten(),
        layers.Dense(3),
      ]
    )
    everything = FullPrecision(below=0)
    all_reduce = QuantizedAllReduce(BucketQuantizer(8, 32), full_precision=everything)
    model = AdversarialModel(classifier, None, all_reduce=all_reduce)
    model.compile(optimizer=SGD(0.1))
    before = classifier.get_weights()
    # Batches of any size.
    data = tf.data.Dataset.from_tensor_slices((self.images, self.labels)).batch(8)
    model.fit(data, verbose=0)
    self.assertNotAllClose(before[0], classifier.get_weights()[0])

  def test_a_step_is_that_of_numpy(self):
    ball, step_size, clean_weight = LInfinity(0.1), 0.06, 0.5
    weights = np.array([1, 1, 1, 0.5, 2, 1, 0, 0])  # two are padding
    model = AdversarialModel(
      linear_classifier(), PGD(ball, step_size, 2), AdversarialTraining(clean_weight)
    )
    model.compile(optimizer=SGD(0.3))
    kernel, bias = (w.astype("f8") for w in model.classifier.get_weights())
    keys = hashing.stream_keys(0, 0, tf.range(8))
    moved = ball.random_start(keys, tf.constant(self.images)).numpy().astype("f8")

    flat = self.images.reshape(8, 4).astype("f8")
    moved, rows = moved.reshape(8, 4), np.eye(3)[self.labels]
    for _ in range(2):
      gradient = (softmax(moved @ kernel + bias) - rows) @ kernel.T
      moved = moved + step_size * np.sign(gradient)
      moved = np.clip(moved, np.maximum(flat - 0.1, 0), np.minimum(flat + 0.1, 1))
    kernel_gradient, bias_gradient, losses = 0, 0, 0
    for factor, inputs in ((clean_weight, flat), (1.0, moved)):
      probabilities = softmax(inputs @ kernel + bias)
      error = factor * weights[:, None] * (probabilities - rows) / weights.sum()
      kernel_gradient = kernel_gradient + inputs.T @ error
      bias_gradient = bias_gradient + error.sum(axis=0)
      losses = losses - factor * np.log(probabilities[np.arange(8), self.labels])
    robust = np.argmax(moved @ kernel + bias, axis=1) == self.labels

    data = dataset_of(batch_of(self.images, self.labels, weights))
    logs = model.fit(data, verbose=0).history
    new_kernel, new_bias = model.classifier.get_weights()
    self.assertAllClose(new_kernel, kernel - 0.3 * kernel_gradient, atol=1e-6)
    self.assertAllClose(new_bias, bias - 0.3 * bias_gradient, atol=1e-6)
    self.assertAllClose(logs["loss"], [np.average(losses, weights=weights)], atol=1e-6)
    self.assertAllClose(logs["robust_accuracy"], [np.average(robust, weights=weights)])
    norm = np.sqrt((kernel_gradient**2).sum() + (bias_gradient**2).sum())
    self.assertAllClose(logs["gradient_norm"], [norm], atol=1e-6)

  def test_padding_changes_nothing(self):
    weights = []
    for padding in (0, 3):
      tf.keras.utils.set_random_seed(0)
      model = AdversarialModel(linear_classifier(), PGD(LInfinity(0.1), 0.05, 2))
      model.compile(optimizer=SGD(0.3))
      images = np.concatenate([self.images, self.images[:padding]])
      labels = np.concatenate([self.labels, self.labels[:padding]])
      batch = batch_of(images, labels, [1.0] * 8 + [0.0] * padding)
      model.fit(dataset_of(batch), verbose=0)
      figures = model.evaluate(dataset_of(batch), return_dict=True, verbose=0)
      self.assertEqual(figures["examples"], 8)
      weights.append(model.classifier.get_weights())
    self.assertAllClose(*weights, rtol=0, atol=1e-7)

  def test_regularisers_of_the_users_layers_count(self):
    inputs = tf.keras.Input((4, 1, 1))
    dense = tf.keras.layers.Dense(3, kernel_regularizer=tf.keras.regularizers.L2(0.1))
    classifier = tf.keras.Model(inputs, dense(tf.keras.layers.Flatten()(inputs)))
    plain = tf.keras.models.clone_model(classifier)
    plain.layers[-1].kernel_regularizer = None
    plain.set_weights(classifier.get_weights())
    before = dense.kernel.numpy()
    for model in (classifier, tf.keras.models.clone_model(linear_classifier())):
      model.set_weights(plain.get_weights())
      trainer = AdversarialModel(model, attack=None)
      trainer.compile(optimizer=SGD(1.0))
      trainer.fit(dataset_of(batch_of(self.images, self.labels)), verbose=0)
      after = model.get_weights()[0]
      if model is classifier:
        regularized = after
    self.assertAllClose(regularized, after - 0.2 * before, atol=1e-6)

  def test_user_tuples_train_and_wrong_images_are_refused(self):
    model = AdversarialModel(linear_classifier(), PGD(LInfinity(0.1), 0.05, 2))
    model.compile(optimizer=SGD(0.3))
    one_hot = np.eye(3, dtype="f4")[self.labels]
    for labels in (self.labels, self.labels[:, None], one_hot):
      data = tf.data.Dataset.from_tensors((self.images, labels))
      logs = model.fit(data, verbose=0)
      self.assertTrue(np.isfinite(logs.history["loss"][0]))
    with self.assertRaisesRegex(
      tf.errors.InvalidArgumentError, r"must lie in \[0, 1\]"
    ):
      model.fit(
        tf.data.Dataset.from_tensors((255 * self.images, self.labels)), verbose=0
      )
    bytes_ = (255 * self.images).astype("u1")
    with self.assertRaisesRegex(UserError, "divide by 255"):
      model.fit(tf.data.Dataset.from_tensors((bytes_, self.labels)), verbose=0)
    with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "label"):
      model.fit(tf.data.Dataset.from_tensors((self.images, self.labels + 3)), verbose=0)

  def test_one_seed_gives_the_same_weights_bit_for_bit(self):
    rng = np.random.default_rng(1)
    images, labels = rng.uniform(size=(48, 8, 8, 1)), rng.integers(0, 10, size=48)
    batches = [
      batch_of(images[i : i + 16], labels[i : i + 16], first_id=i) for i in (0, 16, 32)
    ]

    def train(seed):
      tf.keras.utils.set_random_seed(0)
      model = AdversarialModel(
        make_model("small_cnn", (8, 8, 1), 10), PGD(LInfinity(0.1), 0.05, 2), seed=seed
      )
      model.compile(optimizer=SGD(0.1))
      model.fit(dataset_of(*batches), verbose=0)
      return model.classifier.get_weights()

    first, second, other = train(seed=5), train(seed=5), train(seed=6)
    for a, b in zip(first, second):
      self.assertAllEqual(a, b)
    self.assertFalse(all(np.array_equal(a, b) for a, b in zip(first, other)))

  def test_a_non_finite_loss_stops_before_the_weights_change(self):
    model = AdversarialModel(linear_classifier(), attack=None)
    model.compile(optimizer=SGD(0.3))
    good = batch_of(self.images, self.labels)
    bad = {**good, "weight": tf.fill([8], np.inf)}
    with self.assertRaises(tf.errors.InvalidArgumentError) as caught:
      model.fit(dataset_of(good, bad), verbose=0)
    self.assertRegex(str(caught.exception), NON_FINITE + r"\D*2\]")
    self.assertEqual(int(model.optimizer.iterations), 1)
    for weight in model.classifier.get_weights():
      self.assertTrue(np.all(np.isfinite(weight)))

  def test_a_stop_during_an_epoch_takes_effect_at_its_end(self):
    model = AdversarialModel(linear_classifier(), attack=None)
    model.compile(optimizer=SGD(0.3))

    def stop(batch, logs):
      model.stop_training = True

    callback = tf.keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    data = dataset_of(*[batch_of(self.images, self.labels)] * 3)
    history = model.fit(data, epochs=5, callbacks=[callback], verbose=0)
    self.assertEqual(int(model.optimizer.iterations), 3)
    self.assertLen(history.history["loss"], 1)

  def test_learning_rate_on_plateau(self):
    model = AdversarialModel(linear_classifier(), attack=None)
    model.compile(optimizer=SGD(0.5))
    # The loss never falls by 10.
    plateau = tf.keras.callbacks.ReduceLROnPlateau(
      "loss", factor=0.1, patience=1, min_delta=10.0
    )
    data = dataset_of(batch_of(self.images, self.labels))
    model.fit(data, epochs=3, callbacks=[plateau], verbose=0)
    self.assertAllClose(model.optimizer.learning_rate, 0.005)

  def test_without_an_attack_it_trains_on_clean_images_at_their_cost(self):
    sizes = []
    classifier = linear_classifier()

    class Counted(tf.keras.Model):
      trainable_variables = classifier.trainable_variables

      def call(self, images, training=False):  # noqa: FBT002, Keras calls it so
        sizes.append(images.shape[0])
        return classifier(images)

    model = AdversarialModel(Counted(), attack=None)
    model.compile(optimizer=SGD(0.3), run_eagerly=True)
    model.fit(dataset_of(batch_of(self.images, self.labels)), verbose=0)
    self.assertEqual(sizes, [8])

  def test_callbacks_in_every_form_that_keras_takes(self):
    model = AdversarialModel(linear_classifier(), attack=None)
    model.compile(optimizer=SGD(0.3))
    epochs = []
    callback = tf.keras.callbacks.LambdaCallback(
      on_epoch_end=lambda epoch, logs: epochs.append(epoch)
    )
    data = dataset_of(batch_of(self.images, self.labels))
    for callbacks in (None, [], callback, [callback], (callback,)):
      model.fit(data, callbacks=callbacks, verbose=0)
    self.assertEqual(epochs, [0, 0, 0])

  def test_compile_refuses_what_it_would_ignore(self):
    model = AdversarialModel(linear_classifier(), attack=None)
    for name, value in (("loss", "mse"), ("metrics", ["accuracy"])):
      with self.assertRaisesRegex(UserError, f"compile takes no {name}"):
        model.compile(optimizer=SGD(0.3), **{name: value})
    for optimizer in ("sgd", tf.keras.optimizers.SGD(0.3)):
      with self.assertRaisesRegex(UserError, "keras.optimizers.legacy"):
        model.compile(optimizer=optimizer)


class CompilationTest(tf.test.TestCase):
  def train(self, attack, *, jit_compile=False):
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    batches = [
      batch_of(rng.uniform(size=(8, 4, 1, 1)), rng.integers(0, 3, size=8), first_id=i)
      for i in (0, 8)
    ]
    model = AdversarialModel(
      hidden_classifier(batch_norm=True),
      attack(),
      evaluation_attack=PGD(LInfinity(0.1), 0.05, 1),
      jit_compile=jit_compile,
    )
    model.compile(optimizer=SGD(0.3), run_eagerly=not jit_compile)
    logs = model.fit(dataset_of(*batches), verbose=0).history
    return model.classifier.get_weights(), logs

  def test_a_compiled_step_is_the_same(self):
    for attack in (
      lambda: PGD(LInfinity(0.1), 0.05, 2),
      lambda: Free(LInfinity(0.1), (8, 4, 1, 1)),
    ):
      weights, logs = self.train(attack)
      compiled, compiled_logs = self.train(attack, jit_compile=True)
      for mine, theirs in zip(compiled, weights):
        self.assertAllClose(mine, theirs, rtol=0, atol=1e-5)
      self.assertEqual(compiled_logs.keys(), logs.keys())
      for name in logs.keys() - {"reduction_ms"}:  # a time
        self.assertAllClose(compiled_logs[name], logs[name], rtol=1e-4)

  def test_it_is_compiled_indeed(self):
    def in_python(infer, images, *_):
      moved = tf.py_function(tf.identity, [images], images.dtype)
      return tf.ensure_shape(moved, images.shape)

    self.train(lambda: in_python)
    with self.assertRaisesRegex(tf.errors.OpError, "compil|XLA"):
      self.train(lambda: in_python, jit_compile=True)


class MixedPrecisionTest(tf.test.TestCase):
  def train(self, precision):
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(16, 8, 8, 1)).astype("f4")
    labels = rng.integers(0, 3, size=16)
    images += 0.4 * labels[:, None, None, None]
    classifier = make_model("small_cnn", (8, 8, 1), 3, precision=precision)
    model = AdversarialModel(classifier, PGD(LInfinity(0.1), 0.05, 2))
    model.compile(optimizer=SGD(0.05))
    before = [v.numpy() for v in classifier.trainable_variables]
    batches = dataset_of(*[batch_of(images / images.max(), labels)] * 30)
    first = model.fit(batches, steps_per_epoch=1, verbose=0).history
    after = [v.numpy() for v in classifier.trainable_variables]
    last = model.fit(batches, steps_per_epoch=30, verbose=0).history
    moved = np.concatenate([(b - a).ravel() for a, b in zip(before, after)])
    return moved, first, last

  def test_a_step_in_16_bits_is_nearly_that_in_32_and_learns(self):
    exact, exact_first, _ = self.train("float32")
    moved, first, last = self.train("mixed_bfloat16")
    self.assertEqual(moved.dtype, np.float32)
    self.assertNotAllEqual(moved, exact)
    cosine = moved @ exact / np.linalg.norm(moved) / np.linalg.norm(exact)
    self.assertGreater(cosine, 0.9)  # the attack takes signs, also of what is near 0
    self.assertAllClose(first["loss"], exact_first["loss"], rtol=0.05)
    self.assertLess(last["loss"][0], 0.8 * first["loss"][0])


class BatchNormTest(tf.test.TestCase):
  def test_the_attack_neither_uses_up_nor_changes_the_statistics(self):
    for training_mode in (False, True):
      classifier = make_model("small_cnn", (8, 8, 1), 10)
      changed = []

      def spy(infer, images, *_, classifier=classifier, changed=changed):
        before = [tf.identity(s) for s in batch_norm.statistics(classifier)]
        infer(images)
        for old, new in zip(before, batch_norm.statistics(classifier)):
          changed.append(bool(tf.reduce_any(old != new)))
        return images

      model = AdversarialModel(classifier, spy, attack_in_training_mode=training_mode)
      model.compile(optimizer=SGD(0.1), run_eagerly=True)
      images = np.random.default_rng(0).random((4, 8, 8, 1))
      model.fit(dataset_of(batch_of(images, [0, 1, 2, 3])), verbose=0)
      self.assertEqual(changed, [training_mode] * 8)

  def test_statistics_are_right_after_few_large_steps(self):
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Images of low contrast: their statistics are far from where Keras' averages start.
    images = 0.5 + 0.1 * (digits.images[:1024, ..., None] / 16 - 0.5).astype("f4")
    labels = digits.target[:1024]
    tf.keras.utils.set_random_seed(0)
    classifier = make_model("small_cnn", (8, 8, 1), 10)
    normalizing = [x for x in classifier.layers if hasattr(x, "moving_mean")]
    for layer in normalizing:
      layer.momentum = 0.99  # Keras' own
    model = AdversarialModel(classifier, PGD(LInfinity(0.01), 0.01, 1))
    model.compile(optimizer=SGD(0.05, momentum=0.9))
    data = tf.data.Dataset.from_tensors((images, labels)).repeat(40)
    model.fit(data, verbose=0)
    self.assertEqual(int(model.optimizer.iterations), 40)
    inference = np.mean(np.argmax(classifier(images, training=False), axis=1) == labels)
    training = np.mean(np.argmax(classifier(images, training=True), axis=1) == labels)
    self.assertGreater(training, 0.8)
    self.assertAllClose(inference, training, atol=0.01)
    # The layers' configuration is as it was.
    self.assertEqual([layer.momentum for layer in normalizing], [0.99] * 4)

  def test_the_momentum_warms_up(self):
    layer = tf.keras.layers.BatchNormalization(momentum=0.95)
    model = tf.keras.Sequential([tf.keras.Input((1,)), layer])
    for step, expected in ((0, 0.1), (2, 0.25), (10_000, 0.95)):
      layer.moving_mean.assign([0.0])
      with batch_norm.warmed_up_momentum(model, tf.constant(step, tf.int64)):
        model(tf.constant([[1.0], [3.0]]), training=True)
      self.assertAllClose(layer.moving_mean, [2 * (1 - expected)])
