"""Attacks of evaluation by the field's names."""

from __future__ import annotations

import difflib
import re
from typing import Callable, Optional

from dat_tf.attacks import losses, norms
from dat_tf.attacks.apgd import APGD, apgd_for
from dat_tf.attacks.ascent import Ascent
from dat_tf.attacks.ddn import DDN
from dat_tf.attacks.deepfool import DeepFool
from dat_tf.attacks.fab import FAB
from dat_tf.attacks.iterative import Classifier, Iterative
from dat_tf.attacks.jsma import JSMA
from dat_tf.attacks.penalized import LBFGS, CarliniWagner
from dat_tf.attacks.square import Square
from dat_tf.attacks.transfer import Transfer
from dat_tf.base.errors import UserError
from dat_tf.objectives.losses import cross_entropy


# In l1 AutoAttack runs APGD-CE five times, and aims at five classes.
def _apgd_ce(ball: norms.Ball) -> APGD:
  return apgd_for(ball)(ball, restarts=5 if isinstance(ball, norms.L1) else 1)


def _apgd_t(ball: norms.Ball) -> APGD:
  targets = 5 if isinstance(ball, norms.L1) else 9
  return apgd_for(ball)(ball, losses.targeted_dlr, targets=targets)


_ALONE: dict[str, Callable[[norms.Ball], Iterative]] = {
  "apgd-ce": _apgd_ce,
  "apgd-dlr": lambda ball: apgd_for(ball)(ball, losses.dlr),
  "apgd-t": _apgd_t,
  "fab": lambda ball: FAB(ball, targets=0, minimal=True, restarts=5),
  "fab-t": lambda ball: FAB(ball, minimal=True),
  "square": Square,
  "deepfool": DeepFool,
}
_SUITES: dict[str, Callable[[norms.Ball], dict[str, Iterative]]] = {
  "autoattack": lambda ball: {
    "apgd-ce": _apgd_ce(ball),
    "apgd-t": _apgd_t(ball),
    "fab-t": FAB(ball),
    "square": Square(ball),
  },
  "autoattack-rand": lambda ball: {
    "apgd-ce": apgd_for(ball)(ball, samples=20),
    "apgd-dlr": apgd_for(ball)(ball, losses.dlr, samples=20),
  },
  "autoattack-plus": lambda ball: {
    "apgd-ce": apgd_for(ball)(ball, restarts=5),
    "apgd-dlr": apgd_for(ball)(ball, losses.dlr, restarts=5),
    "fab": FAB(ball, targets=0, restarts=5),
    "square": Square(ball),
    "apgd-t": apgd_for(ball)(ball, losses.targeted_dlr, targets=9),
    "fab-t": FAB(ball),
  },
}
_L2_ONLY: dict[str, Callable[[norms.L2], Iterative]] = {
  "ddn": DDN,
  "cw-l2": CarliniWagner,
  "l-bfgs": LBFGS,
}
# NAME-K takes K steps, NAME-KxR does so from R random starts.
_STEPPED = re.compile(r"(pgd|cw-pgd)-([1-9]\d*)(?:x([1-9]\d*))?")
_FROM_THE_IMAGE = re.compile(r"(bim|mi-fgsm)-([1-9]\d*)")
_EXAMPLES = "fgsm pgd-20 pgd-50x10 bim-10 mi-fgsm-10 cw-pgd-20 transfer-pgd-20".split()

# Before the name of any attack: made on a source model, tried on the one evaluated.
TRANSFER = "transfer-"


def make_attacks(
  name: str,
  ball: norms.Ball,
  *,
  source: Optional[Classifier] = None,
) -> dict[str, Iterative]:
  """The attacks that a name stands for, for `evaluation.Evaluator`.

  Args:
    name: `apgd-ce`, `apgd-dlr`, `apgd-t`, `fab`, `fab-t`, `square`; `autoattack`
      (standard), `autoattack-plus` and `autoattack-rand`; `deepfool`; `jsma` in l1 and
      l2; `ddn`, `cw-l2`, `l-bfgs` in l2; `fgsm`; with K steps, or K from each of R
      random starts, `pgd-K`, `pgd-KxR`, `cw-pgd-K`, `cw-pgd-KxR` (on the margin); from
      the image itself `bim-K` and `mi-fgsm-K` (with momentum). A step is 2.5 epsilon /
      K long with a random start, epsilon / K without. Any of them after `transfer-` is
      made on `source`.
    ball: the allowed perturbations.
    source: of transfer attacks, from images to logits of the same classes.

  Returns:
    By its name each attack, for the examples that those before it did not break.

  Raises:
    UserError: no such name, not in this norm, or without a source.
  """
  if name in _SUITES:
    return _SUITES[name](ball)
  if not name.startswith(TRANSFER):
    return {name: _make_attack(name, ball)}
  if source is None:
    raise UserError(
      f"The attack {name} is made on another model: give that source "
      "(`source_model_path`)."
    )
  attacks = make_attacks(name.removeprefix(TRANSFER), ball)
  return {TRANSFER + name: Transfer(one, source) for name, one in attacks.items()}


def _make_attack(name: str, ball: norms.Ball) -> Iterative:
  if name in _ALONE:
    return _ALONE[name](ball)
  if name == "jsma":
    if isinstance(ball, norms.LInfinity):
      raise UserError(
        f"The attack {name} changes few pixels by much: give it a ball in l1 or l2 "
        "(`norm`, `epsilon`)."
      )
    return JSMA(ball)
  if name in _L2_ONLY:
    if not isinstance(ball, norms.L2):
      raise UserError(f"The attack {name} is for a ball in l2 (`norm=l2`).")
    return _L2_ONLY[name](ball)
  if name == "fgsm":
    return Ascent(ball, ball.epsilon, 1, random_start=False)
  match = _STEPPED.fullmatch(name)
  if match:
    kind, steps, restarts = match[1], int(match[2]), int(match[3] or 1)
    step_size = 2.5 * ball.epsilon / steps
    loss = losses.margin if kind == "cw-pgd" else cross_entropy
    return Ascent(ball, step_size, steps, restarts, loss=loss)
  match = _FROM_THE_IMAGE.fullmatch(name)
  if match:
    steps, momentum = int(match[2]), 1.0 if match[1] == "mi-fgsm" else 0.0
    step_size = ball.epsilon / steps
    return Ascent(ball, step_size, steps, momentum=momentum, random_start=False)
  known = [*_SUITES, *_ALONE, "jsma", *_L2_ONLY, *_EXAMPLES]
  nearest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.3) or known
  raise UserError(f"No attack is called {name}; the nearest are {', '.join(nearest)}.")
