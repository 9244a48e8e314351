"""How adversarial images are made.

An attack is composed of a ball of allowed perturbations and a rule to search it:

    attack = PGD(LInfinity(8 / 255), step_size=2 / 255, steps=10)
    keys = dat.stream_keys(seed, epoch, example_ids)
    adversarial = attack(classifier, images, labels, keys)

It is any callable of that signature: the classifier is a plain function from images
in [0, 1] to logits, the keys are one random stream an example.

Attacks that change as training goes on are `Scheduled`; `Free` and `YOPO` share
training's backward pass: they are a `TrainingPass`, called by `AdversarialModel` alone.

The attacks of evaluation have names, see `make_attacks`; `dat_tf.evaluation` runs them,
and `OneShot` makes such a callable of each.
"""

from dat_tf.attacks.apgd import APGD, SparseAPGD
from dat_tf.attacks.ascent import Ascent
from dat_tf.attacks.attack import Attack, Scheduled
from dat_tf.attacks.ddn import DDN
from dat_tf.attacks.deepfool import DeepFool
from dat_tf.attacks.dynamic import Curriculum, DynamicPGD, WarmStart
from dat_tf.attacks.fab import FAB
from dat_tf.attacks.free import Free
from dat_tf.attacks.iterative import Iterative, OneShot
from dat_tf.attacks.jsma import JSMA
from dat_tf.attacks.maximizers import NFGSM, WRM
from dat_tf.attacks.norms import L1, L2, Ball, LInfinity
from dat_tf.attacks.passes import MinMax, Pass, TrainingPass
from dat_tf.attacks.penalized import LBFGS, CarliniWagner
from dat_tf.attacks.pgd import PGD, Momentum, fgsm, from_image, from_random
from dat_tf.attacks.registry import TRANSFER, make_attacks
from dat_tf.attacks.square import Square
from dat_tf.attacks.transfer import Transfer
from dat_tf.attacks.yopo import YOPO

__all__ = [
  "APGD",
  "Ascent",
  "Attack",
  "Ball",
  "CarliniWagner",
  "Curriculum",
  "DDN",
  "DeepFool",
  "DynamicPGD",
  "FAB",
  "Free",
  "Iterative",
  "JSMA",
  "L1",
  "L2",
  "LBFGS",
  "LInfinity",
  "MinMax",
  "Momentum",
  "NFGSM",
  "OneShot",
  "PGD",
  "Pass",
  "Scheduled",
  "SparseAPGD",
  "Square",
  "TRANSFER",
  "TrainingPass",
  "Transfer",
  "WRM",
  "WarmStart",
  "YOPO",
  "fgsm",
  "from_image",
  "from_random",
  "make_attacks",
]
