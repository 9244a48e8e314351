"""When checkpoints are saved, and that what they hold is sound."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from typing import Any, Optional

import tensorflow as tf
import tqdm

from dat_tf.base.errors import MachineError
from dat_tf.compat import keras, takes_tensors
from dat_tf.monitoring import Events
from dat_tf.program import checkpointing
from dat_tf.program.checkpoint_files import Position
from dat_tf.program.run import Run
from dat_tf.program.trainee import Trainee
from dat_tf.workers.joined import Workers
from dat_tf.workers.preemption import Preempted
from dat_tf.workers.stragglers import Stragglers

# Seconds between two times at which the workers tell each other how things are.
_PAUSE = 1.0


@takes_tensors
class Saving(keras.callbacks.Callback):
  """Saves after each epoch, within by --checkpoint_steps or _minutes, and at an order.

  All workers save after the same step. So about each second they tell each other
  whether the chief's minutes are over, and whether one of them was told to end; if one
  was, all save there, and `Preempted` is raised. They also tell how long their own part
  of a step takes, and the chief names a straggler.
  """

  def __init__(
    self,
    run: Run,
    trainee: Trainee,
    steps: int,
    *,
    events: Events,
    stragglers: Stragglers,
    is_told_to_end: Callable[[], bool],
  ):
    """Makes the callback, which all workers have.

    Args:
      run: of this worker.
      trainee: what is saved.
      steps: of an epoch.
      events: is told of each checkpoint.
      stragglers: is shown what each worker's part of a step takes.
      is_told_to_end: whether this worker is, see `preemption.awaited`.
    """
    super().__init__()
    self._run, self._trainee, self._steps = run, trainee, steps
    self._events, self._stragglers = events, stragglers
    self._is_told_to_end = is_told_to_end
    # Seconds of steps alone, and of how many; when the last one ended.
    self._stepping, self._stepped = 0.0, 0
    self._ended: Optional[float] = None
    self._every = run.config.checkpoint_steps
    self._seconds = 60.0 * run.config.checkpoint_minutes or float("inf")
    # When it was saved, when the workers spoke last, and after which step.
    self._saved = self._spoke = self._spoke_at = 0.0
    self._speaks_at = 0

  def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
    self._epoch, self._ended = epoch, None

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    if self._ended is not None:
      self._stepping += time.monotonic() - self._ended
      self._stepped += 1
    elif not self._speaks_at:
      done = self._epoch * self._steps + batch + 1
      self._events.write("first_step", self._epoch, done)
    self._act(batch + 1, logs or {})
    self._ended = time.monotonic()

  def _act(self, steps: int, logs: dict[str, Any]) -> None:
    """Saves if it is time to, after so many steps of an epoch."""
    if steps == self._steps:
      return  # the epoch's end does the same
    done = self._epoch * self._steps + steps
    is_due = bool(self._every) and done % self._every == 0
    must_end = False
    if not self._speaks_at:  # the first step builds the graph
      self._saved = self._spoke = time.monotonic()
      self._spoke_at, self._speaks_at = done, done + 1
    elif done >= self._speaks_at:
      is_time, must_end = self._speak(done, float(logs.get("reduction_ms", 0.0)))
      is_due |= is_time
    if is_due or must_end:
      self._save(Position(self._epoch, steps))
    if must_end:
      raise Preempted

  def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
    self._save(Position(epoch + 1))
    if self._speak((epoch + 1) * self._steps)[1]:
      raise Preempted

  def _speak(
    self, done: int, reduction_ms: Optional[float] = None
  ) -> tuple[bool, bool]:
    """Whether the chief's minutes are over, and whether a worker was told to end.

    A collective. It also settles how many steps later the workers speak again.

    Args:
      done: steps so far.
      reduction_ms: of the last step; None between two epochs.
    """
    now = time.monotonic()
    pace = (now - self._spoke) / max(1, done - self._spoke_at)
    is_time = now - self._saved >= self._seconds
    own = max(0.0, pace - 1e-3 * (reduction_ms or 0.0))
    pause = max(1, round(_PAUSE / max(pace, 1e-6)))
    rows = self._run.workers.numbers(
      [is_time, self._is_told_to_end(), pause, round(1e6 * own)]
    )
    self._spoke, self._spoke_at = now, done
    times, orders, pauses, parts = zip(*rows)
    self._speaks_at = done + pauses[0]
    if reduction_ms is not None and len(rows) > 1:
      line = self._stragglers.look([part / 1e6 for part in parts])
      if line and self._run.workers.is_chief:
        tqdm.tqdm.write(f"Warning: {line}")
    return bool(times[0]), any(orders)

  def _save(self, here: Position) -> None:
    # An update may overflow although the gradient did not.
    weights = self._trainee.model.classifier.trainable_variables
    if not all(tf.reduce_all(tf.math.is_finite(weight)) for weight in weights):
      raise self._run.diverged(f"The weights are not finite after {here}")
    check_same_weights(self._run.workers, weights, str(here))
    self._run.check_claim()
    pace = round(self._stepping / self._stepped, 6) if self._stepped else None

    def note(seconds: float, size: int) -> None:
      step = here.epochs * self._steps + here.steps
      figures = {"seconds": round(seconds, 3), "bytes": size, "seconds_per_step": pace}
      self._events.write("save", here.epochs, step, **figures)

    self._trainee.checkpoints.save(here, note)
    self._saved = time.monotonic()


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
    MachineError: a worker has others, by a callback or a fault of its machine. Figures
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
    raise MachineError(
      f"After {when} worker {odd[0]} has other weights than {others}: a callback or a "
      "fault of that machine changed them. Start all again without it; they go on from "
      "the newest checkpoint."
    )
