"""What ends a worker that waits in vain, and what it spares: threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.communication import BucketQuantizer, MeanAllReduce, QuantizedAllReduce
from dat_tf.workers import cluster as cluster_lib
from dat_tf.workers import joined
from workers import run_workers

# By a clock of its own: steps that take 1.5 s, 15 s together, and pauses of 100 s after
# epochs; then a step, of training or of evaluation, that never ends.
CODE = """
import sys, time
from dat_tf.compat import quiet
with quiet():
  import tensorflow as tf
  from dat_tf.workers import watchdog

class Clock:
  now = 0.0

  def monotonic(self):
    return self.now

  def sleep(self, seconds):
    time.sleep(0.001)  # far more often than is needed

clock = watchdog.time = Clock()

def wait(seconds):
  clock.now += seconds
  time.sleep(0.01)

def hung():
  yield [[1.0]]
  while True:
    wait(1)

class Model(tf.keras.Sequential):
  def train_step(self, data):
    wait(1.5)
    return {"loss": 0.0}

  test_step = train_step

model = Model([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
model.compile(run_eagerly=True)
pause = tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: wait(100))
common = {"callbacks": [watchdog.Watchdog(2.0, worker=7), pause], "verbose": 0}
data = tf.ones((10, 1))
model.fit(data, batch_size=1, epochs=2, validation_data=(data,), **common)
print("still here", flush=True)
data = tf.data.Dataset.from_generator(hung, output_signature=tf.TensorSpec((1, 1)))
if sys.argv[1] == "training":
  model.fit(data, steps_per_epoch=2, **common)
else:
  model.evaluate(data, steps=2, **common)
"""


class WatchdogTest(tf.test.TestCase):
  def test_a_step_that_hangs_ends_the_process_and_quick_ones_do_not(self):
    processes = {
      what: subprocess.Popen(
        [sys.executable, "-c", CODE, what],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for what in ("training", "evaluation")
    }
    for what, process in processes.items():
      with self.subTest(what):
        stdout, stderr = process.communicate(timeout=300)
        self.assertEqual(stdout, "still here\n", stderr)
        self.assertEqual(process.returncode, 1, stderr)
        *stacks, line = stderr.splitlines()
        step = f"step [12] of {'epoch 1' if what == 'training' else 'evaluation'}"
        self.assertRegex(
          line, f"^Worker 7 ends: {step} took more than 2 s. .*--collective_timeout;"
        )
        # What the main thread waits in.
        self.assertRegex("\n".join(stacks), r'"<string>", line \d+ in <module>')


def _threads_of_60_steps(timeout_seconds):
  """By all-reduce, how many more threads there are after 60 steps than before."""
  cluster = cluster_lib.Cluster.from_environment()
  options = joined.communication_options("ring", 0, timeout_seconds)
  strategy = joined.join(cluster, options).strategy
  reduces = {
    "mean": MeanAllReduce(options),
    "quantized": QuantizedAllReduce(BucketQuantizer(8, 64), options),
  }
  data = tf.data.Dataset.from_tensors(
    (np.zeros((4, 6, 6, 1), "f4"), np.zeros(4, "i8"))
  ).repeat()
  grown = {}
  for name, all_reduce in reduces.items():
    with strategy.scope():
      classifier = tf.keras.Sequential(
        [
          tf.keras.Input((6, 6, 1)),
          tf.keras.layers.Flatten(),
          tf.keras.layers.Dense(60),
          tf.keras.layers.Dense(3),
        ]
      )
      model = AdversarialModel(classifier, attack=None, all_reduce=all_reduce)
      model.compile(optimizer=tf.keras.optimizers.legacy.SGD(0.1))
    distributed = strategy.distribute_datasets_from_function(lambda context: data)
    model.fit(distributed, steps_per_epoch=5, verbose=0)  # pools of threads fill up
    before = len(os.listdir("/proc/self/task"))
    model.fit(distributed, steps_per_epoch=60, verbose=0)
    grown[name] = len(os.listdir("/proc/self/task")) - before
  return grown


@pytest.mark.long
@pytest.mark.skipif(
  not os.path.exists("/proc/self/task"), reason="Linux alone shows it"
)
class ThreadsTest(tf.test.TestCase):
  def test_collectives_leave_no_threads_behind(self):
    # As `Run` makes its strategy.
    for worker in run_workers(_threads_of_60_steps, 2, 0):
      for name, grown in worker.items():
        self.assertLess(grown, 20, name)


if __name__ == "__main__":
  tf.test.main()
