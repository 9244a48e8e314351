"""Clocks inside a graph.

A clock is read when a tensor is there, and whatever uses the tensor waits for that
reading: else a busy machine would read the clock any time later. On a GPU these are the
times at which work is queued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf


def arrivals(tensors: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
  """The same tensors, and when the last of them was there, in seconds, float64."""
  tensors, times = zip(*map(_arrival, tensors))
  return list(tensors), tf.reduce_max(tf.stack(times))


class Stopwatch:
  """How long parts of a graph take, by name, where several of a name may overlap."""

  def __init__(self) -> None:
    self._intervals: dict[str, list[tuple[tf.Tensor, tf.Tensor]]] = {}

  def __call__(
    self, name: str, part: Callable[[tf.Tensor], tf.Tensor], given: tf.Tensor
  ) -> tf.Tensor:
    """The result of a part, whose time is taken."""
    given, start = _arrival(given)
    result, end = _arrival(part(given))
    self._intervals.setdefault(name, []).append((start, end))
    return result

  @property
  def totals(self) -> dict[str, tf.Tensor]:
    """Milliseconds, float32, during which at least one part of a name was under way."""
    return {
      name: _covered_ms(*map(tf.stack, zip(*intervals)))
      for name, intervals in self._intervals.items()
    }


def elapsed_ms(start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
  """Float32, between two times in seconds, float64."""
  return tf.cast(1000.0 * (end - start), tf.float32)


def _arrival(tensor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  with tf.control_dependencies([tensor]), tf.device("CPU:0"):
    # A graph runs its stateful operations, of which a clock is one, in the order in
    # which they were written down. A call that is declared stateless is free of that.
    clock = _clock.get_concrete_function()
    time = tf.raw_ops.PartitionedCall(args=[], Tout=[tf.float64], f=clock)[0]
  with tf.control_dependencies([time]):
    return tf.identity(tensor), time


@tf.function(autograph=False)
def _clock() -> tf.Tensor:
  return tf.timestamp()


def _covered_ms(starts: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
  """The length of the union of intervals, given in seconds, float64 [n] each."""
  order = tf.argsort(starts)
  starts, ends = tf.gather(starts, order), tf.gather(ends, order)
  places = tf.range(starts.shape[0])
  is_earlier = places < places[:, tf.newaxis]
  covered_until = tf.reduce_max(tf.where(is_earlier, ends, starts[0]), axis=1)
  lengths = tf.maximum(ends - tf.maximum(starts, covered_until), 0.0)
  return tf.cast(1000.0 * tf.reduce_sum(lengths), tf.float32)
