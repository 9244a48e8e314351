"""The order of the tests."""

from __future__ import annotations

import pathlib

import pytest

HERE = pathlib.Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Whole programs first: they take longest, and two processes should end together."""
  items.sort(key=lambda item: item.path.parent not in (HERE / "program", HERE))
