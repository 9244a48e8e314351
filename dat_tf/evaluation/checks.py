"""Signs that an evaluation promises more robustness than there is.

After the flags of AutoAttack and RobustBench (Croce et al., NeurIPS Datasets 2021), the
marks of obfuscated gradients of Athalye et al. (ICML 2018), and the checklist of
Carlini et al., "On evaluating adversarial robustness" (2019). A warning proves nothing,
and none proves nothing either: they say where to look.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dat_tf.attacks import TRANSFER
from dat_tf.evaluation import outcomes
from dat_tf.evaluation.outcomes import Rows
from dat_tf.evaluation.prober import PGD_STEPS
from dat_tf.evaluation.robustness import BATCH_MATTERS, BATCH_NOISE

Warnings = list[dict[str, str]]

# Shares of the images that may be otherwise without a warning.
_FEW = 0.01
# A second PGD from other random points breaks some images that the first did not.
_SOME = 0.05
# What is right with pixels in another range.
_BY_RANGE = 0.15
# AutoAttack's: of the examples that Square breaks after the others.
_SQUARE = 0.002
# AutoAttack's: of an image's logits' norm. A GPU that adds in another order stays below
# it.
_RANDOM = 1e-4
# The classes that the losses of these attacks are defined for (attacks.losses).
_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


def from_probes(probes: Mapping[str, np.ndarray]) -> Warnings:
  """What the measurements of `probes.probe` warn of.

  Args:
    probes: their result, or empty.

  Returns:
    For each warning `check`, a short name, and `message`, what it means, with settings
    between backticks as in a `UserError`.
  """
  found: dict[str, str] = {}
  if not probes:
    return []
  zero = float(probes["zero_gradient"])
  if zero > 0.0:  # as AutoAttack: a single image is told
    found["zero_gradient"] = (
      f"the gradient is zero at {zero:.1%} of the images, as they are or at the random "
      "points where APGD starts. Attacks that follow it find nothing there, and the "
      "model looks more robust than it is: evaluate square too, and look for rounding, "
      "saturated logits, or pixels in another range than the model's (`input_range`)"
    )
  if float(probes["random_difference"]) > _RANDOM:
    found["random_outputs"] = (
      "the same images give other logits when they are classified again. One gradient "
      "then points anywhere: evaluate autoattack-rand, which takes the mean of many"
    )
  # Earlier versions did not measure it.
  if float(probes.get("batch_difference", 0.0)) > BATCH_NOISE:
    found["batch_dependent"] = BATCH_MATTERS
  epsilons, accuracy = probes["epsilons"], probes["epsilon_accuracy"]
  noise = probes["noise_accuracy"]
  worst = int(np.argmax(accuracy - noise))
  if accuracy[worst] - noise[worst] > _FEW:
    found["weaker_than_noise"] = (
      f"random noise of size {epsilons[worst]:.3g} leaves {noise[worst]:.1%} of the "
      f"images right, PGD {accuracy[worst]:.1%}. The gradient misleads PGD: trust no "
      "attack that follows it"
    )
  grey = float(probes["grey_accuracy"])
  if grey > _FEW:
    found["robust_to_anything"] = (
      f"under PGD with epsilon {probes['grey_epsilon']:.3g}, which can turn every image"
      f" into the same grey one, {grey:.1%} of the images stay right. An attack that "
      "works leaves none there, so PGD fails, and may fail at the run's epsilon too"
    )
  first, last = float(probes["steps_loss"][0]), float(probes["steps_loss"][-1])
  if not last > first * (1.0 + 1e-4):
    found["loss_does_not_rise"] = (
      f"after {probes['steps'][-1]} steps PGD's loss is {last:.3g}, and {first:.3g} at "
      "its random start. Its steps lead nowhere: the gradient is masked"
    )
  return _warnings(found)


def from_ranges(
  accuracies: Mapping[tuple[float, float], float], given: tuple[float, float]
) -> Warnings:
  """Whether a model seems to take pixels in another range than was said.

  Args:
    accuracies: by the range of pixels, `UserModel.accuracies`.
    given: the range that was said.
  """
  best = max(accuracies, key=lambda pixels: accuracies[pixels])
  if accuracies[best] <= accuracies[given] + _BY_RANGE:
    return []
  low, high = best
  return _warnings(
    {
      "other_range": f"{accuracies[best]:.0%} of the first images are right with "
      f"pixels in [{low:g}, {high:g}], and {accuracies[given]:.0%} in [{given[0]:g}, "
      f"{given[1]:g}]: the model seems to take `input_range={low:g},{high:g}`"
    }
  )


def from_outcomes(
  tables: Mapping[str, Rows], probes: Mapping[str, np.ndarray], num_classes: int
) -> Warnings:
  """What the outcomes of attacks warn of.

  Args:
    tables: by the attack's name rows, all of the same examples in the same order, and
      `sequence`, the names of the attacks that it consists of.
    probes: of `probes.probe`, or empty.
    num_classes: of the data.
  """
  found: dict[str, str] = {}
  chance = 1.0 / num_classes
  by_black_box, by_others, others = [], [], False
  by_pgd_alone, suites = [], {"autoattack", "autoattack-plus"}
  for name, rows in tables.items():
    sequence = list(rows["sequence"])
    broken = ~outcomes.robust(rows)
    right = rows["prediction"] == rows["label"]
    # Two standard deviations of what guesses would reach.
    if right.mean() <= chance + 2.0 * np.sqrt(chance * (1.0 - chance) / len(right)):
      found["no_better_than_chance"] = (
        f"without an attack {right.mean():.1%} of the images are right, and by chance "
        f"{chance:.1%} would be. The model may be for other data, other pixels "
        "(`input_range`) or classes in another order (`first_label`)"
      )
    for one in sequence:
      needed = _CLASSES.get(one.removeprefix(TRANSFER), 0)
      if num_classes < needed:
        found[f"few_classes_for_{one}"] = (
          f"the loss of {one} is defined for {needed} classes or more, and there are "
          f"{num_classes}: it climbed the difference of two logits"
          + (" over the distance to the third" if num_classes == 3 else "")
          + ", so figures compare with no published ones"
        )
    is_black_box = np.array(
      [one == "square" or one.startswith(TRANSFER) for one in sequence]
    )
    # Those that are wrong as they are, attack -1, no attack has broken.
    found_so = (rows["attack"] >= 0) & is_black_box[rows["attack"]]
    by_black_box.append(broken & found_so)
    by_others.append(broken & ~found_so)
    others = others or not is_black_box.all()
    if probes:
      _, ours, theirs = np.intersect1d(
        rows["example_id"], probes["example_id"], return_indices=True
      )
      by_pgd_alone.append(probes["pgd_broken"][theirs] & ~broken[ours])
      stronger = (probes["noise_broken"][theirs] & ~broken[ours]).sum()
      if stronger > _FEW * max(len(ours), 1):
        found[f"{name}_weaker_than_noise"] = (
          f"random noise breaks {stronger} of {len(ours)} images that withstand "
          f"{name}. It is too weak an attack to tell of robustness"
        )
  if by_pgd_alone:
    stronger = np.all(by_pgd_alone, axis=0)
    if stronger.sum() > _SOME * len(stronger):
      found["pgd_is_stronger"] = (
        f"PGD with {PGD_STEPS} steps breaks {stronger.sum()} of {len(stronger)} images "
        f"that withstand {', '.join(tables)}. Evaluate "
        + ("an attack made for this model" if suites & set(tables) else "autoattack")
        + " before you believe them"
      )
  only = int((np.any(by_black_box, axis=0) & ~np.any(by_others, axis=0)).sum())
  count = len(by_black_box[0]) if by_black_box else 0
  if others and only > max(1, _SQUARE * count):
    found["black_box_is_stronger"] = (
      f"{only} of {count} images are broken by square or on another model alone, where "
      "the gradient plays no part. The other attacks are weak, or it is masked"
    )
  return _warnings(found)


def _warnings(found: Mapping[str, str]) -> Warnings:
  return [
    {"check": check, "message": message[0].upper() + message[1:] + "."}
    for check, message in found.items()
  ]


def show(warnings: Warnings) -> None:
  """Prints warnings, a line each."""
  for warning in warnings:
    print(f"Warning: {warning['message']}", flush=True)
