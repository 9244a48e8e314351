"""Runs attacks on a classifier, example by example, in batches that stay full.

Work is a queue of (example, round of the attack). A batch of fixed shape has slots; a
slot whose example is broken, or whose round is over, takes the next from the queue,
while the others go on with their rounds. So what is hard costs, what is easy does not.

What becomes of an example depends on nothing but the example, the attack and the seed:
its random numbers are keyed by its id, and the shape of a batch never changes, since
the last bits of a convolution depend on it. So the examples may be split over workers
in any way; nothing here is a collective.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from dat_tf import hashing
from dat_tf.attacks import iterative, norms
from dat_tf.errors import UserError

# Steps between two looks at what is broken: a look costs time, and a step of an example
# that need not be attacked any more is lost.
_STEPS_PER_CALL = 4


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a sequence of attacks did to each of N examples.

  Attributes:
    norm: float32 [N], of the perturbation found: 0 for an image that is misclassified
      as it is, infinity if no attack fooled the classifier.
    broken: bool [N], whether that is at most epsilon.
    attack: int32 [N], which attack of the sequence found it; -1 is none.
    images: float32 [N, H, W, C], adversarial where `norm` is finite, if asked for.
  """

  norm: np.ndarray
  broken: np.ndarray
  attack: np.ndarray
  images: Optional[np.ndarray]

  @property
  def robust_accuracy(self) -> float:
    """Share of examples that are not broken, 0 to 1."""
    return 1.0 - float(self.broken.mean())


@dataclasses.dataclass
class _Found:
  """The results of one attack's rounds, of N examples."""

  norm: np.ndarray
  round: np.ndarray
  images: Optional[np.ndarray]


class Evaluator:
  """Attacks the examples that a classifier gets right."""

  def __init__(
    self,
    classifier: iterative.Classifier,
    attacks: Mapping[str, Sequence[iterative.Iterative]],
    batch_size: int = 64,
    seed: int = 0,
  ):
    """Makes the evaluation of a classifier; graphs are traced at its first call.

    Args:
      classifier: any callable from images [B, H, W, C] to logits [B, classes].
      attacks: sequences of attacks by name (`attacks.make_attacks`); in a sequence each
        attack gets the examples that those before it did not break.
      batch_size: examples in a batch. Outcomes may depend on it, by rounding.
      seed: of all random numbers.
    """
    self._classify = tf.function(classifier)
    self._runners = {
      name: [_Runner(classifier, attack, batch_size) for attack in sequence]
      for name, sequence in attacks.items()
    }
    self._batch_size, self._seed = batch_size, seed

  def __call__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    example_ids: np.ndarray,
    keep_images: bool = False,
  ) -> tuple[np.ndarray, dict[str, Outcome]]:
    """Attacks some examples.

    Args:
      images: float32 [N, H, W, C] in [0, 1].
      labels: int [N].
      example_ids: int [N], on which the random numbers depend.
      keep_images: whether adversarial images are returned.

    Returns:
      bool [N], whether each image is classified right as it is; the outcomes by name.

    Raises:
      UserError: an attack needs more classes than the model has, or logits are not
        finite.
    """
    examples = _Portion(
      images := np.asarray(images, np.float32),
      labels := np.asarray(labels, np.int32),
      logits := self._logits(images),
      hashing.stream_keys(self._seed, np.asarray(example_ids)).numpy(),
    )
    correct = logits.argmax(axis=1) == labels
    outcomes = {}
    for name, runners in self._runners.items():
      norm = np.where(correct, np.inf, 0.0).astype(np.float32)
      broken, attack = ~correct, np.full(len(images), -1, np.int32)
      adversarial = images.copy() if keep_images else None
      for index, runner in enumerate(runners):
        found = runner.run(examples, np.flatnonzero(~broken), keep_images)
        smaller = found.norm < norm
        norm = np.where(smaller, found.norm, norm)
        attack = np.where(smaller, index, attack)
        if adversarial is not None and found.images is not None:
          adversarial[smaller] = found.images[smaller]
        broken = broken | (norm <= norms.outer(runner.epsilon))
      outcomes[name] = Outcome(norm, broken, attack, adversarial)
    return correct, outcomes

  def _logits(self, images: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(images), self._batch_size):
      part = images[start : start + self._batch_size]
      padding = [(0, self._batch_size - len(part))] + [(0, 0)] * (images.ndim - 1)
      padded = tf.constant(np.pad(part, padding))
      parts.append(self._classify(padded).numpy()[: len(part)])
    logits = np.concatenate(parts)
    bad = (~np.isfinite(logits)).any(axis=1).sum()
    if bad:
      raise UserError(
        f"The logits of {bad} of {len(logits)} images are not finite: the model is "
        "broken, or takes images in another range than [0, 1]."
      )
    return logits


class _Portion(NamedTuple):
  """Examples that wait: images, labels, logits and keys, arrays [N, ...]."""

  images: np.ndarray
  labels: np.ndarray
  logits: np.ndarray
  keys: np.ndarray

  def batch(self, slots: np.ndarray) -> iterative.Examples:
    """Those in the slots, int [B, 2]: example and round."""
    index, rounds = slots[:, 0], slots[:, 1]
    keys = self.keys[index]
    return iterative.Examples(
      images=tf.constant(self.images[index]),
      labels=tf.constant(self.labels[index]),
      keys=hashing.stream_keys(rounds, keys[:, 0], keys[:, 1]),
      logits=tf.constant(self.logits[index]),
      rounds=tf.constant(rounds),
    )


class _Runner:
  """One attack."""

  def __init__(
    self,
    classifier: iterative.Classifier,
    attack: iterative.Iterative,
    batch_size: int,
  ):
    self.epsilon = attack.ball.epsilon
    self._attack, self._batch_size = attack, batch_size
    self._refill = tf.function(
      lambda examples, state, fresh: {
        name: iterative.select(fresh, value, state[name])
        for name, value in attack.start(examples).items()
      }
    )
    self._steps: Callable[..., iterative.State] = tf.function(
      lambda *arguments: iterative.run(attack, classifier, *arguments)
    )

  def run(self, portion: _Portion, indices: np.ndarray, keep_images: bool) -> _Found:
    """Attacks the examples of these indices."""
    attack, batch_size = self._attack, self._batch_size
    found = _Found(
      np.full(len(portion.images), np.inf, np.float32),
      np.full(len(portion.images), -1, np.int32),
      np.zeros_like(portion.images) if keep_images else None,
    )
    rounds = attack.num_rounds(portion.logits.shape[1])
    # All examples' first round comes first: most that break do so there.
    queue = collections.deque(
      (index, number) for number in range(rounds) for index in indices
    )
    slots = np.zeros((batch_size, 2), np.int32)  # example, round
    k = np.zeros(batch_size, np.int32)
    busy = np.zeros(batch_size, bool)
    state: Optional[iterative.State] = None
    while True:
      fresh = np.zeros(batch_size, bool)
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
      k[~busy] = 0  # idle: whatever it computes is not looked at
      steps = min(_STEPS_PER_CALL, attack.num_steps - k.max())
      state = self._steps(examples, state, tf.constant(k), tf.constant(steps, tf.int32))
      k += steps
      norm = state["norm"].numpy()
      over = busy & ((norm <= attack.stop_norm) | (k >= attack.num_steps))
      if over.any():
        self._keep(found, slots, state, norm, np.flatnonzero(over))
        busy &= ~over
        # What an earlier round has broken need not be attacked any further.
        busy &= ~self._is_settled(found, slots[:, 0], slots[:, 1])

  def _next(self, queue: collections.deque, found: _Found) -> Optional[tuple[int, int]]:
    while queue:
      index, number = queue.popleft()
      if not self._is_settled(found, index, number):
        return index, number
    return None

  def _is_settled(self, found: _Found, index: np.ndarray, number: np.ndarray) -> bool:
    # An earlier round that is still under way goes on, so that the result is that of
    # the first round that succeeds, in whichever order they end.
    return (found.norm[index] <= self._attack.stop_norm) & (found.round[index] < number)

  def _keep(
    self,
    found: _Found,
    slots: np.ndarray,
    state: iterative.State,
    norm: np.ndarray,
    over: np.ndarray,
  ) -> None:
    for slot in over:
      index, number = slots[slot]
      if self._rank(norm[slot], number) < self._rank(
        found.norm[index], found.round[index]
      ):
        found.norm[index], found.round[index] = norm[slot], number
        if found.images is not None:
          found.images[index] = state["adversarial"][slot].numpy()

  def _rank(self, norm: float, number: int) -> tuple[bool, float, int]:
    """Smaller is better: the first success, otherwise the smallest norm."""
    success = norm <= self._attack.stop_norm
    return not success, 0.0 if success else norm, number
