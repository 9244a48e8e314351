"""Attacks beside others' programs, and hostile input."""

from __future__ import annotations

from typing import Any

from sections.tables import table


def attacks(figures: dict[str, Any]) -> str:
  peers = {
    "apgd_ce": "APGD-CE",
    "apgd_dlr": "APGD-DLR",
    "apgd_t": "APGD-T",
    "square": "Square",
    "pgd_foolbox": "PGD-40 (Foolbox)",
    "pgd_cleverhans": "PGD-40 (CleverHans)",
    "ddn": "DDN (Foolbox)",
    "deepfool": "DeepFool (Foolbox)",
    "autoattack": "APGD-CE, APGD-T and Square together",
  }
  rows = [
    {
      "attack": title,
      "ours - peer's, points": f"{figures[f'{key}_minus_peer_points']:+.1f}",
    }
    for key, title in peers.items()
    if f"{key}_minus_peer_points" in figures
  ]
  return f"""Robust accuracy that our attacks leave less what others' leave, with the
same budgets on the same network and {figures["images"]:,} images (negative: ours are
stronger; the peers' PGD and APGD return their last point, ours the best). The three of
the last row, one after the other on {figures["timed_images"]} images, took
ours {figures["autoattack_seconds"]:.0f} s and the peer's
{figures["autoattack_peer_seconds"]:.0f} s: {figures["autoattack_speedup"]:.1f} times as
fast ({figures["timed_on"]}).

{table(rows)}{_in_color(figures)}"""


def _in_color(figures: dict[str, Any]) -> str:
  rows = [
    {
      "norm": norm,
      "Square": f"{figures[f'square_{norm}_color']:.1f}%",
      "APGD-CE": f"{figures[f'apgd_ce_{norm}_color']:.1f}%",
    }
    for norm in ("l2", "l1")
    if f"square_{norm}_color" in figures
  ]
  if not rows:
    return ""
  return f"""

Robust accuracy on {figures["color_images"]} images in color, of a small network that
is trained on such images by PGD in l2 ({figures["color_clean_accuracy"]:.1f} % clean):
what random search leaves, and what the gradient does ({figures["color_on"]}).

{table(rows)}"""


def hostile_input(figures: dict[str, Any]) -> str:
  rows = [
    {"inputs that": title, "": f"{figures[key]:,}"}
    for title, key in (
      ("were refused in one line", "refused"),
      ("were taken", "accepted"),
      ("ended in a traceback or by a signal", "tracebacks"),
      ("took more than a minute", "hangs"),
      ("needed more than 1 GiB", "over_memory"),
      ("wrote outside of their folder", "written_outside"),
      ("were taken although they are broken", "accepted_broken"),
    )
  ]
  return f"""\
Archives, records, models, flagfiles, TF_CONFIG and the files of a run, damaged or made
to do harm: {figures["inputs"]:,} inputs, {figures["programs"]} of them through the
programs themselves.

{table(rows)}"""
