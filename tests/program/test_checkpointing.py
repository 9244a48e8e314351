"""Checkpoints of a run, and the export of its classifier."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from checkpoint_case import (
  FilesCase,
  cut,
  empty,
  fill,
  flip,
  point_nowhere,
)

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import PGD, LInfinity
from dat_tf.base import files
from dat_tf.base.errors import UserError
from dat_tf.optimizers import LAMB, WarmupDecay
from dat_tf.program import checkpoint_files, checkpointing
from dat_tf.program.checkpoint_files import START, Position
from dat_tf.program.checkpointing import Checkpoints

STEPS = 3  # an epoch


def classifier_with_batch_norm(seed=0):
  tf.keras.utils.set_random_seed(seed)
  inputs = tf.keras.Input((4, 1, 1))
  hidden = tf.keras.layers.Dense(8)(tf.keras.layers.Flatten()(inputs))
  hidden = tf.keras.layers.ReLU()(tf.keras.layers.BatchNormalization()(hidden))
  return tf.keras.Model(inputs, tf.keras.layers.Dense(3)(hidden))


def epochs_of_data(first, last):
  """Random images, other ones in each epoch."""
  for epoch in range(first, last):
    rng = np.random.default_rng(epoch)
    for step in range(STEPS):
      yield {
        "image": rng.random((8, 4, 1, 1), "f4"),
        "label": rng.integers(0, 3, size=8),
        "weight": np.ones(8, "f4"),
        "example_id": np.arange(8 * step, 8 * step + 8),
        "epoch": np.full(8, epoch),
      }


class TrainingTest(tf.test.TestCase):
  def train(self, first, last, directory, seed=0):
    """Trains epochs `first` to `last` as a run does; returns the model."""
    model = AdversarialModel(
      classifier_with_batch_norm(seed), PGD(LInfinity(0.1), 0.05, 1)
    )
    # All that has a state: moments, statistics, and a rate that depends on the step.
    rate = WarmupDecay(0.05, warmup_steps=4, decay="cosine", total_steps=4 * STEPS)
    model.compile(optimizer=LAMB(rate, weight_decay=0.01))
    model.optimizer._create_all_weights(model.classifier.trainable_variables)
    tracked = {"classifier": model.classifier, "optimizer": model.optimizer}
    copies = {"classifier": tf.keras.models.clone_model(model.classifier)}
    copies["optimizer"] = LAMB(rate, weight_decay=0.01)
    copies["optimizer"]._create_all_weights(copies["classifier"].trainable_variables)
    checkpoints = Checkpoints(
      directory, tracked, copies, replica_state=model.replica_state
    )
    newest = checkpoints.newest()
    self.assertEqual(newest.epochs, first)
    if newest != START:
      checkpoints.restore(newest)
    signature = {
      name: tf.TensorSpec(value.shape, value.dtype)
      for name, value in next(epochs_of_data(0, 1)).items()
    }
    model.fit(
      tf.data.Dataset.from_generator(
        lambda: epochs_of_data(first, last), output_signature=signature
      ),
      initial_epoch=first,
      epochs=last,
      steps_per_epoch=STEPS,
      callbacks=[
        tf.keras.callbacks.LambdaCallback(
          on_epoch_end=lambda epoch, logs: checkpoints.save(Position(epoch + 1))
        )
      ],
      verbose=0,
    )
    checkpoints.finish()
    return model

  def test_a_continued_run_equals_the_unbroken_one_bit_for_bit(self):
    broken, unbroken = (
      tempfile.mkdtemp(dir=self.get_temp_dir()),
      tempfile.mkdtemp(dir=self.get_temp_dir()),
    )
    whole = self.train(0, 4, unbroken)
    first_half = self.train(0, 2, broken)
    # Other initial weights: all that counts comes from the checkpoint.
    continued = self.train(2, 4, broken, seed=1)
    pairs = [
      (m.classifier.weights + m.optimizer.variables()) for m in (whole, continued)
    ]
    # Two moments for each trainable tensor, a ratio for each kernel, the step.
    self.assertLen(continued.optimizer.variables(), 2 * 6 + 2 + 1)
    for expected, actual in zip(*pairs):
      self.assertAllEqual(expected, actual)
    self.assertEqual(int(continued.optimizer.iterations), 4 * STEPS)
    kernel = continued.classifier.trainable_variables[0]
    self.assertNotAllClose(kernel, first_half.classifier.trainable_variables[0])

  def test_the_optimizer_may_stay_behind(self):
    directory = tempfile.mkdtemp(dir=self.get_temp_dir())
    trained = self.train(0, 1, directory)
    classifier = classifier_with_batch_norm(seed=1)
    checkpoints = Checkpoints(directory, {"classifier": classifier})
    self.assertEqual(checkpoints.newest(), Position(1))
    checkpoints.restore(Position(1))
    for expected, actual in zip(trained.classifier.weights, classifier.weights):
      self.assertAllEqual(expected, actual)


class FilesTest(FilesCase):
  def test_without_one_nothing_is_restored_or_made(self):
    self.assertIsNone(self.newest())
    self.assertFalse(os.path.exists(self.directory))

  def test_the_newest_few_are_kept_over_restarts(self):
    self.save(1, 2, 3, keep=2)
    self.assertEqual(self.newest(), (3, 30.0))
    self.save(4, keep=2)
    self.assertEqual(self.newest(), (4, 40.0))
    names = {name.split(".")[0] for name in os.listdir(self.directory)}
    self.assertEqual(names, {"checkpoint", "epoch-3", "epoch-4"})
    # Numbers, not names, are in order.
    self.save(9, 10, keep=1)
    self.assertEqual(self.newest(), (10, 100.0))
    names = {name.split(".")[0] for name in os.listdir(self.directory)}
    self.assertEqual(names, {"checkpoint", "epoch-10"})

  def test_a_directory_can_be_moved(self):
    self.save(1)
    moved = os.path.join(tempfile.mkdtemp(dir=self.get_temp_dir()), "moved")
    os.rename(self.directory, moved)
    self.directory = moved
    self.assertEqual(self.newest(), (1, 10.0))

  def test_workers_other_than_the_chief_leave_no_file(self):
    self.save(1, 2, worker=1)
    self.assertFalse(os.path.exists(self.directory))

  def test_a_write_that_was_cut_off_leaves_the_last_good_one(self):
    self.save(1, 2)
    for suffix in (".index", ".data-00000-of-00001"):
      whole = os.path.join(self.directory, f"epoch-2{suffix}")
      with (
        open(whole, "rb") as file,
        open(os.path.join(self.directory, f"epoch-3{suffix}"), "wb") as cut_off,
      ):
        content = file.read()
        cut_off.write(content[: len(content) // 2])
    self.assertEqual(self.newest(), (2, 20.0))
    self.save(3)
    self.assertEqual(self.newest(), (3, 30.0))

  def test_a_run_killed_before_the_checkpoint_is_listed_has_it(self):
    self.save(1, 2, keep=1)
    with (
      mock.patch.object(files, "write_text", side_effect=OSError),
      self.assertRaises(OSError),
    ):
      self.save(3, keep=1)
    self.assertIn("epoch-2.index", os.listdir(self.directory))
    self.assertEqual(self.newest(), (3, 30.0))

  def test_tensorflow_finds_the_newest_in_its_own_way(self):
    self.save(1, 2, 3)
    newest = tf.train.latest_checkpoint(self.directory)
    self.assertEqual(newest, os.path.join(self.directory, "epoch-3"))

  def test_a_checkpoint_of_another_network_is_not_taken_in_silence(self):
    self.save(1)
    for units in ((2,), (1, 1)):  # a wider layer, a further layer
      layers = map(tf.keras.layers.Dense, units)
      other = tf.keras.Sequential([tf.keras.Input((1,)), *layers])
      with self.assertRaisesRegex(UserError, "epoch-1 is of another network"):
        Checkpoints(self.directory, {"classifier": other}).restore(Position(1))


INDEX, DATA = "epoch-2.index", "epoch-2.data-00000-of-00001"
DAMAGES = [
  (file, damage) for file in (INDEX, DATA) for damage in (cut, empty, flip, os.remove)
]


class DamagedTest(FilesCase, parameterized.TestCase):
  def file(self, name):
    return os.path.join(self.directory, name)

  def printed(self):
    with contextlib.redirect_stdout(io.StringIO()) as output:
      found = self.newest()
    return found, output.getvalue()

  @parameterized.parameters(*DAMAGES)
  def test_the_one_before_is_used_with_one_line(self, name, damage):
    self.save(1, 2)
    damage(self.file(name))
    found, output = self.printed()
    self.assertEqual(found, (1, 10.0))
    self.assertLen(output.splitlines(), 1)
    self.assertStartsWith(output, f"Warning: {self.file(name)} is ")
    self.assertIn("epoch-1", output)
    # The epoch that is done again replaces it, and the good one is still there.
    self.save(2)
    self.assertEqual(self.printed(), ((2, 20.0), ""))
    flip(self.file(name))
    self.assertEqual(self.printed()[0], (1, 10.0))

  @parameterized.parameters(*DAMAGES)
  def test_without_one_before_nothing_begins_anew(self, name, damage):
    self.save(2)
    damage(self.file(name))
    before = sorted(os.listdir(self.directory))
    with self.assertRaisesRegex(UserError, f"{name} is .*--overwrite"):
      self.newest()
    self.assertEqual(sorted(os.listdir(self.directory)), before)

  def test_no_flipped_bit_is_restored(self):
    self.save(1, 2)
    for name in (INDEX, DATA):
      for place in np.linspace(0, 0.999, 60):
        flip(self.file(name), place)
        found, _ = self.printed()
        left = os.path.getsize(self.file(name)) * (1 - place)
        # The index ends with an empty block and a footer, most of which nothing reads.
        if name == DATA or left > 96 or found != (2, 20.0):
          self.assertEqual(found, (1, 10.0), f"{name} at {place}")
        flip(self.file(name), place)
    self.assertEqual(self.printed(), ((2, 20.0), ""))

  @parameterized.parameters(cut, empty, fill, os.remove, point_nowhere)
  def test_the_list_is_not_needed(self, damage):
    self.save(1, 2)
    damage(self.file("checkpoint"))
    self.assertEqual(self.printed(), ((2, 20.0), ""))
    self.save(3)
    names = {name.split(".")[0] for name in os.listdir(self.directory)}
    self.assertEqual(names, {"checkpoint", "epoch-2", "epoch-3"})

  def test_a_list_without_checkpoints_is_no_new_start(self):
    self.save(1)
    for name in os.listdir(self.directory):
      if name != "checkpoint":
        os.remove(self.file(name))
    with self.assertRaisesRegex(UserError, "but no checkpoint.*--overwrite"):
      self.newest()

  def test_a_good_one_is_never_removed_for_a_damaged_one(self):
    self.save(1, 2, 3, keep=3)
    cut(self.file("epoch-3.index"))
    cut(self.file("epoch-2.index"))
    self.assertEqual(self.printed()[0], (1, 10.0))
    self.save(2, keep=2)
    self.assertEqual(self.printed()[0], (2, 20.0))
    self.assertIn("epoch-1.index", os.listdir(self.directory))

  def test_a_first_save_that_was_killed_is_no_checkpoint(self):
    # What SIGKILL leaves: TensorFlow's temporary directory, and data without an index.
    os.makedirs(self.file("epoch-1_temp"))
    with open(self.file("epoch-1.data-00000-of-00001"), "w") as file:
      file.write("some")
    checkpoint_files.remove_leftovers(self.directory)
    self.assertEqual(os.listdir(self.directory), [])
    self.assertIsNone(self.newest())

  def test_a_later_save_that_was_killed_leaves_the_others(self):
    self.save(1)
    os.makedirs(self.file("epoch-1_temp"))
    os.makedirs(self.file("epoch-2_temp"))
    with open(self.file("epoch-2.data-00000-of-00001"), "w") as file:
      file.write("some")
    checkpoint_files.remove_leftovers(self.directory)
    names = {name.split(".")[0] for name in os.listdir(self.directory)}
    self.assertEqual(names, {"checkpoint", "epoch-1"})
    self.assertEqual(self.printed(), ((1, 10.0), ""))


class CopyTest(tf.test.TestCase):
  def test_weights_are_copied_to_a_plain_model(self):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
      distributed = classifier_with_batch_norm()
    for index, weight in enumerate(distributed.weights):
      weight.assign(tf.fill(weight.shape, 0.5 + index))
    plain = tf.keras.models.clone_model(distributed)
    checkpointing.copy_weights(distributed, plain)
    self.assertLen(plain.weights, 8)
    for index, weight in enumerate(plain.weights):
      self.assertNotIsInstance(weight, tf.distribute.DistributedValues)
      self.assertAllEqual(weight, np.full(weight.shape, 0.5 + index))
