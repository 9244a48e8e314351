"""The figures of a run that other programs read."""

from __future__ import annotations

import json
import os
from typing import Any


def update_results(path: str, figures: dict[str, Any]) -> None:
  """Puts figures into a JSON file, beside those that are there, in one move."""
  if os.path.exists(path):
    with open(path, encoding="utf-8") as file:
      figures = {**json.load(file), **figures}
  with open(f"{path}.new", "w", encoding="utf-8") as file:
    json.dump(figures, file, indent=2)
    file.write("\n")
  os.replace(f"{path}.new", path)
