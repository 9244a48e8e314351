"""How plots look: on a light or dark page, on a phone, and in a file of their own.

A plot in the page is SVG whose colours are the page's own (`var(--ink)`), so that it
follows light, dark and print; its text is text, in the page's font. It is drawn about
as wide as a phone, where it has its true size; a larger screen enlarges it.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import matplotlib.figure

Figure = matplotlib.figure.Figure


@dataclasses.dataclass(frozen=True)
class Theme:
  """Colours, as #rrggbb.

  Attributes:
    ink: text and what it stands beside.
    muted: text that matters less, and axes.
    line: grids and borders.
    paper: what plots stand on.
    ground: what `paper` lies on.
    alert: of what is wrong.
    runs: one a run.
  """

  ink: str
  muted: str
  line: str
  paper: str
  ground: str
  alert: str
  runs: tuple[str, ...]

  def variables(self) -> dict[str, str]:
    """The colours by the names that they have in CSS."""
    plain = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name != "runs"
    }
    return {**plain, **{f"run-{i}": color for i, color in enumerate(self.runs)}}

  def run(self, index: int) -> str:
    """The colour of a run; from the seventh on they come again."""
    return self.runs[index % len(self.runs)]


# Series colours: Okabe and Ito's, who chose them for the colour-blind, made darker or
# lighter until each has a contrast of 3 to its paper (WCAG 2.1, 1.4.11).
LIGHT = Theme(
  ink="#1d2126",
  muted="#5b626c",
  line="#dcdfe3",
  paper="#ffffff",
  ground="#f5f6f7",
  alert="#a8231c",
  runs=("#0072b2", "#c65102", "#00825f", "#b0578c", "#8a6f00", "#3c8fbf"),
)
DARK = Theme(
  ink="#e9eaec",
  muted="#a3aab4",
  line="#343a43",
  paper="#1a1e24",
  ground="#121519",
  alert="#ff8d80",
  runs=("#58b0ec", "#f28c3a", "#2fc196", "#e08fc0", "#dcc04a", "#9fd5f5"),
)

# The shapes that tell runs apart, besides their colours.
MARKERS = "osD^vP"

_NAMES = list(LIGHT.variables())
# Colours that stand for the page's: SVG is drawn in them, then they get its names.
_PLACEHOLDERS = {name: f"#0000{i + 1:02x}" for i, name in enumerate(_NAMES)}
_PAGE = Theme(
  **{name: color for name, color in _PLACEHOLDERS.items() if "run-" not in name},
  runs=tuple(color for name, color in _PLACEHOLDERS.items() if "run-" in name),
)

_SETTINGS = {
  "font.size": 10.0,
  "svg.fonttype": "none",
  "text.parse_math": False,  # names of runs may have a dollar
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.linewidth": 0.8,
  "axes.titlelocation": "left",
  "axes.titlesize": 10.0,
  "axes.titlepad": 8.0,
  "axes.axisbelow": True,
  "legend.frameon": False,
  "legend.fontsize": 9.5,
  "legend.handlelength": 1.8,
  "legend.columnspacing": 1.4,
  "legend.borderaxespad": 0.2,
  "lines.linewidth": 1.8,
  "lines.markersize": 4.5,
  "xtick.major.size": 3,
  "ytick.major.size": 0,
}


def to_svg(draw: Callable[[Theme], Figure], name: str, title: str) -> str:
  """An <svg> element for the page.

  Args:
    draw: makes the plot.
    name: begins all ids in it, which must differ from those of the other plots.
    title: what is read to those who cannot see it.
  """
  nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
  with matplotlib.rc_context({**_settings(_PAGE), "svg.hashsalt": name}):
    buffer = io.StringIO()
    draw(_PAGE).savefig(buffer, format="svg", transparent=True, metadata=nothing)
  svg = buffer.getvalue()
  svg = svg[svg.index("<svg") :].strip()
  # A style sheet in it would hold for the whole page.
  svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)
  svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
  svg = re.sub(r"(font: (?:\w+ )*[\d.]+px) [^;\"]*", r"\1 var(--font)", svg)
  for variable, color in _PLACEHOLDERS.items():
    svg = svg.replace(color, f"var(--{variable})")
  view = re.search(r'viewBox="[^"]*"', svg)
  assert view
  return re.sub(
    r"<svg[^>]*>",
    # A function's result is taken as it is; a title may hold a backslash.
    lambda _: f'<svg role="img" aria-label="{title}" {view[0]}>',
    svg,
    count=1,
  )


def to_png(draw: Callable[[Theme], Figure]) -> bytes:
  """The plot as a file, on white."""
  with matplotlib.rc_context(_settings(LIGHT)):
    buffer = io.BytesIO()
    draw(LIGHT).savefig(buffer, format="png", dpi=200)
  return buffer.getvalue()


def _settings(theme: Theme) -> dict[Any, Any]:
  return {
    **_SETTINGS,
    "text.color": theme.ink,
    "axes.labelcolor": theme.muted,
    "axes.titlecolor": theme.muted,
    "axes.edgecolor": theme.muted,
    "xtick.color": theme.muted,
    "ytick.color": theme.muted,
    "grid.color": theme.line,
    "axes.facecolor": theme.paper,
    "figure.facecolor": theme.paper,
  }
