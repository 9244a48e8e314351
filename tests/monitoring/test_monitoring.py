"""What a run shows: the picture grid, TensorBoard's figures, the progress bar."""

from __future__ import annotations

import glob
import io
import os
import sys
import tempfile
import types
from unittest import mock

import numpy as np
import tensorflow as tf

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import PGD, LInfinity
from dat_tf.monitoring import (
  Attacked,
  AttackedImages,
  Profiler,
  Progress,
  Scalars,
  forget_later,
  picture_grid,
)
from dat_tf.optimizers import LAMB, SGD, WarmupDecay

STEPS, BATCH = 3, 8


def mean_place(pixels, color):
  """(row, column) of the middle of all pixels of a colour, and their number."""
  near = np.abs(pixels.astype(int) - np.array(color)) <= 1
  rows, columns = np.nonzero(near.all(axis=-1))
  return rows.mean(), columns.mean(), len(rows)


class PictureGridTest(tf.test.TestCase):
  def constant_images(self, *colors):
    return np.stack([np.full((4, 4, 3), color, "f4") for color in colors])

  def test_clean_difference_and_adversarial_stand_one_below_another(self):
    clean = self.constant_images((0, 1, 0), (0, 0, 1))
    # The first loses 0.2 of green, the second gains 0.1 of red. The larger change is
    # stretched to half of the range around grey.
    adversarial = self.constant_images((0, 0.8, 0), (0.1, 0, 1))
    pixels = picture_grid(clean, adversarial, [3, 4], [3, 4], [3, 4])
    self.assertDTypeEqual(pixels, np.uint8)
    self.assertEqual(pixels.shape[-1], 3)
    left, right = [], []
    for place, color in (
      (left, (0, 255, 0)),
      (left, (127, 0, 127)),
      (left, (0, 204, 0)),
      (right, (0, 0, 255)),
      (right, (191, 127, 127)),
      (right, (25, 0, 255)),
    ):
      place.append(mean_place(pixels, color))
    for row in zip(left, right):
      (above, column, size), (beside, other_column, other_size) = row
      self.assertAllClose(above, beside, atol=2)
      self.assertAllClose(size, other_size, rtol=0.1)
      self.assertGreater(size, 60 * 60)
      self.assertLess(column + 60, other_column)
    for places in (left, right):
      heights = [row for row, _, _ in places]
      self.assertAllGreater(np.diff(heights), 60)

  def test_wrong_predictions_are_red(self):
    clean = self.constant_images((0, 1, 0))
    red = lambda *predictions: (  # noqa: E731
      picture_grid(clean, clean, [3], *predictions) == np.array([255, 0, 0])
    ).all(axis=-1)
    self.assertFalse(red([3], [3]).any())
    upper, lower = red([5], [3]), red([3], [5])
    self.assertTrue(upper.any() and lower.any())
    self.assertLess(np.nonzero(upper)[0].max(), np.nonzero(lower)[0].min())

  def test_grey_images_and_no_difference(self):
    images = np.full((2, 4, 4, 1), 0.2, "f4")
    pixels = picture_grid(images, images, [0, 1], [0, 1], [0, 1])
    self.assertGreater(mean_place(pixels, (51, 51, 51))[2], 4 * 60 * 60)
    self.assertGreater(mean_place(pixels, (127, 127, 127))[2], 2 * 60 * 60)

  def test_attacked_images_follow_the_weights(self):
    inputs = tf.keras.Input((1, 1, 1))
    flat = tf.keras.layers.Flatten()(inputs)
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(2, use_bias=False)(flat))
    images = np.array([0.2, 0.4], "f4").reshape(2, 1, 1, 1)
    keys = tf.constant([[1, 2], [3, 4]], tf.uint32)

    def attack(classifier, x, labels, own_keys):
      self.assertAllEqual(own_keys, keys)
      return x + 0.1 * tf.reshape(tf.cast(labels, tf.float32), [-1, 1, 1, 1])

    attacked = AttackedImages(
      model, attack, tf.constant(images), tf.constant([0, 1]), keys
    )
    for kernel, predicted in (([[1.0, -1.0]], 0), ([[-1.0, 1.0]], 1)):
      model.set_weights([np.array(kernel)])
      clean, adversarial, labels, before, after = attacked.attack()
      self.assertAllEqual(clean, images)
      self.assertAllClose(adversarial.flatten(), [0.2, 0.5])
      self.assertAllEqual(labels, [0, 1])
      self.assertAllEqual([before, after], [[predicted] * 2] * 2)


class Tick(tf.keras.callbacks.Callback):
  """A clock that only steps move: the n-th by n seconds."""

  now, steps = 0.0, 0

  def on_train_batch_end(self, batch, logs=None):
    self.steps += 1
    self.now += self.steps


class ScalarsTest(tf.test.TestCase):
  def fit(self, optimizer, attack=None):
    """Two epochs of three steps, logged every second one; tested after the second."""
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((4, 1, 1))
    logits = tf.keras.layers.Dense(3, name="out")(tf.keras.layers.Flatten()(inputs))
    model = AdversarialModel(
      tf.keras.Model(inputs, logits), PGD(LInfinity(0.1), 0.05, 1)
    )
    model.compile(optimizer=optimizer)
    rng = np.random.default_rng(0)
    images, labels = rng.random((STEPS * BATCH, 4, 1, 1), "f4"), rng.integers(0, 3, 24)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    directory = self.get_temp_dir()
    tick = Tick()
    clock = types.SimpleNamespace(perf_counter=lambda: tick.now)
    with mock.patch("dat_tf.monitoring.tensorboard.time", clock):
      history = model.fit(
        data,
        epochs=2,
        validation_data=data.take(2),
        validation_freq=2,
        callbacks=[tick, Scalars(directory, 2, BATCH, 1234, attack)],
        verbose=0,
      ).history
    return (
      model,
      history,
      self.events(directory, "train"),
      self.events(directory, "test"),
    )

  def events(self, directory, name):
    """{(tag, step): value} of all that was written under a name."""
    values = {}
    for path in glob.glob(os.path.join(directory, name, "*")):
      for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
          values[value.tag, event.step] = tf.make_ndarray(value.tensor)
    return values

  def test_figures(self):
    rate = WarmupDecay(0.1, warmup_steps=4)
    model, history, train, test = self.fit(LAMB(rate))
    names = ["loss", "accuracy", "robust_accuracy", "gradient_norm", "learning_rate"]
    names += ["images_per_second", "bytes_sent_per_step", "trust_ratio/out/kernel"]
    names += ["reduction_ms", "trust_ratios"]
    self.assertCountEqual(
      train, [(name, step) for name in names for step in (2, 3, 4, 6)]
    )
    for name in names[:4]:  # of the last step of an epoch, Keras says the same
      self.assertAllClose(train[name, 6], history[name][-1])
    # Steps 1 and 2; 3, the last of its epoch; 4; 5 and 6.
    for step, pace in ((2, 2 / (1 + 2)), (3, 1 / 3), (4, 1 / 4), (6, 2 / (5 + 6))):
      self.assertAllClose(train["images_per_second", step], BATCH * pace)
      self.assertAllClose(train["learning_rate", step], 0.1 * min(1, step / 4))
      self.assertEqual(train["bytes_sent_per_step", step], 1234)
    ratio = model.optimizer.trust_ratios()["out/kernel"]
    self.assertAllClose(train["trust_ratio/out/kernel", 6], ratio)
    self.assertNotAllClose(ratio, 1.0)
    (bucket,) = [row for row in train["trust_ratios", 6] if row[2]]  # of one layer
    self.assertAllClose(bucket, [ratio, ratio, 1], rtol=1e-5)
    names = ["loss", "accuracy", "robust_accuracy", "examples"]
    self.assertCountEqual(test, [(name, 6) for name in names])
    for name in names:
      self.assertAllClose(test[name, 6], history[f"val_{name}"][0])
    self.assertEqual(test["examples", 6], 2 * BATCH)

  def test_perturbations_and_an_optimizer_without_trust_ratios(self):
    rng = np.random.default_rng(0)
    attacks = []

    def attack():
      images, share = rng.random((2, 3, 4, 4, 1), "f4")
      # Darker, so that sizes are not the changes themselves.
      attacks.append(Attacked(images, images * share, *rng.integers(0, 3, (3, 3))))
      return attacks[-1]

    _, _, train, _ = self.fit(SGD(0.25), attack)
    self.assertEqual({tag for tag, _ in train if "trust" in tag}, set())
    self.assertEqual(train["learning_rate", 4], 0.25)
    self.assertLen(attacks, 2)
    for step, attacked in zip((3, 6), attacks):  # the end of each epoch
      _, _, png = train["clean_perturbation_adversarial", step]
      self.assertAllEqual(tf.io.decode_png(png), picture_grid(*attacked))
      change = (attacked.adversarial - attacked.images).reshape(3, -1)
      for name, values in (
        ("pixels", change),
        ("linf_norm", np.abs(change).max(axis=1)),
        ("l2_norm", np.sqrt((change**2).sum(axis=1))),
      ):
        left, right, count = train[f"perturbation/{name}", step].T
        self.assertAllClose([left[0], right[-1]], [values.min(), values.max()])
        expected, _ = np.histogram(values, [*left, right[-1]])
        self.assertAllEqual(count, expected)


class ForgetLaterTest(tf.test.TestCase):
  """Points of 5 steps of 2 epochs, after a checkpoint of step 3, of the second."""

  def setUp(self):
    super().setUp()
    self.logs = tempfile.mkdtemp(dir=self.get_temp_dir())
    for folder, last in (("train", 5), ("test", 5), ("summary", 2)):
      writer = tf.summary.create_file_writer(os.path.join(self.logs, folder))
      with writer.as_default():
        for step in range(1, last + 1):
          tf.summary.scalar("loss", float(step), step)
      writer.close()

  def steps(self, folder):
    (path,) = glob.glob(os.path.join(self.logs, folder, "*tfevents*"))
    records = tf.data.TFRecordDataset(path).as_numpy_iterator()
    events = map(tf.compat.v1.Event.FromString, records)
    return [event.step for event in events if event.summary.value]

  def test_what_comes_again_goes(self):
    forget_later(self.logs, step=3, epochs=1)
    self.assertEqual(self.steps("train"), [1, 2, 3])
    self.assertEqual(self.steps("test"), [1, 2, 3])
    self.assertEqual(self.steps("summary"), [1])

  def test_half_a_point_goes(self):
    (path,) = glob.glob(os.path.join(self.logs, "train", "*tfevents*"))
    os.truncate(path, os.path.getsize(path) - 3)
    forget_later(self.logs, step=5, epochs=2)
    self.assertEqual(self.steps("train"), [1, 2, 3, 4])
    self.assertEqual(self.steps("summary"), [1, 2])

  def test_nothing_there(self):
    forget_later(os.path.join(self.logs, "none"), step=0, epochs=0)


class ProfilerTest(tf.test.TestCase):
  def recorded(self, first, last, steps):
    """What was called in which step, of so many."""
    profiler = Profiler("", first, last)
    calls = []
    with mock.patch.object(tf.profiler, "experimental") as recorder:
      recorder.start.side_effect = lambda directory: calls.append(("start", step))
      recorder.stop.side_effect = lambda: calls.append(("stop", step))
      for step in range(1, steps + 1):
        profiler.on_train_batch_begin(step - 1)
        profiler.on_train_batch_end(step - 1)
      profiler.on_train_end()
    return calls

  def test_records_the_steps_that_were_asked_for(self):
    self.assertEqual(self.recorded(2, 3, 5), [("start", 2), ("stop", 3)])
    self.assertEqual(self.recorded(4, 4, 5), [("start", 4), ("stop", 4)])

  def test_ends_with_training(self):
    self.assertEqual(self.recorded(2, 9, 5), [("start", 2), ("stop", 5)])
    self.assertEqual(self.recorded(7, 9, 5), [])

  def test_writes_what_tensorboard_reads(self):
    directory = self.get_temp_dir()
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    images = np.zeros((8, 2), "f4")
    callback = Profiler(directory, 2, 3)
    model.fit(
      images, images[:, :1], batch_size=2, epochs=1, verbose=0, callbacks=[callback]
    )
    found = glob.glob(os.path.join(directory, "plugins/profile/*/*.xplane.pb"))
    self.assertLen(found, 1)
    self.assertGreater(os.path.getsize(found[0]), 0)


class Terminal(io.StringIO):
  def isatty(self):
    return True


class ProgressTest(tf.test.TestCase):
  def show(self, progress, first_epoch, last_epoch, seconds=4.0, stream=None):
    """What is on stderr after so many epochs of 3 steps of so many seconds."""
    stream, now = stream or io.StringIO(), [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    with (
      mock.patch.object(sys, "stderr", stream),
      mock.patch("tqdm.std.time", clock.monotonic),
      mock.patch("dat_tf.monitoring.progress.time", clock),
    ):
      progress.on_train_begin()
      for epoch in range(first_epoch, last_epoch):
        progress.on_epoch_begin(epoch)
        for step in range(STEPS):
          now[0] += seconds
          progress.on_train_batch_end(step, {"loss": 1.0, "accuracy": 0.5})
        progress.on_test_begin()
        progress.on_test_batch_end(0, {"loss": 77.0})
        progress.on_test_end({"loss": 77.0})
        figures = {"loss": 0.12345, "accuracy": 0.75, "robust_accuracy": 0.5}
        figures.update(val_accuracy=0.25, val_robust_accuracy=0.125)
        progress.on_epoch_end(epoch, figures)
      progress.on_train_end()
    return stream.getvalue()

  def test_in_a_pipe_it_is_lines(self):
    shown = self.show(Progress(4 * STEPS), 0, 4)
    lines = shown.splitlines()
    self.assertNotIn("\r", shown)
    self.assertEqual(len(lines), len(set(lines)), shown)
    self.assertRegex(lines[0], r"^training: 0/12 ")
    figures = "loss=0.123, accuracy=0.750, robust_accuracy=0.500"
    figures += ", val_accuracy=0.250, val_robust_accuracy=0.125"
    for epoch, elapsed in ((1, "00:12"), (2, "00:24"), (3, "00:36"), (4, "00:48")):
      expected = f"epoch {epoch}: {3 * epoch}/12 steps [{elapsed}<"
      matching = [x for x in lines if x.startswith(expected) and x.endswith(figures)]
      self.assertLen(matching, 1, shown)
    self.assertEqual(lines[-1], matching[0])
    # 24 of 48 seconds are over: as many are left.
    self.assertIn("epoch 2: 6/12 steps [00:24<00:24]", shown)
    self.assertNotIn("77", shown)

  def test_in_a_pipe_there_is_a_line_every_ten_seconds_at_most(self):
    for seconds, most in ((0.001, 2), (1.0, 3), (11.0, 2 * STEPS + 2)):
      lines = self.show(Progress(STEPS), 0, 1, seconds).splitlines()
      self.assertBetween(len(lines), 2, most)

  def test_a_resumed_run_starts_where_it_was(self):
    lines = self.show(Progress(4 * STEPS, 2 * STEPS), 2, 4).splitlines()
    self.assertRegex(lines[0], r"^training: 6/12 ")
    self.assertRegex(lines[-1], r"^epoch 4: 12/12 ")
    # The time left is that of this run's own pace.
    self.assertIn("epoch 3: 9/12 steps [00:12<00:12]", "\n".join(lines))

  def test_nothing_left_to_do(self):
    lines = self.show(Progress(2 * STEPS, 2 * STEPS), 2, 2).splitlines()
    self.assertLen(lines, 1)
    self.assertRegex(lines[0], r"^training: 6/6 ")

  def test_on_a_terminal_one_line_redraws_itself(self):
    shown = self.show(Progress(2 * STEPS), 0, 2, stream=Terminal())
    self.assertEqual(shown.count("\n"), 1)
    self.assertTrue(shown.endswith("\n"))
    last = shown.split("\r")[-1]
    for part in ("epoch 2: 100%", "6/6", "loss=0.123", "robust_accuracy=0.500"):
      self.assertIn(part, last)

  def test_an_evaluation_by_itself(self):
    stream = io.StringIO()
    with mock.patch.object(sys, "stderr", stream):
      progress = Progress(2)
      progress.on_test_begin()
      for step in range(2):
        progress.on_test_batch_end(step, {"loss": 9.0})
      progress.on_test_end({"loss": 2.0, "accuracy": 0.875})
    lines = stream.getvalue().splitlines()
    self.assertRegex(lines[-1], r"^evaluating: 2/2 .*loss=2.000, accuracy=0.875$")
    self.assertLen([line for line in lines if "2/2" in line], 1)

  def test_an_end_that_adds_nothing_is_no_line_of_its_own(self):
    stream, now = io.StringIO(), [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    with (
      mock.patch.object(sys, "stderr", stream),
      mock.patch("tqdm.std.time", clock.monotonic),
      mock.patch("dat_tf.monitoring.progress.time", clock),
    ):
      progress = Progress(1)
      progress.on_test_begin()
      now[0] = 11.0
      progress.on_test_batch_end(0)
      progress.on_test_end()
    self.assertEqual(stream.getvalue().count("1/1 steps [00:11"), 1)
