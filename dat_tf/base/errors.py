"""What a user can get wrong, and how it is said."""

from __future__ import annotations

import functools
import os
import re
import sys
import unicodedata
from collections.abc import Container, Sequence
from typing import Any, Callable, Optional

__all__ = ["MachineError", "UserError"]


class UserError(Exception):
  """A mistake that the user can mend.

  Its text is one line that says what is wrong and what to do about it. A setting
  stands in it between backticks, `name` or `name=value`: the programs print that as
  the flag (`with_flags`).
  """

  exit_code = 2


class MachineError(UserError):
  """A fault of a machine: the same command may do better, and is tried again."""

  exit_code = 1


def exit_on_user_error(
  main: Callable[[Sequence[str]], Optional[int]],
  flags: Container[str] = (),
) -> Callable[[Sequence[str]], Optional[int]]:
  """Wraps `main` so that a `UserError` ends the program with one line and its code.

  Args:
    main: takes the program's name and its arguments.
    flags: names of the program's flags, which the line shows as such.
  """

  @functools.wraps(main)
  def wrapped(argv: Sequence[str]) -> Optional[int]:
    try:
      return main(argv)
    except UserError as error:
      mistake = error
    except Exception as error:
      scheme = re.search(r"File system scheme '([\w+.-]+)' not implemented", str(error))
      if not scheme:
        raise
      mistake = UserError(
        f"TensorFlow has no file system {scheme[1]}:// here: copy or mount the files, "
        "or give gs://. (The package tensorflow-io adds s3:// to programs that import "
        "it.)"
      )
    code = mistake.exit_code
    # What it refers to is not taken apart: see `startup.leave`.
    sys.last_value = mistake
    program = os.path.basename(sys.argv[0]).replace("__main__.py", "dat-tf")
    mistake = UserError(with_flags(str(mistake), flags))
    print(f"{program}: {shown(mistake)}", file=sys.stderr, flush=True)
    return code

  return wrapped


def with_flags(message: str, flags: Container[str]) -> str:
  """A message for the user of a program, whose settings are flags.

  Args:
    message: in which settings stand between backticks, `name` or `name=value`.
    flags: names of the program's flags. What is none of them stays as it is.
  """

  def spelled(match: re.Match[str]) -> str:
    return f"--{match[1]}{match[2] or ''}" if match[1] in flags else match[0]

  return re.sub(r"`(\w+)(=[^`]*)?`", spelled, message)


def is_text(word: str) -> bool:
  """Whether all characters are of UTF-8, and neither controls nor line ends."""
  kinds = {unicodedata.category(character) for character in word}
  return not kinds & {"Cc", "Cs", "Zl", "Zp"}


def shown(error: UserError) -> str:
  """The message as a terminal may show it: one line of at most some 600 characters.

  A name or value that is quoted in it may be of any length, and hold what a terminal
  takes for commands.
  """
  line = " ".join(str(error).split())
  line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
  # Its begin says what is wrong, its end what to do.
  return line if len(line) <= 600 else f"{line[:400]} ... {line[-190:]}"


def one_line(error: Any) -> str:
  """The message of an exception; of TensorFlow's, without names of graphs' nodes."""
  message = getattr(error, "message", None) or str(error)
  return " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message, flags=re.S).split())
