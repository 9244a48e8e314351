"""What the attacker maximises and what the model minimises."""

from dat_tf.objectives.adversarial_training import AdversarialTraining
from dat_tf.objectives.certified import CertifiedTraining, is_certified
from dat_tf.objectives.clean_training import CleanTraining
from dat_tf.objectives.logit_pairing import AdversarialLogitPairing, CleanLogitPairing
from dat_tf.objectives.losses import correct, cross_entropy, input_gradient
from dat_tf.objectives.mart import MART
from dat_tf.objectives.objective import Batch, Evaluated, Objective
from dat_tf.objectives.regularized import (
  AttributionNorm,
  Curvature,
  GradientAlignment,
  InputGradient,
  LocalLinearity,
  Penalty,
  Regularized,
  attribution_norm,
  linearity_violation,
)
from dat_tf.objectives.semi_supervised import SemiSupervised
from dat_tf.objectives.trades import TRADES
from dat_tf.objectives.weight_perturbation import WeightPerturbation

__all__ = [
  "MART",
  "TRADES",
  "AdversarialLogitPairing",
  "AdversarialTraining",
  "AttributionNorm",
  "Batch",
  "CertifiedTraining",
  "CleanLogitPairing",
  "CleanTraining",
  "Curvature",
  "Evaluated",
  "GradientAlignment",
  "InputGradient",
  "LocalLinearity",
  "Objective",
  "Penalty",
  "Regularized",
  "SemiSupervised",
  "WeightPerturbation",
  "attribution_norm",
  "correct",
  "cross_entropy",
  "input_gradient",
  "is_certified",
  "linearity_violation",
]
