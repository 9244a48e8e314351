"""The settings of a run, each declared once: type, default, unit, range and help.

    settings = parse(sys.argv)      # absl flags, --flagfile=flags/NAME.flags included
    settings.epsilon                # 0.1

A run keeps them in MODEL_DIR/config.flags, itself a flagfile. A later run in the same
directory must agree with it except in `MAY_CHANGE`.
"""

from dat_tf.config.attacks import ATTACKS, Trained, make_ball, training_attack
from dat_tf.config.communication import make_all_reduce
from dat_tf.config.data import make_augmentation, make_crop
from dat_tf.config.evaluation import make_evaluation_attack
from dat_tf.config.models import make_average
from dat_tf.config.objectives import (
  OBJECTIVES,
  make_attack,
  make_objective,
  make_preparation,
  needs_exact_attack,
  training_objective,
)
from dat_tf.config.optimizers import make_optimizer
from dat_tf.config.settings import (
  FLAGS,
  MAY_CHANGE,
  Settings,
  check_against_saved,
  check_same,
  load,
  parse,
  save,
  to_text,
)

__all__ = [
  "ATTACKS",
  "FLAGS",
  "MAY_CHANGE",
  "OBJECTIVES",
  "Settings",
  "Trained",
  "check_against_saved",
  "check_same",
  "load",
  "make_all_reduce",
  "make_attack",
  "make_augmentation",
  "make_average",
  "make_ball",
  "make_crop",
  "make_evaluation_attack",
  "make_objective",
  "make_optimizer",
  "make_preparation",
  "needs_exact_attack",
  "parse",
  "save",
  "to_text",
  "training_attack",
  "training_objective",
]
