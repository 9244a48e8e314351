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


def scalar_model(value):
  model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
  set_value(model, value)
  return model


def set_value(model, value):
  model.set_weights([np.full_like(w, value) for w in model.get_weights()])


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


class FilesCase(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = os.path.join(
      tempfile.mkdtemp(dir=self.get_temp_dir()), "checkpoints"
    )

  def newest(self):
    """(epochs, value) as a run that starts now restores them; None without any."""
    model = scalar_model(-1.0)
    checkpoints = Checkpoints(self.directory, {"classifier": model})
    newest = checkpoints.newest()
    if newest == START:
      return None
    checkpoints.restore(newest)
    return newest.epochs, float(model.get_weights()[0][0, 0])

  def save(self, *epochs, **kwargs):
    model, copy = scalar_model(0.0), scalar_model(0.0)
    copies = {"classifier": copy} if not kwargs.get("worker") else None
    checkpoints = Checkpoints(self.directory, {"classifier": model}, copies, **kwargs)
    for epoch in epochs:
      set_value(model, 10.0 * epoch)
      checkpoints.save(Position(epoch))
      # What is saved is the state at that time.
      set_value(model, -5.0)
    checkpoints.finish()


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


def cut(path):
  os.truncate(path, os.path.getsize(path) // 2)


def empty(path):
  os.truncate(path, 0)


def flip(path, place=0.5):
  with open(path, "r+b") as file:
    file.seek(int(place * os.path.getsize(path)))
    byte = file.read(1)
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte[0] ^ 4]))


def fill(path):
  with open(path, "w") as file:
    file.write("\0garbage {" * 5)


def point_nowhere(path):
  with open(path, "w") as file:
    file.write('model_checkpoint_path: "epoch-9"\n')


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


class WorkersTest(FilesCase):
  """What each replica keeps for itself, of two workers."""

  def checkpoints(self, worker, value, num_workers=2):
    self.own = tf.Variable([value, -value])
    model = scalar_model(1.0)
    copies = {"classifier": scalar_model(0.0)} if worker == 0 else None
    return Checkpoints(
      self.directory,
      {"classifier": model},
      copies,
      replica_state={"statistics": [self.own]},
      worker=worker,
      num_workers=num_workers,
    )

  def save_both(self, position):
    first, second = (self.checkpoints(i, 1.0 + 2.0 * i) for i in (0, 1))
    first.save(position)
    # The chief waits for the other worker.
    self.assertNotIn(f"{position.name}.index", files.names(self.directory))
    second.save(position)
    for each in (first, second):
      each.finish()
    self.assertIn(f"{position.name}.index", files.names(self.directory))

  def restored(self, worker, num_workers=2):
    checkpoints = self.checkpoints(worker, 0.0, num_workers)
    checkpoints.restore(checkpoints.newest())
    return self.own.numpy().tolist()

  def test_each_gets_its_own(self):
    self.save_both(Position(1, 20))
    self.assertEqual(self.restored(0), [1.0, -1.0])
    self.assertEqual(self.restored(1), [3.0, -3.0])

  def test_others_get_the_mean(self):
    self.save_both(Position(1))
    for worker in range(3):
      self.assertEqual(self.restored(worker, 3), [2.0, -2.0])

  def test_the_older_ones_go_with_all_files(self):
    for position in (Position(1), Position(1, 20), Position(1, 100), Position(2)):
      self.save_both(position)
    names = {name.split(".")[0] for name in os.listdir(self.directory)}
    stems = ["epoch-1-step-100", "epoch-2"]
    expected = {f"{s}{w}" for s in stems for w in ("", *self.workers)}
    self.assertEqual(names, {*expected, "checkpoint"})

  workers = ("-worker-0-of-2", "-worker-1-of-2")

  def test_damage_is_noticed_by_the_one_whose_file_it_is(self):
    self.save_both(Position(1, 3))
    self.save_both(Position(1, 6))
    name = f"epoch-1-step-6{self.workers[1]}.data-00000-of-00001"
    flip(os.path.join(self.directory, name))
    with contextlib.redirect_stdout(io.StringIO()) as output:
      found = [self.checkpoints(i, 0.0).newest() for i in (0, 1)]
    self.assertEqual(found, [Position(1, 6), Position(1, 3)])
    self.assertLen(output.getvalue().splitlines(), 1)
    self.assertRegex(output.getvalue(), rf"Warning: \S*/{name} is damaged")
    # All agree on the earlier one.
    limited = self.checkpoints(0, 0.0).newest(limit=Position(1, 3))
    self.assertEqual(limited, Position(1, 3))
    # One that is gone is missed by all.
    os.remove(os.path.join(self.directory, f"epoch-1-step-6{self.workers[1]}.index"))
    for worker in (0, 1):
      self.assertEqual(self.checkpoints(worker, 0.0).newest(), Position(1, 3))

  def test_what_single_workers_have_left_goes(self):
    self.save_both(Position(1))
    whole = set(os.listdir(self.directory))
    # The chief was killed before it wrote its own.
    second = self.checkpoints(1, 0.0)
    second.save(Position(1, 9))
    second.finish()
    self.assertNotEqual(set(os.listdir(self.directory)), whole)
    checkpoint_files.remove_leftovers(self.directory)
    self.assertEqual(set(os.listdir(self.directory)), whole)
    # The chief's of a later one is damaged.
    self.save_both(Position(2))
    checkpoint_files.remove_after(self.directory, Position(1))
    later = {name for name in os.listdir(self.directory) if "epoch-2-worker" in name}
    self.assertEmpty(later)

  def test_a_worker_whose_directory_is_another(self):
    chief = self.checkpoints(0, 0.0)
    with mock.patch.object(checkpointing, "_PATIENCE", 0.1):
      chief.save(Position(1))
      with self.assertRaisesRegex(UserError, "worker-1-of-2.index .*one directory"):
        chief.finish()


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
