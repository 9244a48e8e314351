"""Which of several all-reduces is the fastest here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import tensorflow as tf

from dat_tf.communication.all_reduce import AllReduce
from dat_tf.workers.joined import Workers

_ROUNDS = 5


def time_all_reduces(
  candidates: Mapping[str, AllReduce],
  variables: Sequence[tf.Variable],
  workers: Workers,
) -> dict[str, float]:
  """Times all-reduces on gradients of these variables' shapes, in turns.

  All workers must call it; they get the same figures.

  Args:
    candidates: by name.
    variables: what is trained.
    workers: who train it.

  Returns:
    By name, the median time of a call, on the slowest worker.
  """
  names = [variable.name for variable in variables]
  # Zeros take as long as other numbers, and leave no residual behind.
  zeros = [tf.zeros(variable.shape) for variable in variables]

  def timed(all_reduce: AllReduce) -> tf.types.experimental.GenericFunction:
    @tf.function
    def reduce(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
      def in_replica() -> list[tf.Tensor]:
        own = [tf.identity(tensor) for tensor in tensors]
        return all_reduce(own, names, tf.constant(0))[0]

      return workers.strategy.run(in_replica)

    return reduce

  functions = {name: timed(candidate) for name, candidate in candidates.items()}
  seconds: dict[str, list[float]] = {name: [] for name in candidates}
  for round_number in range(_ROUNDS + 1):
    for name, function in functions.items():
      started = time.perf_counter()
      results = workers.strategy.experimental_local_results(function(zeros)[0])
      _ = [result.numpy() for result in results]  # waits for them
      if round_number:  # the first one builds the graph
        seconds[name].append(time.perf_counter() - started)
  return {
    name: workers.largest(round(1e9 * statistics.median(values))) / 1e6
    for name, values in seconds.items()
  }
