"""The rooms of dat_tf, and that each knows only rooms below it."""

from __future__ import annotations

import ast
import graphlib
import pathlib
import subprocess
import sys
import unittest
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dat_tf"

# From low to high: a room may import those of its own line and of the lines before it.
LAYERS = (
  ("base",),
  ("__init__", "compat"),
  ("workers", "models", "optimizers", "launch"),
  ("communication", "objectives"),
  ("attacks", "data"),
  ("adversarial_model", "config", "conversion"),
  ("evaluation", "monitoring"),
  ("reporting", "program", "__main__"),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}

# What flags, TF_CONFIG and a launcher need before TensorFlow starts, or without it.
LIGHT = (
  "dat_tf",
  "dat_tf.workers.cluster",
  "dat_tf.compat",
  "dat_tf.config",
  "dat_tf.base.errors",
  "dat_tf.config.flagfiles",
  "dat_tf.launch",
  "dat_tf.models",
  "dat_tf.workers.peers",
)


def room_of(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: pathlib.Path) -> Iterator[str]:
  """Yields the dotted names that a file imports, those inside functions too."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      module = "." * node.level + (node.module or "")
      yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_imported() -> dict[pathlib.Path, set[str]]:
  """Maps each file of the package to the rooms it imports, its own left out."""
  imported = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    names = [name.split(".") for name in imported_modules(path)]
    imported[path] = {
      parts[1] for parts in names if parts[0] == "dat_tf" and len(parts) > 1
    } - {room_of(path)}
  return imported


class LayersTest(unittest.TestCase):
  def test_every_room_has_its_place(self) -> None:
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    self.assertEqual(rooms - HEIGHT.keys(), set(), "rooms that LAYERS does not name")
    self.assertEqual(HEIGHT.keys() - rooms, set(), "rooms that do not exist")

  def test_no_room_imports_one_above_it(self) -> None:
    upward = [
      f"{path.relative_to(ROOT)} imports {room}"
      for path, rooms in rooms_imported().items()
      for room in rooms
      if room in HEIGHT and HEIGHT[room] > HEIGHT.get(room_of(path), -1)
    ]
    self.assertEqual(upward, [])

  def test_no_circles(self) -> None:
    known: dict[str, set[str]] = {}
    for path, rooms in rooms_imported().items():
      known.setdefault(room_of(path), set()).update(rooms)
    graphlib.TopologicalSorter(known).prepare()  # raises CycleError, with the circle

  def test_the_package_imports_none_of_the_scripts(self) -> None:
    scripts = {path.stem for path in ROOT.glob("*.py")}
    scripts |= {"benchmarks", "tests", "tfrecords", "workers"}
    outward = [
      f"{path.relative_to(ROOT)} imports {name}"
      for path in PACKAGE.rglob("*.py")
      for name in imported_modules(path)
      if name.split(".")[0] in scripts or name.startswith(".")
    ]
    self.assertEqual(outward, [])

  def test_light_modules_do_not_load_tensorflow(self) -> None:
    code = f"import sys, {', '.join(LIGHT)}; print('tensorflow' in sys.modules)"
    loaded = subprocess.run(
      [sys.executable, "-c", code],
      cwd=ROOT,
      check=True,
      capture_output=True,
      text=True,
    )
    self.assertEqual(loaded.stdout.strip(), "False")


if __name__ == "__main__":
  unittest.main()
