"""Settings that mean nothing together, each with the way out.

yield settings.warmup_epochs > settings.epochs, "--warmup_epochs exceeds --epochs: ..."
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dat_tf.base.errors import UserError

# Pairs: whether something is wrong, and one line that says what, and what to do.
Refusals = Iterable[tuple[Any, str]]


def refuse(refusals: Refusals) -> None:
  """Raises UserError with the first line of what is wrong."""
  for wrong, message in refusals:
    if wrong:
      raise UserError(message)
