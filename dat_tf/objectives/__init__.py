"""What the attacker maximises and what the model minimises."""

from dat_tf.objectives.adversarial_training import AdversarialTraining
from dat_tf.objectives.losses import cross_entropy, hits
from dat_tf.objectives.objective import Batch, Evaluated, Objective
from dat_tf.objectives.semi_supervised import SemiSupervised

__all__ = [
  "AdversarialTraining",
  "Batch",
  "Evaluated",
  "Objective",
  "SemiSupervised",
  "cross_entropy",
  "hits",
]
