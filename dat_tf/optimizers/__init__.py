"""Optimizers for large batches, and their learning rates."""

from dat_tf.optimizers.layerwise import LAMB, LARS, SGD, make_optimizer, trust_ratio
from dat_tf.optimizers.schedules import WarmupDecay, scaled_learning_rate

__all__ = [
  "LAMB",
  "LARS",
  "SGD",
  "WarmupDecay",
  "make_optimizer",
  "scaled_learning_rate",
  "trust_ratio",
]
