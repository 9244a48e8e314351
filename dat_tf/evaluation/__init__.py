"""How well a classifier withstands attacks, and whether that can be trusted."""

from dat_tf.evaluation.robustness import Evaluator, Outcome
from dat_tf.evaluation.survey import Survey
from dat_tf.evaluation.user_model import UserModel

__all__ = ["Evaluator", "Outcome", "Survey", "UserModel"]
