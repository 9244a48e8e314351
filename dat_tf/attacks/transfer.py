"""Attacks that are made on one model and tried on another."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dat_tf.attacks import norms
from dat_tf.attacks.iterative import (
  Bounded,
  Classifier,
  Examples,
  Iterative,
  State,
  select,
)


@dataclasses.dataclass(frozen=True)
class Transfer(Bounded):
  """Runs an attack on a source model; each image that it makes is tried on the other.

  The attack does not end where it fools the source: what fools it by much is what
  transfers.

  Attributes:
    attack: what is run on the source.
    source: from images to logits, of the same classes.
  """

  attack: Iterative
  source: Classifier

  @property
  def ball(self) -> norms.Ball:  # type: ignore[override]
    return self.attack.ball

  def num_steps(self, size: int) -> int:
    return self.attack.num_steps(size)

  def num_rounds(self, num_classes: int) -> int:
    return self.attack.num_rounds(num_classes)

  def start(self, examples: Examples) -> State:
    # By these an attack chooses the classes that it aims at.
    logits = self.source(examples.images)
    state = self.attack.start(examples._replace(logits=logits))
    found = {"found": state["adversarial"], "found_norm": state["norm"]}
    return {**state, **found, "source_logits": logits}

  def step(
    self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
  ) -> State:
    state = {**state, "adversarial": state["found"], "norm": state["found_norm"]}
    of_source = examples._replace(logits=state["source_logits"])
    after = self.attack.step(self.source, of_source, state, k)
    tried = after["adversarial"]
    fooled = examples.fooled(classifier(tried))
    norm = self.ball.norm(tried - examples.images)
    return {
      **after,
      "source_logits": state["source_logits"],
      "found": tried,
      "found_norm": after["norm"],
      "adversarial": select(fooled, tried, examples.images),
      "norm": tf.where(fooled, norm, float("inf")),
    }
