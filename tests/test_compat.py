"""What the package uses of TensorFlow's and Keras' insides: each still does its work.

A test here fails when a new TensorFlow or Keras has renamed or dropped a piece.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import unittest.mock

import numpy as np
import tensorflow as tf

from dat_tf import compat
from dat_tf.communication import collectives
from dat_tf.optimizers import LAMB
from workers import run_workers


def _with_two_replicas():
  """A strategy with two replicas on this process's CPU."""
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


class KerasTest(tf.test.TestCase):
  def test_keras_is_keras_2(self):
    self.assertIs(compat.keras.Model, tf.keras.Model)
    self.assertTrue(hasattr(compat.keras.optimizers.legacy.Optimizer, "add_slot"))

  def test_keras_3_is_refused(self):
    keras_3 = unittest.mock.Mock(__version__="3.15.1")
    with unittest.mock.patch.object(tf, "keras", keras_3):
      with self.assertRaisesRegex(ImportError, 'Keras 3.15.1.* write "import dat_tf"'):
        compat.keras  # noqa: B018
    self.addCleanup(setattr, sys, "excepthook", sys.__excepthook__)

  def test_other_names(self):
    with self.assertRaisesRegex(AttributeError, "no attribute 'nothing'"):
      compat.nothing  # noqa: B018

  def test_nothing_private_is_used_elsewhere(self):
    names = (
      r"tensorflow\.python|tensorflow\.tsl|tensorflow\.compiler|_supports_tf_logs"
      r"|_keras_history|inbound_nodes|_create_all_weights|__class__ = |_get_writer"
      r"|\._address\b|keras_metadata\.pb|distribute_reduction_method|_fallback_apply_state"
      r"|preprocess_input\b(?!\(constructor\)|$)|tf\.keras\.\w+\("
    )
    package = os.path.dirname(compat.__file__)
    found = []
    for folder, _, files in os.walk(package):
      for file in files:
        path = os.path.join(folder, file)
        if file.endswith(".py") and file != "compat.py":
          with open(path, encoding="utf-8") as lines:
            found += [f"{path}: {line}" for line in lines if re.search(names, line)]
    self.assertEqual(found, [])


def _heartbeat():
  """What a worker's coordination service was told."""
  from tensorflow.python.eager import context

  from dat_tf.workers import joined
  from dat_tf.workers.cluster import Cluster

  options = joined.communication_options("ring", 0, 60)
  joined.join(Cluster.from_environment(), options)
  service = context.context().coordination_service
  return service.heartbeat_timeout_in_ms, [
    (job.name, job.num_tasks) for job in service.coordinated_job_list
  ]


class HeartbeatTest(tf.test.TestCase):
  def test_the_coordination_service_is_told(self):
    for heartbeat, jobs in run_workers(_heartbeat, 2):
      self.assertEqual(heartbeat, 60_000)
      self.assertEqual(jobs, [("worker", 2)])

  def test_without_it_a_run_goes_on_and_says_so(self):
    with unittest.mock.patch.object(
      compat, "_coordinated_job", side_effect=ImportError("no CoordinatedJob")
    ):
      with self.assertLogs("dat_tf.compat", "WARNING") as logged:
        compat.bear_silence(2, 60)
    self.assertIn("no heartbeat of 60 s (no CoordinatedJob)", logged.output[0])


class CallbackTest(tf.test.TestCase):
  def test_figures_stay_tensors(self):
    seen = {}

    class Eager(compat.keras.callbacks.Callback):
      def on_train_batch_end(self, batch, logs=None):
        seen[type(self).__name__] = logs["loss"]

    @compat.takes_tensors
    class Lazy(Eager):
      pass

    for callback in (Eager(), Lazy()):
      model = compat.keras.Sequential([compat.keras.layers.Dense(1)])
      model.compile("sgd", "mse")
      model.fit(np.ones((4, 2)), np.ones(4), callbacks=[callback], verbose=0)
    self.assertIsInstance(seen["Eager"], float)
    self.assertTrue(tf.is_tensor(seen["Lazy"]))


class ModelTest(tf.test.TestCase):
  def test_the_first_replicas_figures_are_everyones(self):
    class Constant(compat.keras.Model):
      def test_step(self, data):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return {"replica": tf.cast(replica, tf.float32)}

    with _with_two_replicas().scope():
      models = Constant(), Constant()
      compat.report_first_replica(models[0])
      for model in models:
        model.compile()
    data = tf.data.Dataset.from_tensors(np.ones((2, 1), "f4"))
    first, reduced = (model.evaluate(data, verbose=0) for model in models)
    self.assertEqual(first, 0)
    self.assertNotEqual(reduced, 0)

  def test_an_epoch_may_begin_at_a_step(self):
    steps = []
    model = compat.keras.Sequential([compat.keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensors((np.ones((2, 1)), np.ones(2))).repeat()
    note = compat.keras.callbacks.LambdaCallback(
      on_epoch_begin=lambda epoch, logs: steps.append([epoch]),
      on_train_batch_end=lambda batch, logs: steps[-1].append(batch),
    )

    def fit():
      return model.fit(
        data,
        initial_epoch=1,
        epochs=3,
        steps_per_epoch=4,
        callbacks=[note],
        verbose=0,
      )

    compat.begin_at_step(model, 2, fit)
    self.assertEqual(steps, [[1, 2, 3], [2, 0, 1, 2, 3]])
    # Once only.
    steps.clear()
    fit()
    self.assertEqual(steps[0], [1, 0, 1, 2, 3])

  def test_layer_and_inputs(self):
    layers = compat.keras.layers
    first, second = compat.keras.Input((3,)), compat.keras.Input((3,))
    added = layers.Add(name="add")
    layer, inputs = compat.layer_and_inputs(added([first, second]))
    self.assertIs(layer, added)
    self.assertEqual([id(x) for x in inputs], [id(first), id(second)])

  def test_preprocess_input(self):
    applications = compat.keras.applications
    preprocess = compat.preprocess_input(applications.MobileNetV2)
    self.assertAllClose(preprocess(tf.constant([0.0, 255.0])), [-1.0, 1.0])
    pixels = tf.zeros([1, 1, 1, 3])
    preprocess = compat.preprocess_input(applications.ResNet50)
    self.assertAllClose(preprocess(pixels)[0, 0, 0], [-103.939, -116.779, -123.68])

  def test_saved_models_of_keras_2_are_known(self):
    model = compat.keras.Sequential([compat.keras.layers.Dense(1)])
    model.build((None, 2))
    of_keras, other = (os.path.join(self.get_temp_dir(), x) for x in ("keras", "other"))
    model.save(of_keras, save_format="tf")
    tf.saved_model.save(tf.Module(), other)
    self.assertTrue(compat.is_written_by_keras_2(of_keras))
    self.assertFalse(compat.is_written_by_keras_2(other))


class OptimizerTest(tf.test.TestCase):
  def test_slots_are_made_before_the_first_step(self):
    variable, optimizer = tf.Variable(tf.ones([2, 2])), LAMB(0.1)
    compat.make_slots(optimizer, [variable])
    self.assertAllEqual(optimizer.get_slot(variable, "m"), tf.zeros([2, 2]))
    self.assertEqual(int(optimizer.iterations), 0)

  def test_coefficients(self):
    optimizer, variable = LAMB(0.25, beta_1=0.75), tf.Variable(1.0)
    found = compat.coefficients(optimizer, variable, None)
    self.assertAllClose(found["lr_t"], 0.25)
    self.assertAllClose(found["beta_1_power"], 0.75)

  def test_copies_of_a_variable_share_their_name(self):
    with _with_two_replicas().scope():
      variable = tf.Variable(1.0, name="layer/kernel")
    first, second = variable.values
    self.assertNotEqual(first.name, second.name)
    for copy in (variable, first, second):
      self.assertEqual(compat.name_of_all_copies(copy), "layer/kernel:0")


class StrategyTest(tf.test.TestCase):
  def test_local_variables(self):
    with _with_two_replicas().scope():
      variable = tf.Variable(3.0)
    self.assertEqual([float(each) for each in compat.local_variables(variable)], [3, 3])
    plain = tf.Variable(1.0)
    self.assertIs(compat.local_variables(plain)[0], plain)

  def test_local_value_and_replicas(self):
    strategy = _with_two_replicas()
    with strategy.scope():
      variable = tf.Variable(
        0.0,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
      )

    @tf.function
    def assign():
      replica = tf.distribute.get_replica_context().replica_id_in_sync_group
      variable.assign(tf.cast(replica, tf.float32) + 2.0)

    strategy.run(assign)
    self.assertEqual(float(variable.read_value()), 5)  # of both
    self.assertEqual(float(compat.local_value(variable)), 2)
    self.assertEqual(float(compat.local_value(tf.Variable(7.0))), 7)
    self.assertEqual(compat.local_replicas(strategy), 2)

  def test_iterators_are_made_quietly(self):
    inside = []

    @contextlib.contextmanager
    def quiet():
      inside.append("begun")
      yield
      inside.append("ended")

    strategy = _with_two_replicas()
    dataset = strategy.experimental_distribute_dataset(
      tf.data.Dataset.range(4).batch(2)
    )
    dataset = compat.quiet_iterator(dataset, quiet)
    self.assertIsInstance(dataset, tf.distribute.DistributedDataset)
    first = strategy.experimental_local_results(next(iter(dataset)))
    self.assertAllEqual(tf.concat(first, 0), [0, 1])
    self.assertEqual(inside, ["begun", "ended"])

  def test_raw_collectives_are_there(self):
    # Public, but on no page that promises to keep them.
    for name in ("AllToAllV2", "GatherV2", "ReduceV2"):
      self.assertTrue(hasattr(tf.raw_ops, f"Collective{name}"), name)
    self.assertTrue(callable(collectives.groups))


class ServiceTest(tf.test.TestCase):
  def test_port(self):
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    target = dispatcher.target.split("://")[1]
    worker = service.WorkerServer(service.WorkerConfig(target))
    self.assertBetween(compat.port(worker), 1, 65535)


class NoiseTest(tf.test.TestCase):
  def test_importing_tensorflow_prints_nothing_else(self):
    code = """
import dat_tf
from dat_tf.compat import quiet
with quiet():
  import tensorflow as tf
  tf.config.list_physical_devices("GPU")
  tf.constant(1) + 1
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    process = subprocess.run(
      [sys.executable, "-c", code],
      cwd=os.path.dirname(os.path.dirname(compat.__file__)),
      env=environment,
      capture_output=True,
      text=True,
    )
    self.assertEqual((process.returncode, process.stderr), (0, ""))


if __name__ == "__main__":
  tf.test.main()
