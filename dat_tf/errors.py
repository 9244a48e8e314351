"""What a user can get wrong, and how it is said."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Callable, Optional


class UserError(Exception):
  """A mistake that the user can mend.

  Its text is one line that says what is wrong and what to do about it.
  """


def exit_on_user_error(
  main: Callable[[Sequence[str]], Optional[int]],
) -> Callable[[Sequence[str]], Optional[int]]:
  """Wraps `main` so that a `UserError` ends the program with one line and code 2."""

  @functools.wraps(main)
  def wrapped(argv: Sequence[str]) -> Optional[int]:
    try:
      return main(argv)
    except UserError as error:
      message = " ".join(str(error).split())
      print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr, flush=True)
      return 2

  return wrapped


def one_line(error: Any) -> str:
  """The message of an exception; of TensorFlow's, without names of graphs' nodes."""
  message = getattr(error, "message", None) or str(error)
  return " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message, flags=re.S).split())
