"""Checkpoints within an epoch: a run goes on from any of them as if never stopped."""

from __future__ import annotations

import collections
import shutil
from unittest import mock

import pytest
import tensorflow as tf
from partly_labeled import write_digits as write_partly_labeled
from program_case import ProgramCase, run_dat

from dat_tf.base.errors import MachineError
from dat_tf.monitoring import Events
from dat_tf.program import saving
from dat_tf.program.checkpoint_files import Position, present, remove
from dat_tf.workers import joined
from dat_tf.workers.cluster import Cluster
from dat_tf.workers.preemption import Preempted
from dat_tf.workers.stragglers import Stragglers
from workers import run_workers

# They tell of the machine, and differ from run to run.
MEASURED = ("images_per_second", "goodput", "over_median", "_ms")


def tensors(path):
  """Whatever a checkpoint or a worker's part of it holds, by name."""
  reader = tf.train.load_checkpoint(str(path))
  names = reader.get_variable_to_shape_map()
  return {name: reader.get_tensor(name) for name in names if "CHECKPOINT" not in name}


def points(logs):
  """{(folder, tag, step): values} of all that TensorBoard shows of training."""
  found = collections.defaultdict(list)
  for folder in ("train", "test", "summary"):
    for path in sorted((logs / folder).glob("*tfevents*")):
      for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
          is_point = not value.tag.startswith(("_hparams_", "custom_scalars"))
          if is_point and not value.tag.endswith(MEASURED):
            content = value.tensor.SerializeToString()
            found[folder, value.tag, event.step].append(content)
  return found


class GoingOnTest(ProgramCase):
  """3 steps an epoch, 2 epochs, a checkpoint after each step."""

  def assert_goes_on(self, name, num_workers=1, **more):
    """Stops a run, as it were, behind each of some steps, and lets it go on."""
    flags = {
      **self.flags,
      "mode": "train",
      "epochs": 2,
      "checkpoint_steps": 1,
      "checkpoints_to_keep": 100,
      "log_every": 2,
      "evaluate_every": 1,
      **more,
    }
    whole = self.folder / f"{name}_whole"
    # Keras warns of callbacks that take longer than steps as short as these.
    run = run_dat({**flags, "model_dir": whole}, num_workers)
    self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
    saved = sorted(present(str(whole / "checkpoints")))
    last = saved[-1]
    steps = last.epochs and max(each.steps for each in saved) + 1
    self.assertLen(saved, 2 * steps)
    for stop in (Position(0, steps - 1), Position(1, 1)):
      model_dir = self.folder / f"{name}_{stop.name}"
      shutil.copytree(whole, model_dir)
      for each in saved:
        if each > stop:
          remove(str(model_dir / "checkpoints"), each.name)
      shutil.rmtree(model_dir / "export")
      (model_dir / "results.json").unlink()
      run = run_dat({**flags, "model_dir": model_dir}, num_workers)
      self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
      done = stop.epochs * steps + stop.steps
      self.assertIn(f"training: {done}/{2 * steps} steps", run.stderr + run.stdout)
      for part in ("", *(f"-worker-{i}-of-{num_workers}" for i in range(num_workers))):
        expected, actual = (
          tensors(each / "checkpoints" / f"{last.name}{part}")
          for each in (whole, model_dir)
        )
        self.assertGreater(len(expected), 3)
        self.assertEqual(expected.keys(), actual.keys())
        for key, value in expected.items():
          self.assertAllEqual(value, actual[key], f"{part} {key}")
      expected, actual = points(whole / "logs"), points(model_dir / "logs")
      self.assertEqual(expected.keys(), actual.keys())
      for key, values in expected.items():
        self.assertEqual(values, actual[key], key)
      self.assertEqual({len(values) for values in actual.values()}, {1})

  def test_one_worker(self):
    self.assert_goes_on("one")

  @pytest.mark.long
  def test_free_training(self):
    """The perturbation goes from batch to batch; each batch is trained on twice."""
    self.assert_goes_on(
      "free", attack="free", attack_steps=2, step_size=0.1, optimizer="sgd"
    )

  @pytest.mark.long
  def test_two_workers_with_all_that_has_state(self):
    """Residuals, averages and batch-norm statistics differ between the workers."""
    write_partly_labeled(str(self.folder / "partly"))
    self.assert_goes_on(
      "two",
      num_workers=2,
      train_data=self.folder / "partly" / "labeled-*",
      test_data=self.folder / "partly" / "test-*",
      unlabeled_data=self.folder / "partly" / "unlabeled-*",
      unlabeled_loss="consistency",
      all_reduce="two_sided",
      error_feedback=True,
      weight_average="exponential",
      augmentation="pad_crop_flip",
    )


class IntervalTest(tf.test.TestCase):
  def callback(self, **settings):
    run = mock.Mock()
    settings = {"checkpoint_steps": 0, "checkpoint_minutes": 0.0, **settings}
    run.config = mock.Mock(**settings)
    run.workers.numbers = lambda mine: [mine, [0, self.told, 7, 2 * mine[3]]]
    self.stragglers = Stragglers()
    callback = saving.Saving(
      run,
      mock.Mock(),
      100,
      events=Events(None),
      stragglers=self.stragglers,
      is_told_to_end=lambda: False,
    )

    def save(here):
      self.saved.append(here)
      callback._saved = saving.time.monotonic()

    callback._save = save
    return callback

  def setUp(self):
    super().setUp()
    self.saved, self.told = [], False

  def test_steps_count_over_epochs(self):
    callback = self.callback(checkpoint_steps=30)
    for epoch in range(3):
      callback.on_epoch_begin(epoch)
      for batch in range(100):
        callback.on_train_batch_end(batch)
      callback.on_epoch_end(epoch)
    within = [(0, 30), (0, 60), (0, 90), (1, 20), (1, 50), (1, 80), (2, 10), (2, 40)]
    self.assertEqual(self.saved, sorted([*within, (2, 70), (1, 0), (2, 0), (3, 0)]))

  def test_minutes(self):
    """At a second a step, a checkpoint each 20 s; then steps take twice the time."""
    callback = self.callback(checkpoint_minutes=20 / 60)
    clock = 0.0
    with mock.patch.object(saving.time, "monotonic", lambda: clock):
      callback.on_epoch_begin(0)
      for batch in range(90):
        clock += 1.0 if batch < 50 else 2.0
        callback.on_train_batch_end(batch)
    steps = [position.steps for position in self.saved]
    self.assertEqual(steps, [21, 41, 56, 66, 76, 86])

  def test_one_worker_told_to_end_ends_all(self):
    callback, clock = self.callback(), 0.0
    with mock.patch.object(saving.time, "monotonic", lambda: clock):
      callback.on_epoch_begin(4)
      for batch in range(20):  # some 4 a second
        clock += 0.25
        callback.on_train_batch_end(batch)
      self.assertEmpty(self.saved)
      self.told = True
      with self.assertRaises(Preempted):
        for batch in range(20, 99):
          clock += 0.25
          callback.on_train_batch_end(batch)
    self.assertAllClose(self.stragglers.ratio, 2.0)
    self.assertEqual(self.saved, [Position(4, batch + 1)])
    self.assertLess(batch, 25)

  def test_an_order_in_the_last_step_waits_for_the_epochs_end(self):
    callback = self.callback()
    callback.on_epoch_begin(0)
    self.told = True
    callback.on_train_batch_end(99)
    self.assertEmpty(self.saved)
    with self.assertRaises(Preempted):
      callback.on_epoch_end(0)
    self.assertEqual(self.saved, [Position(1)])


def _change_one_weight():
  """What is said while all weights are the same, and once one worker's are not."""
  cluster = Cluster.from_environment()
  workers = joined.join(cluster, joined.communication_options("auto", 0, 0))
  with workers.strategy.scope():
    layers = tf.keras.layers
    classifier = tf.keras.Sequential(
      [tf.keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()]
    )
  weights = classifier.trainable_variables
  for variable in weights:
    variable.assign(tf.fill(variable.shape, 0.25))
  saving.check_same_weights(workers, weights, "step 1")
  if cluster.index == min(1, cluster.num_workers - 1):
    kernel = weights[0]
    kernel.assign(kernel.read_value() * tf.constant([[1.0, 1.0, 1.0000001]]))
  try:
    saving.check_same_weights(workers, weights, "step 2")
  except MachineError as error:
    return str(error)
  return None


class SameWeightsTest(tf.test.TestCase):
  def test_a_worker_with_other_weights_is_told_on_all(self):
    for number, others in ((2, "worker 0"), (3, "the 2 others")):
      for said in run_workers(_change_one_weight, number):
        self.assertStartsWith(
          said, f"After step 2 worker 1 has other weights than {others}: "
        )
    self.assertEqual(run_workers(_change_one_weight, 1), [None])

  def test_they_are_compared_at_the_steps_asked_for(self):
    compared = []
    callback = saving.Verification(None, steps=5, every=4)
    callback.set_model(mock.Mock())
    with mock.patch.object(
      saving, "check_same_weights", lambda *args: compared.append(args[2])
    ):
      for epoch in (1, 2):  # a run that goes on after an epoch
        callback.on_epoch_begin(epoch)
        for batch in range(5):
          callback.on_train_batch_end(batch)
    self.assertEqual(compared, ["step 8", "step 12"])


if __name__ == "__main__":
  tf.test.main()
