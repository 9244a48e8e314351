"""Declares a setting once: type, default, unit, range and help. Its flag follows.

    @dataclasses.dataclass(frozen=True)
    class AttackSettings:
      epsilon: float = number("8/255", "Largest norm of the perturbation.", above=0)

A setting with a few values to choose from may say of each which other settings it goes
with. One that plays no part beside what was chosen is refused:

    MIXING = options(
      Option("none", "images stay apart"),
      Option("mixup", "weighted means of two images", own=("mixing_alpha",)),
    )
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import math
import operator
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Optional, TypeVar, Union

from absl import flags

from dat_tf.base.errors import UserError, one_line

_DECLARATION = "declaration"
# TensorFlow counts in 32 bits at some places, and in 64 at the others.
_LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Option:
  """One of the values of a setting.

  Attributes:
    name: the value.
    help: what it stands for, in a few words; empty if the name says it.
    own: settings that play a part where it is chosen, and not with every other option.
      One that options of two settings own plays a part beside either.
  """

  name: str
  help: str = ""
  own: tuple[str, ...] = ()


O = TypeVar("O", bound=Option)  # noqa: E741


def options(*records: O) -> dict[str, O]:
  """Options by their names."""
  return {record.name: record for record in records}


class Parser(flags.ArgumentParser):
  """Reads one value, and tells its range.

  Attributes:
    kind: what --help calls it.
    range: such as [0, 1); empty if every value of the kind will do.
  """

  kind = "string"
  range = ""

  def flag_type(self) -> str:
    return self.kind

  def parse(self, argument: Any) -> Any:
    return str(argument)

  def write(self, value: Any) -> str:
    """The text that is read as this value."""
    return str(value)


class _Number(Parser):
  kind = "number"
  syntactic_help = "a number or a fraction such as 8/255"

  def __init__(self, above: float, lower: float, upper: float, below: float):
    self._above, self._lower, self._upper, self._below = above, lower, upper, below
    left = f"({above:g}" if above >= lower else f"[{lower:g}"
    right = f"{below:g})" if below <= upper else f"{upper:g}]"
    self.range = f"{left}, {right}"

  def parse(self, argument: Any) -> float:
    text = str(argument).replace(" ", "")
    numerator, slash, denominator = text.partition("/")
    try:
      if not text.isascii():
        raise ValueError
      value = float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
      raise ValueError(f"{argument!r} is not {self.syntactic_help}") from None
    if not (self._above < value < self._below and self._lower <= value <= self._upper):
      raise ValueError(f"must lie in {self.range}")
    return value

  def write(self, value: float) -> str:
    return repr(value).removesuffix(".0")


class _Integer(Parser):
  kind = "integer"

  def __init__(self, lower: int, upper: int):
    self._lower, self._upper = lower, upper
    self.range = f"[{lower}, {upper}]" if upper < _LARGEST else f"{lower} or more"

  def parse(self, argument: Any) -> int:
    text = str(argument).strip()
    try:
      # Longer texts take Python long to read, and are no such number.
      value = int(text if text.isascii() and len(text) < 30 else "")
    except ValueError:
      raise ValueError(f"{text[:40]!r} is not an integer") from None
    if not self._lower <= value <= self._upper:
      raise ValueError(f"must be {'in ' * (',' in self.range)}{self.range}")
    return value


class _Choice(Parser):
  kind = "choice"

  def __init__(self, names: Sequence[str], *, takes_own: bool):
    self.names, self.takes_own = tuple(names), takes_own

  def parse(self, argument: Any) -> str:
    value = str(argument)
    if value in self.names or (self.takes_own and ":" in value):
      return value
    raise ValueError(f"{value!r} is none of {', '.join(self.names)}")


class _Switch(Parser):
  kind = "switch"
  boolean = True

  def parse(self, argument: Any) -> bool:
    text = str(argument).lower()
    if text in ("true", "t", "1"):
      return True
    if text in ("false", "f", "0"):
      return False
    raise ValueError(f"{argument!r} is neither true nor false")


class _List(Parser):
  """Values of another parser, with commas between them."""

  kind = "list"

  def __init__(
    self,
    each: Parser,
    example: str,
    count: Optional[int] = None,
    *,
    in_order: Callable[[Any, Any], bool] = lambda before, after: True,
    may_be_empty: bool = True,
  ):
    self._each, self._example = each, example
    self._count, self._in_order = count, in_order
    self._may_be_empty = may_be_empty

  def parse(self, argument: Any) -> tuple[Any, ...]:
    lines = list(csv.reader([str(argument)], skipinitialspace=True))
    words = [word.strip() for word in lines[0]] if lines else []
    if not words and self._count and not self._may_be_empty:
      raise ValueError(f"must be like {self._example}")
    try:
      values = tuple(self._each.parse(word) for word in words)
    except ValueError:
      values, words = (), ["wrong"]
    right = all(map(self._in_order, values, values[1:]))
    if words and not (right and len(values) == (self._count or len(words))):
      raise ValueError(f"must be like {self._example}")
    return values

  def write(self, value: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(map(self._each.write, value))
    return line.getvalue()


@dataclasses.dataclass(frozen=True)
class Declaration:
  """What is known of a setting.

  Attributes:
    parser: reads its values.
    default: as people write it; None if there is none.
    help: what it means.
    may_change: whether a later run in the same model_dir may have another value.
    options: what each value of a choice stands for.
  """

  parser: Parser
  default: Optional[str]
  help: str
  may_change: bool = False
  options: Mapping[str, Option] = dataclasses.field(default_factory=dict)

  @property
  def text(self) -> str:
    """The whole help."""
    if isinstance(self.parser, (_Number, _Integer)):
      return f"{self.help} Range: {self.parser.range}."
    if not isinstance(self.parser, _Choice):
      return self.help
    named = [
      f"{name} ({self.options[name].help})"
      if name in self.options and self.options[name].help
      else name
      for name in self.parser.names
    ]
    own = ["your own as package.module:function"] * self.parser.takes_own
    return f"{self.help} Choices: {', '.join(named + own)}."


def _field(parser: Parser, default: Any, help_text: str, **more: Any) -> Any:
  written = None if default is None else str(default)
  value = None if written is None else parser.parse(written)
  declaration = Declaration(parser, written, help_text, **more)
  return dataclasses.field(default=value, metadata={_DECLARATION: declaration})


def number(
  default: Union[str, float, None],
  help_text: str,
  *,
  above: float = -math.inf,
  lower: float = 0.0,
  upper: float = math.inf,
  below: float = math.inf,
  may_change: bool = False,
) -> Any:
  """A float, which may be written as a fraction, within bounds."""
  parser = _Number(above, lower, upper, below)
  return _field(parser, default, help_text, may_change=may_change)


def integer(
  default: Optional[int],
  help_text: str,
  *,
  lower: int = 0,
  upper: int = _LARGEST,
  may_change: bool = False,
) -> Any:
  """An int within bounds, both included."""
  return _field(_Integer(lower, upper), default, help_text, may_change=may_change)


def choice(
  default: str,
  of: Union[Sequence[str], Mapping[str, Option]],
  help_text: str,
  *,
  may_change: bool = False,
  takes_own: bool = False,
) -> Any:
  """One of some names; or, if it `takes_own`, `package.module:function` too."""
  records = of if isinstance(of, Mapping) else {}
  parser = _Choice(tuple(of), takes_own=takes_own)
  return _field(parser, default, help_text, may_change=may_change, options=records)


def text(default: Optional[str], help_text: str, *, may_change: bool = False) -> Any:
  """Any text."""
  return _field(Parser(), default, help_text, may_change=may_change)


def texts(help_text: str, *, may_change: bool = False) -> Any:
  """A tuple of texts, empty unless given."""
  return _field(_List(Parser(), "a,b"), "", help_text, may_change=may_change)


def numbers(
  default: str,
  help_text: str,
  *,
  example: str,
  count: Optional[int] = None,
  above: float = -math.inf,
  may_change: bool = False,
) -> Any:
  """A tuple of rising, finite floats."""
  each = _Number(above, -math.inf, math.inf, math.inf)
  parser = _List(each, example, count, in_order=operator.lt, may_be_empty=not default)
  return _field(parser, default, help_text, may_change=may_change)


def integer_range(help_text: str, *, may_change: bool = False) -> Any:
  """The first and the last of some integers from 1 on; empty unless given."""
  parser = _List(_Integer(1, _LARGEST), "10,20", 2, in_order=operator.le)
  return _field(parser, "", help_text, may_change=may_change)


def switch(
  help_text: str, *, default: Optional[bool] = False, may_change: bool = False
) -> Any:
  """True or false; its default is None where it makes a difference that nobody said."""
  return _field(_Switch(), default, help_text, may_change=may_change)


def declarations(settings: type) -> dict[str, Declaration]:
  """The declarations of all settings of a class, by name."""
  return {
    field.name: field.metadata[_DECLARATION] for field in dataclasses.fields(settings)
  }


def define_flags(settings: type, values: flags.FlagValues) -> None:
  """Defines in `values` a flag for each setting, under the class that declares it."""
  for owner in settings.__mro__:
    room = vars(owner).get("ROOM", "program")
    for name in vars(owner).get("__annotations__", {}):
      declared = declarations(settings)[name]
      flag = (
        flags.BooleanFlag(name, declared.default, declared.text)
        if isinstance(declared.parser, _Switch)
        else flags.Flag(declared.parser, None, name, declared.default, declared.text)
      )
      flag.parser = declared.parser
      flags.DEFINE_flag(flag, values, module_name=f"dat_tf.{room}")
      if declared.default is not None:
        flag.default_as_str = repr(declared.default)


def written(name: str, value: Any, declared: Declaration) -> Optional[str]:
  """A setting as a word of the command line; None if it has no value."""
  if value is None:
    return None
  if isinstance(declared.parser, _Switch):
    return f"--{name}" if value else f"--no{name}"
  return f"--{name}={declared.parser.write(value)}"


@dataclasses.dataclass(frozen=True)
class Idle:
  """Settings that play no part beside what was chosen.

  Attributes:
    chosen: by the setting's name, what was chosen, such as --attack=pgd.
    ways: by the setting's name, what it goes with, such as --attack=yopo.
  """

  chosen: Mapping[str, Sequence[str]]
  ways: Mapping[str, Sequence[str]]

  @property
  def names(self) -> set[str]:
    return {*self.chosen}

  def explain(self, name: str, fixed: Container[str] = ()) -> str:
    """One line: what is wrong about a setting that was given, and what to do.

    Args:
      name: the setting's.
      fixed: choices that others leave no freedom in.
    """
    ways = [
      way
      for way in self.ways[name]
      if way.removeprefix("another ").split("=")[0] not in fixed
    ]
    choose = f", or choose {' or '.join(ways)}" if ways else ""
    return (
      f"--{name} plays no part with {' and '.join(self.chosen[name])}: drop it{choose}."
    )


def idle(settings: Any) -> Idle:
  """Which settings play no part beside what was chosen."""
  chosen: dict[str, list[str]] = {}
  ways: dict[str, list[str]] = {}
  active: set[str] = set()
  for family, declaration in declarations(type(settings)).items():
    value = getattr(settings, family)
    owners: dict[str, list[str]] = {}
    for option in declaration.options.values():
      for name in option.own:
        owners.setdefault(name, []).append(option.name)
    for name, names in owners.items():
      chosen.setdefault(name, []).append(f"--{family}={value}")
      few = len(names) < 4
      way = f"--{family}={' or '.join(names)}" if few else f"another --{family}"
      ways.setdefault(name, []).append(way)
      # A user's own function may use them all.
      if value in names or value not in declaration.options:
        active.add(name)
  return Idle({name: chosen[name] for name in sorted(chosen.keys() - active)}, ways)


def is_default(settings: Any, name: str) -> bool:
  """Whether a setting is what it is where nobody sets it, or has no value."""
  declared, value = declarations(type(settings))[name], getattr(settings, name)
  if value is None or declared.default is None:
    return value is None
  return value == declared.parser.parse(declared.default)


def unset(value: Any) -> bool:
  """Whether a setting that follows from others was not given."""
  return value is None


class Late:
  """A room that is imported when it is first used, for TensorFlow is to load late.

  if TYPE_CHECKING:
    from dat_tf import attacks
  else:
    attacks = Late("dat_tf.attacks")
  """

  def __init__(self, name: str):
    self._name = name

  def __getattr__(self, name: str) -> Any:
    room = importlib.import_module(self._name)
    if not hasattr(room, name):  # a module of the room that it does not import itself
      importlib.import_module(f"{self._name}.{name}")
    return getattr(room, name)


def loaded(name: str, flag: str) -> Callable[..., Any]:
  """A user's own function, from package.module:function.

  Raises:
    UserError: there is none.
  """
  module, _, function = name.partition(":")
  try:
    found = getattr(importlib.import_module(module), function)
  except Exception as error:  # a module of any kind may fail in any way
    raise UserError(
      f"--{flag}={name}: {type(error).__name__}: {one_line(error)}; write "
      "package.module:function, with the package on PYTHONPATH."
    ) from None
  if not callable(found):
    raise UserError(f"--{flag}={name} is no function: name one.")
  return found
