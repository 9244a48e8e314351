"""What the attacker maximises and what the model minimises."""

from dat_tf.objectives.adversarial_training import AdversarialTraining
from dat_tf.objectives.losses import cross_entropy, hits
from dat_tf.objectives.objective import Evaluated, Objective

__all__ = ["AdversarialTraining", "Evaluated", "Objective", "cross_entropy", "hits"]
