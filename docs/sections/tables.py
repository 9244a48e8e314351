"""Tables that several sections have."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate


def table(rows: list[dict[str, Any]]) -> str:
  return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def compared(figures: dict[str, Any], what: str) -> str:
  """The table of methods that were run with the same seeds (`common.compared`)."""
  suffix = "_standard_difference"
  rows = [
    {
      what: method,
      **{
        title: cell
        for kind, name in (("standard", "clean"), ("robust", "under PGD-20"))
        for title, cell in (
          (name, f"{figures[f'{method}_{kind}_accuracy']:.2%}"),
          (
            f"{name}, difference",
            f"{100 * figures[f'{method}_{kind}_difference']:+.2f} ± "
            f"{100 * figures[f'{method}_{kind}_interval']:.2f}",
          ),
        )
      },
    }
    for method in (key.removesuffix(suffix) for key in figures if key.endswith(suffix))
  ]
  return table(rows)
