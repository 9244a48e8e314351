"""Attacks all test data: which worker attacks which examples, and in which portions.

The examples are dealt one by one, so that all workers have as many, and as hard ones,
whatever the files. What is done already, by whichever worker, is left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from dat_tf.attacks import TRANSFER, Ball, iterative, make_attacks
from dat_tf.data import shards
from dat_tf.evaluation import outcomes, probes
from dat_tf.evaluation.robustness import Evaluator

# Batches that are attacked before the outcome is written: at a portion's end the batch
# runs empty, which costs time.
_BATCHES_PER_PORTION = 4


def first_examples(whole: shards.Shard, most: int) -> shards.Shard:
  """The first `most` records of whole files; all if `most` is 0."""
  slices, left = [], most or whole.num_examples
  for piece in whole.slices:
    kept = []
    for segment in piece.segments:
      count = min(segment.num_records, left)
      left -= count
      if count:
        kept.append(segment._replace(num_records=count))
    if kept:
      slices.append(dataclasses.replace(piece, segments=tuple(kept)))
  return dataclasses.replace(whole, slices=tuple(slices))


def share(whole: shards.Shard, worker: int, num_workers: int) -> shards.Shard:
  """Every `num_workers`-th record of whole files; no slices if none is left."""
  slices, before = [], 0
  for piece in whole.slices:
    first = (worker - before) % num_workers
    mine = dataclasses.replace(piece, first=first, stride=num_workers)
    before += piece.num_examples
    if mine.num_examples:
      slices.append(mine)
  return dataclasses.replace(whole, slices=tuple(slices))


@dataclasses.dataclass(frozen=True)
class Data:
  """The test data, and how they are read.

  Attributes:
    whole: all that is to be attacked, of whole files.
    batches: a pass over a shard in batches of a size, `pipeline.evaluation_dataset`.
    batch_size: images that are classified together, the same on all workers.
  """

  whole: shards.Shard
  batches: Callable[[shards.Shard, int], tf.data.Dataset]
  batch_size: int

  def first_batch(self) -> np.ndarray:
    """The first images, again if there are too few; float32 [batch_size, H, W, C]."""
    images, _, _ = self.first(self.batch_size)
    return np.resize(images, (self.batch_size, *images.shape[1:]))

  def first(self, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first images, class numbers and ids."""
    part = first_examples(self.whole, most)
    (batch,) = self.batches(part, part.num_examples)
    return _examples(batch)


@dataclasses.dataclass(frozen=True)
class Survey:
  """One worker's part of the attacks on a classifier.

  Attributes:
    directory: where outcomes are kept.
    classifier: from images [batch_size, H, W, C] in [0, 1] to logits.
    ball: the allowed perturbations.
    norm: its name: linf, l2 or l1.
    data: what is attacked.
    seed: of all random numbers.
    depends_on: what else outcomes depend on, such as weights and files; for JSON.
    worker: index of this one.
    num_workers: number of all workers, at least 1.
    source: the classifier that transfer attacks are made on, if there are any.
    source_fingerprint: fingerprint of the source's weights.
  """

  directory: str
  classifier: iterative.Classifier
  ball: Ball
  norm: str
  data: Data
  seed: int
  depends_on: Sequence[Any]
  worker: int = 0
  num_workers: int = 1
  source: Optional[iterative.Classifier] = None
  source_fingerprint: str = ""

  @property
  def fingerprint(self) -> str:
    """A hash of all that the outcome of an attack depends on but the attack."""
    own = [self.norm, self.ball.epsilon, self.data.batch_size, self.seed]
    text = json.dumps([own, *self.depends_on])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def probe(self, most: int) -> dict[str, np.ndarray]:
    """What `probes.probe` measures on the first images; kept in probes.npz.

    Args:
      most: images; 0 measures nothing, and returns what was measured before.
    """
    path = os.path.join(self.directory, "probes.npz")
    there = outcomes.read(path)
    if there is not None and str(there["fingerprint"]) != self.fingerprint:
      there = None
    if not most:
      return there or {}
    images, labels, ids = self.data.first(most)
    if there is not None and np.array_equal(there["example_id"], ids):
      return there
    measured = probes.probe(
      self.classifier,
      self.ball,
      images,
      labels,
      example_ids=ids,
      batch_size=self.data.batch_size,
      seed=self.seed,
    )
    outcomes.write(path, {**measured, "fingerprint": np.array(self.fingerprint)})
    return measured

  def steps(self, name: str) -> int:
    """How often `attack` advances."""
    portions = -(-self._share.num_examples // self._portion)
    return portions * len(self._attacks(name))

  def attack(self, name: str, advance: Callable[[], None] = lambda: None) -> None:
    """Attacks the examples of this worker that are not done, portion by portion.

    Args:
      name: the attack's.
      advance: called for each attack of the sequence on each portion.

    Raises:
      UserError: as those of `Evaluator`, or outcomes cannot be written.
    """
    store = self._store(name)
    sequence = self._attacks(name)
    evaluator = Evaluator(
      self.classifier,
      {name: sequence.values()},
      batch_size=self.data.batch_size,
      seed=self.seed,
    )
    done = store.rows()["example_id"]
    if not self._share.slices:  # fewer examples than workers
      return
    for portion in self.data.batches(self._share, self._portion):
      images, labels, ids = _examples(portion)
      missing = ~np.isin(ids, done)
      if not missing.any():
        for _ in sequence:
          advance()
        continue
      images, labels, ids = images[missing], labels[missing], ids[missing]
      prediction, results = evaluator(images, labels, ids, advance)
      store.add(
        self.worker,
        {
          "example_id": ids,
          "label": labels,
          "prediction": prediction,
          "norm": results[name].norm,
          "attack": results[name].attack,
          "adversarial_prediction": results[name].prediction,
        },
      )

  def merge(self, name: str) -> outcomes.Rows:
    """The outcomes of all examples, once all workers are done."""
    return self._store(name).merge(self.data.whole.num_examples)

  def done(self, names: Iterable[str]) -> dict[str, outcomes.Rows]:
    """Outcomes and `sequence` of each attack that is done on all examples."""
    found: dict[str, outcomes.Rows] = {}
    count = self.data.whole.num_examples
    for name in names:
      store = self._store(name)
      rows = store.rows()
      if len(rows["example_id"]) >= count:
        first = {column: values[:count] for column, values in rows.items()}
        found[name] = {**first, "sequence": np.array(store.sequence)}
    return found

  def _attacks(self, name: str) -> dict[str, iterative.Iterative]:
    # Outcomes of a transfer attack may be read where its source no longer is.
    return make_attacks(name, self.ball, source=self.source or tf.identity)

  @property
  def _share(self) -> shards.Shard:
    return share(self.data.whole, self.worker, self.num_workers)

  @property
  def _portion(self) -> int:
    return _BATCHES_PER_PORTION * self.data.batch_size

  def _store(self, name: str) -> outcomes.Store:
    source = self.source_fingerprint if name.startswith(TRANSFER) else ""
    return outcomes.Store(
      self.directory,
      name,
      tuple(self._attacks(name)),
      self.norm,
      self.ball.epsilon,
      self.fingerprint + source,
    )


def _examples(
  batch: Mapping[str, tf.Tensor],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Images, class numbers and ids of a batch, its fillers left out."""
  real = batch["weight"].numpy() > 0
  labels = batch["label"].numpy()
  labels = labels if labels.ndim == 1 else labels.argmax(axis=1)
  return batch["image"].numpy()[real], labels[real], batch["example_id"].numpy()[real]
