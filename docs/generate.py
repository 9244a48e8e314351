"""Writes the pages and tables that follow from the code, while mkdocs builds the site.

mkdocs.yml names this file as a hook. reference/flags.md and reference/api.md are made
anew in each build and are not in the repository. A line `(table of NAME: ...)` of any
other page gives its place to the table of that name.
"""

from __future__ import annotations

import ast
import importlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dat_tf.config import ATTACKS, OBJECTIVES, Settings
from dat_tf.config.declaring import Declaration, Option, declarations

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "dat_tf"
# The rooms whose names users have by `import dat_tf as dat`, and what they hold.
PUBLIC = {
  "adversarial_model": "The model whose training step is the method.",
  "attacks": "How adversarial images are made.",
  "objectives": "What the attacker maximises and what the model minimises.",
  "communication": "How the workers' gradients become one.",
  "optimizers": "Optimizers for large batches, and their learning rates.",
  "models": "Networks from images in [0, 1] to logits.",
  "evaluation": "How well a classifier withstands attacks.",
  "base.hashing": "Random streams, one for each example.",
  "base.errors": "The user's mistakes.",
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _flags(names: Iterable[str]) -> str:
  return ", ".join(f"`--{name}`" for name in names)


def _multiple(factor: float) -> str:
  return "ε" if factor == 1 else f"{factor:g} ε"


def _step_size(rule: Any) -> str:
  """A default that is proportional to epsilon, and perhaps to 1 / K."""
  if rule is None:
    return ""
  one, ten = rule(1.0, 1), rule(1.0, 10)
  return _multiple(one) if one == ten else f"{_multiple(one)} / K"


def attack_table() -> str:
  """The attacks of training."""
  return _table(
    ["`--attack`", "what it is", "K", "step size", "settings of its own"],
    (
      [
        f"`{attack.name}`",
        attack.help,
        str(attack.steps) if "attack_steps" in attack.own else "",
        _step_size(attack.step_size) if "step_size" in attack.own else "",
        _flags(attack.own),
      ]
      for attack in ATTACKS.values()
    ),
  )


def objective_table() -> str:
  """What training can minimise."""

  def images(objective: Any) -> str:
    if objective.gain:
      return "own ascent"
    return "any attack" if objective.attacked else "none"

  return _table(
    [
      "`--objective`",
      "what it is",
      "adversarial images",
      "`--penalty_weight`",
      "settings of its own",
    ],
    (
      [
        f"`{objective.name}`",
        objective.help,
        images(objective),
        "" if objective.penalty_weight is None else f"{objective.penalty_weight:g}",
        _flags(objective.own),
      ]
      for objective in OBJECTIVES.values()
    ),
  )


TABLES = {"attacks": attack_table, "objectives": objective_table}


def _choices(declared: Declaration) -> Iterator[str]:
  names: Sequence[str] = getattr(declared.parser, "names", ())
  for name in names:
    option = declared.options.get(name, Option(name))
    told = f": {option.help}" if option.help else ""
    own = f" (its settings: {_flags(option.own)})" if option.own else ""
    yield f"    - `{name}`{told}{own}"
  if getattr(declared.parser, "takes_own", False):
    yield "    - `package.module:function`: your own"


def _default(declared: Declaration) -> str:
  if declared.default is None:
    return "as said above" if "Default:" in declared.help else "none"
  if declared.parser.kind == "switch":
    return f"`{declared.default.lower()}`"
  return f"`{declared.default}`" if declared.default else "empty"


def _flag(name: str, declared: Declaration) -> Iterator[str]:
  yield f"### `--{name}`\n"
  yield f"{declared.help}\n"
  kind = declared.parser.kind
  yield f"- Kind: {kind}." + (f" `--no{name}` is false." if kind == "switch" else "")
  yield f"- Default: {_default(declared)}."
  if declared.parser.range:
    yield f"- Range: {declared.parser.range}."
  if choices := [*_choices(declared)]:
    yield "- Choices:\n"
    yield from choices
    yield ""
  yield f"- A later run may change it: {'yes' if declared.may_change else 'no'}.\n"


def flags_page() -> str:
  """All flags by room, in the order of their declarations."""
  known = declarations(Settings)
  lines = [
    "# Flags\n",
    "This page follows from the declarations in `dat_tf/config/`. `python run_dat.py "
    "--help` prints them too. A number may be a fraction, such as `8/255`.\n",
  ]
  # From the first base to the last, as the help lists them.
  for owner in Settings.__bases__:
    module = importlib.import_module(owner.__module__)
    path = f"dat_tf/config/{pathlib.Path(str(module.__file__)).name}"
    told = str(owner.__doc__).rstrip(".")
    lines += [f"## {vars(owner)['ROOM']}: {told}\n", f"Declared in `{path}`.\n"]
    for name in vars(owner)["__annotations__"]:
      lines += _flag(name, known[name])
  return "\n".join(lines)


def public_names(room: str) -> list[str]:
  """`__all__` of a module of the package, which is not imported."""
  path = PACKAGE.joinpath(*room.split("."))
  path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
  for node in ast.parse(path.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
      return list(ast.literal_eval(node.value))
  raise ValueError(f"{path} has no __all__")


def api_page() -> str:
  """All public names, by room; mkdocstrings puts their docstrings there."""
  lines = [
    "# Python\n",
    "`import dat_tf as dat` offers every name of this page: `dat.PGD` is "
    "`dat_tf.attacks.PGD`.\n",
  ]
  for room, what in PUBLIC.items():
    lines += [f"## `dat_tf.{room}`\n", f"{what}\n"]
    lines += [f"::: dat_tf.{room}.{name}\n" for name in public_names(room)]
  return "\n".join(lines)


PAGES = {"reference/flags.md": flags_page, "reference/api.md": api_page}


def with_tables(markdown: str) -> str:
  """A page, its tables filled in."""
  return re.sub(
    r"^\(table of (\w+): .*\)$", lambda match: TABLES[match[1]](), markdown, flags=re.M
  )


def on_files(files: Any, config: Any) -> Any:
  """Called by mkdocs when it has found the pages."""
  from mkdocs.structure.files import File

  for path, page in PAGES.items():
    files.append(File.generated(config, path, content=page()))
  return files


def on_page_markdown(markdown: str, **unused: Any) -> str:
  """Called by mkdocs with each page."""
  del unused
  return with_tables(markdown)
