"""Command lines and the flagfiles that they name, before any flag is parsed.

A flagfile has a flag a line, `--name=value` or `--name value`. Blank lines are left
out, and so are comments: lines that begin with `#` or `//`, and what follows ` #` in
others. A value in quotes, of either kind, is what lies between them. The text is UTF-8,
with or without a byte-order mark. `--flagfile=OTHER` in a flagfile stands for the lines
of the other one; its path begins where the program was started, as on a command line.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence

from dat_tf.base.errors import UserError, is_text

_DIRECTIVE = re.compile(r"--?flagfile(?:=(.*))?", re.S)
# A name, and a value after `=` or a space, which is kept: a comment begins with one.
_FLAG = re.compile(r"([^\s=]+)(?:=|(?=\s))(.*)")
_COMMENT = re.compile(r"\s+#.*")
_QUOTED = re.compile(r"""(['"])(.*?)\1(?:\s+#.*)?""")
_MOST_BYTES = 2**20
_MOST_LINES = 10_000  # files that name each other twice grow without measure


def arguments(words: Sequence[str]) -> list[str]:
  """A command line without its flagfiles: what these hold comes first.

  So what stands on the command line beats what stands in the flagfiles, wherever and
  however they are named. A value, or a part of one after a comma, that begins with `~/`
  is a path in the user's home.

  Args:
    words: the program's arguments, without its name.

  Raises:
    UserError: a flagfile cannot be read, includes itself, or is not UTF-8; or a word
      has characters that no flag's value may have.
  """
  from_files: list[str] = []
  own: list[str] = []
  rest = iter(words)
  for word in rest:
    if word == "--":
      own += [word, *rest]
    elif match := _DIRECTIVE.fullmatch(word):
      path = next(rest, "") if match[1] is None else match[1]
      for line in _lines_of(path, ()):
        from_files.append(line)
        if len(from_files) > _MOST_LINES:
          raise UserError(f"--flagfile={path} stands for over {_MOST_LINES:,} flags.")
    else:
      own.append(word)
  return [_at_home(_checked(word)) for word in [*from_files, *own]]


def read_flags(text: str) -> Iterator[str]:
  """The flags of a flagfile's text, each as `--name=value`."""
  for line in text.split("\n"):
    line = line.strip()
    if not line or line.startswith(("#", "//")):
      continue
    if quoted := _QUOTED.fullmatch(line):  # as copied from a shell
      line = quoted[2]
    match = _FLAG.fullmatch(line)
    name, value = match.groups() if match else (_COMMENT.sub("", line), None)
    if value is None:
      yield name
    else:
      quoted = _QUOTED.fullmatch(value.strip())
      value = quoted[2] if quoted else _COMMENT.sub("", value).strip()
      yield f"{name}={value}" if value or "=" in line else name


def flags_alone(text: str) -> list[str]:
  """As `read_flags`, of a text that names no other flagfile.

  Raises:
    UserError: it names one.
  """
  found = list(read_flags(text))
  for flag in found:
    if _DIRECTIVE.fullmatch(flag):
      raise UserError(f"it names another flagfile: {flag}")
  return found


def to_line(flag: str) -> str:
  """The line of a flagfile from which `read_flags` reads the flag `--name=value`.

  Raises:
    UserError: there is none.
  """
  name, separator, value = flag.partition("=")
  for quote in ("", "'", '"'):
    line = f"{name}{separator}{quote}{value}{quote}"
    if list(read_flags(line)) == [flag]:
      return line
  raise UserError(f"{flag} cannot be written to a flagfile: leave out its quotes.")


def _lines_of(path: str, including: tuple[str, ...]) -> Iterator[str]:
  """The flags of a flagfile and of those that it names, in order."""
  if not path:
    raise UserError("--flagfile has no value: name a file.")
  text = _text_of(path)
  place = os.path.realpath(os.path.expanduser(path))
  if place in including:
    raise UserError(f"--flagfile={path} includes itself: take that line out of it.")
  for flag in read_flags(text):
    match = _DIRECTIVE.fullmatch(flag)
    if match:
      yield from _lines_of(match[1] or "", (*including, place))
    elif flag == "--" or not flag.startswith("-"):
      raise UserError(
        f"--flagfile={path}: {flag!r} is no flag: write one a line, as --name=value."
      )
    else:
      yield flag


def _text_of(path: str) -> str:
  place = os.path.expanduser(path)
  try:
    # A shell's <(command) is a pipe; any other might keep us waiting for ever.
    if not stat.S_ISREG(os.stat(place).st_mode) and not place.startswith("/dev/fd/"):
      raise UserError(f"--flagfile={path} is no file: name one with a flag a line.")
    with open(place, "rb") as file:
      content = file.read(_MOST_BYTES + 1)
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(
      f"--flagfile={path} cannot be read ({reason}): mend the path."
    ) from None
  if len(content) > _MOST_BYTES:
    raise UserError(f"--flagfile={path} is longer than 1 MiB: name another file.")
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(
      f"--flagfile={path} is not UTF-8 (byte {error.start}): save it in that encoding."
    ) from None


def _checked(word: str) -> str:
  if not is_text(word):
    raise UserError(
      f"{word!r} has a line end, a control character or one that is not UTF-8: take it "
      "out."
    )
  return word


def _at_home(word: str) -> str:
  home = os.path.expanduser("~").replace("\\", r"\\")
  return re.sub(r"(?<=[=,])~(?=/|$)", home, word) if "=" in word else word
