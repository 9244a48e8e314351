"""How a user's mistake is said: by parameters in the library, by flags in a program."""

from __future__ import annotations

import ast
import contextlib
import io
import pathlib
import re
import unittest
from unittest import mock

from dat_tf import __main__ as program
from dat_tf.base import errors
from dat_tf.base.errors import UserError, with_flags

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "dat_tf"
# Their users set flags, and no parameters.
PROGRAMS = (
  *("__main__.py", "config", "data/service.py", "launch.py", "program"),
  # They print by themselves, in a program.
  *("workers/watchdog.py", "workers/preemption.py"),
)
# Arguments of git and of Apache Beam, and a variable of a style sheet.
NO_FLAGS = {
  "base/errors.py": {"--"},
  "base/stack.py": {"--always", "--dirty", "--exclude=*", "--abbrev=12"},
  "conversion/beam.py": {"--runner="},
  **dict.fromkeys(("reporting/page.py", "reporting/plots.py"), {"--"}),
  "reporting/tables.py": {"--"},
  "reporting/theme.py": {"var(--", r"\1 var(--font)"},
}


def strings(path: pathlib.Path) -> set[str]:
  """The string constants of a module; its docstrings are left out."""
  tree = ast.parse(path.read_text(encoding="utf-8"))
  alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
  return {
    node.value
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant)
    and isinstance(node.value, str)
    and id(node) not in alone
  }


class FlagsTest(unittest.TestCase):
  def test_settings_become_flags(self):
    for message, expected in (
      ("set `epsilon`.", "set --epsilon."),
      ("set `norm=l1` or `norm`.", "set --norm=l1 or --norm."),
      ("`norm`='a b' is no norm", "--norm='a b' is no norm"),
      ("`range=0,1` and `unknown=0`", "--range=0,1 and `unknown=0`"),
      ("norm and `norm", "norm and `norm"),
    ):
      self.assertEqual(with_flags(message, {"epsilon", "norm", "range"}), expected)

  def test_the_program_shows_flags(self):
    def main(argv: list[str]) -> None:
      raise UserError("Wrong: set `num_classes=3`, or `weights`.")

    error, codes = io.StringIO(), []
    with (
      mock.patch.object(program, "main", main),
      mock.patch.object(program, "leave", codes.append),
      contextlib.redirect_stderr(error),
    ):
      program.run()
    self.assertEqual(codes, [2])
    self.assertRegex(
      error.getvalue(), r"^[^ ]+: Wrong: set --num_classes=3, or `weights`\.\n$"
    )

  def test_the_library_names_no_flag(self):
    found = {}
    for path in PACKAGE.rglob("*.py"):
      name = path.relative_to(PACKAGE).as_posix()
      if name not in PROGRAMS and name.split("/")[0] not in PROGRAMS:
        named = {
          one for one in strings(path) if re.search(r"(?<![\w-])--([a-z]|$)", one)
        }
        found[name] = named - NO_FLAGS.get(name, set())
    self.assertGreater(len(found), 80)
    self.assertEqual({name: named for name, named in found.items() if named}, {})


class ExitTest(unittest.TestCase):
  def exit_of(self, error):
    def main(argv):
      raise error

    with contextlib.redirect_stderr(io.StringIO()) as stderr:
      code = errors.exit_on_user_error(main)(["program"])
    return code, stderr.getvalue().partition(": ")[2]

  def test_each_kind_ends_with_its_code_and_one_line(self):
    mistake, fault = errors.UserError("Mend this."), errors.MachineError("Try again.")
    self.assertEqual(self.exit_of(mistake), (2, "Mend this.\n"))
    self.assertEqual(self.exit_of(fault), (1, "Try again.\n"))


if __name__ == "__main__":
  unittest.main()
