"""When checkpoints are saved, and that what they hold is sound."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.compat import keras, takes_tensors
from dat_tf.program import checkpointing
from dat_tf.program.checkpoint_files import Position
from dat_tf.program.run import Run
from dat_tf.program.trainee import Trainee
from dat_tf.workers.joined import Workers

# Steps after which the workers look how long a step takes.
_LOOK = 10


@takes_tensors
class Saving(keras.callbacks.Callback):
  """Saves after each epoch, and by --checkpoint_steps or --checkpoint_minutes within.

  All workers save after the same step: by the clock, that is the one at which the chief
  expects the minutes to be over, of which it tells the others now and then.
  """

  def __init__(self, run: Run, trainee: Trainee, steps: int):
    """Makes the callback, which all workers have.

    Args:
      run: of this worker.
      trainee: what is saved.
      steps: of an epoch.
    """
    super().__init__()
    self._run, self._trainee, self._steps = run, trainee, steps
    self._every = run.config.checkpoint_steps
    self._seconds = 60.0 * run.config.checkpoint_minutes
    self._next_look = 0

  def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
    self._epoch = epoch

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    steps = batch + 1
    done = self._epoch * self._steps + steps
    is_due = (self._every and done % self._every == 0) or (
      self._seconds and self._is_time(done)
    )
    if is_due and steps < self._steps:
      self._save(Position(self._epoch, steps))

  def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
    self._save(Position(epoch + 1))

  def _is_time(self, done: int) -> bool:
    """Whether the minutes are over; a collective, at the same steps on all workers."""
    now = time.monotonic()
    if not self._next_look:
      self._saved = self._looked = now
      self._looked_at, self._next_look = done, done + _LOOK
    if done < self._next_look:
      return False
    pace = (now - self._looked) / (done - self._looked_at)
    left = max(0.0, self._saved + self._seconds - now) / pace
    steps_left = self._run.workers.largest(
      round(left) if self._run.workers.is_chief else 0
    )
    self._looked, self._looked_at = now, done
    self._next_look = done + (steps_left or _LOOK)
    if not steps_left:
      self._saved = now
    return not steps_left

  def _save(self, here: Position) -> None:
    # An update may overflow although the gradient did not.
    weights = self._trainee.model.classifier.trainable_variables
    if not all(tf.reduce_all(tf.math.is_finite(weight)) for weight in weights):
      raise self._run.diverged(f"The weights are not finite after {here}")
    check_same_weights(self._run.workers, weights, str(here))
    self._run.check_claim()
    self._trainee.checkpoints.save(here)


@takes_tensors
class Verification(keras.callbacks.Callback):
  """Compares all weights over the workers each so many steps."""

  def __init__(self, workers: Workers, steps: int, every: int):
    """Makes the callback.

    Args:
      workers: which all have it.
      steps: of an epoch.
      every: steps between two comparisons.
    """
    super().__init__()
    self._workers, self._steps, self._every = workers, steps, every

  def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
    self._before = epoch * self._steps

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    step = self._before + batch + 1
    if step % self._every == 0:
      weights = self.model.classifier.trainable_variables
      check_same_weights(self._workers, weights, f"step {step}")


def check_same_weights(
  workers: Workers, weights: Sequence[tf.Variable], when: str
) -> None:
  """Makes sure that all workers have the same weights, bit for bit; a collective.

  Args:
    workers: all of them.
    weights: of the network.
    when: after what, for the message.

  Raises:
    UserError: a worker has others, by a callback or a fault of its machine. Figures
      would not show it, since they are means over all workers.
  """
  digest = checkpointing.digest(weights)
  number = int(digest, 16) >> 2  # an int64
  if workers.largest(number) == -workers.largest(-number):
    return
  digests = workers.texts(digest)
  ((most, count), *_) = collections.Counter(digests).most_common()
  odd = [worker for worker, other in enumerate(digests) if other != most]
  if odd:
    others = f"the {count} others" if count > 1 else f"worker {digests.index(most)}"
    raise UserError(
      f"After {when} worker {odd[0]} has other weights than {others}: a callback or a "
      "fault of that machine changed them. Start all again without it; they go on from "
      "the newest checkpoint."
    )
