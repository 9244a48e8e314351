"""How adversarial images are made.

An attack is composed of a ball of allowed perturbations and a rule to search it:

    attack = PGD(LInfinity(8 / 255), step_size=2 / 255, steps=10)
    keys = hashing.stream_keys(seed, epoch, example_ids)
    adversarial = attack(classifier, images, labels, keys)

It is any callable of that signature: the classifier is a plain function from images
in [0, 1] to logits, the keys are one random stream an example.

Attacks that change as training goes on have a method `for_batch`; `Free` and `YOPO`
share training's backward pass, and are called by `AdversarialModel` alone.

The attacks of evaluation have names, see `make_attacks`; `dat_tf.evaluation` runs them,
and `OneShot` makes such a callable of each.
"""

from dat_tf.attacks.dynamic import Curriculum, DynamicPGD, WarmStart
from dat_tf.attacks.gradient import PGD, fgsm
from dat_tf.attacks.interleaved import YOPO, Free, Interleaved
from dat_tf.attacks.iterative import OneShot
from dat_tf.attacks.maximizers import NFGSM, WRM, GainAscent, MomentumPGD
from dat_tf.attacks.norms import L1, L2, Ball, LInfinity
from dat_tf.attacks.registry import TRANSFER, make_attacks

__all__ = [
  "Ball",
  "Curriculum",
  "DynamicPGD",
  "Free",
  "GainAscent",
  "Interleaved",
  "L1",
  "L2",
  "LInfinity",
  "MomentumPGD",
  "NFGSM",
  "OneShot",
  "PGD",
  "TRANSFER",
  "WRM",
  "WarmStart",
  "YOPO",
  "fgsm",
  "make_attacks",
]
