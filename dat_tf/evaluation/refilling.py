"""One attack on many examples, in batches that stay full.

Work is a queue of (example, round of the attack). Batches of fixed shape have slots; a
slot whose example is broken, or whose round is over, takes the next from the queue,
while the others go on with their rounds. So what is hard costs, what is easy does not.
The last examples move together, so that a batch less is run.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
from typing import Callable, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from dat_tf.attacks import iterative
from dat_tf.base import hashing

# Steps between two looks at what is broken, at least, and looks in a round at most: a
# look costs time, and a step of an example that need not be attacked any more is lost.
_STEPS_PER_CALL, _LOOKS = 4, 100

# Batches that are attacked side by side in one graph: what one of them does on a single
# core leaves the others to the other batch.
_BATCHES = 2


class Portion(NamedTuple):
  """Examples that wait: images, labels, logits and keys, arrays [N, ...]."""

  images: np.ndarray
  labels: np.ndarray
  logits: np.ndarray
  keys: np.ndarray

  def batch(self, slots: np.ndarray) -> iterative.Examples:
    """Those in the slots, int [S, 2]: example and round."""
    index, rounds = slots[:, 0], slots[:, 1]
    keys = self.keys[index]
    return iterative.Examples(
      images=tf.constant(self.images[index]),
      labels=tf.constant(self.labels[index]),
      keys=hashing.stream_keys(rounds, keys[:, 0], keys[:, 1]),
      logits=tf.constant(self.logits[index]),
      rounds=tf.constant(rounds),
    )


@dataclasses.dataclass
class Found:
  """The results of one attack's rounds, of N examples."""

  norm: np.ndarray
  round: np.ndarray
  images: np.ndarray


class Runner:
  """One attack."""

  def __init__(
    self,
    classifier: iterative.Classifier,
    attack: iterative.Iterative,
    batch_size: int,
  ):
    self.epsilon = attack.ball.epsilon
    self._attack, self._batch_size = attack, batch_size
    # A partial: TensorFlow takes the lambdas or methods of several attacks for one
    # function, and warns that it is retraced for ever.
    self._refill = tf.function(functools.partial(_refilled, attack))
    self._run_batch: Callable[..., iterative.State] = tf.function(
      functools.partial(iterative.run, attack, classifier)
    )
    self._steps: Callable[..., iterative.State] = tf.function(
      functools.partial(self._run_batches)
    )

  def run(self, portion: Portion, indices: np.ndarray) -> Found:
    """Attacks the examples of these indices."""
    attack, count = self._attack, _BATCHES * self._batch_size
    size = int(np.prod(portion.images.shape[1:]))
    num_steps = attack.num_steps(size)
    steps_per_call = max(_STEPS_PER_CALL, num_steps // _LOOKS)
    found = Found(
      np.full(len(portion.images), np.inf, np.float32),
      np.full(len(portion.images), -1, np.int32),
      portion.images.copy(),
    )
    rounds = attack.num_rounds(portion.logits.shape[1])
    # All examples' first round comes first: most that break do so there.
    queue = collections.deque(
      (index, number) for number in range(rounds) for index in indices
    )
    slots = np.zeros((count, 2), np.int32)  # example, round
    k = np.zeros(count, np.int32)  # each slot's next step
    busy = np.zeros(count, bool)
    state: Optional[iterative.State] = None
    while True:
      fresh = np.zeros(count, bool)
      for slot in np.flatnonzero(~busy):
        item = self._next(queue, found)
        if item is not None:
          slots[slot], k[slot] = item, 0
          busy[slot] = fresh[slot] = True
      if not busy.any():
        return found
      if fresh.any():
        examples = portion.batch(slots)
        if state is None:  # shapes only: all slots are overwritten
          state, fresh = attack.start(examples), np.ones_like(fresh)
        state = self._refill(examples, state, tf.constant(fresh))
      if self._is_scattered(busy):
        order = np.argsort(~busy, kind="stable")
        slots, k, busy = slots[order], k[order], busy[order]
        move = functools.partial(tf.gather, indices=order)
        examples, state = tf.nest.map_structure(move, (examples, state))
      steps = min(steps_per_call, num_steps - k[busy].max())
      # A batch without work takes none.
      each = np.where(busy.reshape(_BATCHES, -1).any(axis=1), steps, 0).astype(np.int32)
      state = self._steps(examples, state, tf.constant(each))
      norm, k = state["norm"].numpy(), np.array(state["k"])  # to be written to
      over = busy & iterative.ended(attack, norm, k, size)
      if over.any():
        self._keep(found, slots, state, norm, np.flatnonzero(over))
        busy &= ~over
        # What an earlier round has broken need not be attacked any further.
        busy &= ~self._is_settled(found, slots[:, 0], slots[:, 1])

  def _is_scattered(self, busy: np.ndarray) -> bool:
    """Whether fewer batches could hold the slots that are busy."""
    needed = -(-np.count_nonzero(busy) // self._batch_size)
    return np.count_nonzero(busy.reshape(_BATCHES, -1).any(axis=1)) > needed

  def _run_batches(
    self, examples: iterative.Examples, state: iterative.State, steps: tf.Tensor
  ) -> iterative.State:
    """Steps of each batch; its slots are neighbours. steps: int32 [_BATCHES]."""
    after = []
    for batch in range(_BATCHES):
      slots = slice(batch * self._batch_size, (batch + 1) * self._batch_size)
      part = tf.nest.map_structure(operator.itemgetter(slots), (examples, state))
      after.append(self._run_batch(*part, steps[batch]))
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *after)

  def _next(self, queue: collections.deque, found: Found) -> Optional[tuple[int, int]]:
    while queue:
      index, number = queue.popleft()
      if not self._is_settled(found, index, number):
        return index, number
    return None

  def _is_settled(self, found: Found, index: np.ndarray, number: np.ndarray) -> bool:
    # An earlier round that is still under way goes on, so that the result is that of
    # the first round that succeeds, in whichever order they end.
    return (found.norm[index] <= self._attack.stop_norm) & (found.round[index] < number)

  def _keep(
    self,
    found: Found,
    slots: np.ndarray,
    state: iterative.State,
    norm: np.ndarray,
    over: np.ndarray,
  ) -> None:
    adversarial = state["adversarial"].numpy()  # once: a slice of a tensor costs more
    for slot in over:
      index, number = slots[slot]
      if self._rank(norm[slot], number) < self._rank(
        found.norm[index], found.round[index]
      ):
        found.norm[index], found.round[index] = norm[slot], number
        found.images[index] = adversarial[slot]

  def _rank(self, norm: float, number: int) -> tuple[bool, float, int]:
    """Smaller is better: the first success, otherwise the smallest norm."""
    success = norm <= self._attack.stop_norm
    return not success, 0.0 if success else norm, number


def _refilled(
  attack: iterative.Iterative,
  examples: iterative.Examples,
  state: iterative.State,
  fresh: tf.Tensor,
) -> iterative.State:
  """The state, begun anew where slots are fresh, bool [slots]."""
  return {
    name: iterative.select(fresh, value, state[name])
    for name, value in attack.start(examples).items()
  }
