"""How well a classifier withstands attacks."""

from dat_tf.evaluation.robustness import Evaluator, Outcome

__all__ = ["Evaluator", "Outcome"]
