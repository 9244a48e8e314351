"""How adversarial images are made.

An attack is composed of a ball of allowed perturbations and a rule to search it:

    attack = PGD(LInfinity(8 / 255), step_size=2 / 255, steps=10)
    keys = hashing.stream_keys(seed, epoch, example_ids)
    adversarial = attack(classifier, images, labels, keys)

It is any callable of that signature: the classifier is a plain function from images
in [0, 1] to logits, the keys are one random stream an example.
"""

from dat_tf.attacks.gradient import PGD, fgsm
from dat_tf.attacks.norms import L2, Ball, LInfinity

__all__ = ["Ball", "L2", "LInfinity", "PGD", "fgsm"]
