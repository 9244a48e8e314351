"""The figures of a run that other programs read."""

from __future__ import annotations

import json
from typing import Any

from dat_tf import files


def update_results(path: str, figures: dict[str, Any]) -> None:
  """Puts figures into a JSON file, beside those that are there, in one move."""
  there = json.loads(files.read_text(path) or "{}")
  files.write_text(path, json.dumps({**there, **figures}, indent=2) + "\n")
