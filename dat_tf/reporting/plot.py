"""What all plots of a report share: axes, lines in their run's colour, legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from dat_tf.reporting.runs import RunRecord
from dat_tf.reporting.theme import MARKERS, Figure, Theme

# Inches; as wide as a phone.
_WIDTH = 4.8


class Plot(NamedTuple):
  """A plot.

  Attributes:
    name: of its file, without suffix.
    title: what it shows, in a few words.
    caption: how to read it.
    values: what it shows, for those who cannot see it.
    draw: makes it.
  """

  name: str
  title: str
  caption: str
  values: str
  draw: Callable[[Theme], Figure]


class Line(NamedTuple):
  """A line of a plot.

  Attributes:
    run: the place of its run among those of the report.
    x: float [points].
    y: float [points].
    style: matplotlib's; empty for markers alone.
    markers: whether each point has one.
  """

  run: int
  x: np.ndarray
  y: np.ndarray
  style: str = "-"
  markers: bool = False


def line_plot(
  runs: Sequence[RunRecord],
  lines: Sequence[Line],
  *,
  name: str,
  title: str,
  caption: str,
  xlabel: str,
  ylabel: str,
  kinds: Optional[dict[str, str]] = None,
  percent: bool = False,
  finish: Callable[[Axes, Theme], None] = lambda axes, theme: None,
) -> Plot:
  """Lines in the colours of their runs.

  Args:
    runs: all of the report.
    lines: what is drawn, at least one.
    name: see `Plot`.
    title: see `Plot`.
    caption: see `Plot`.
    xlabel: what stands below, with its unit.
    ylabel: what stands above the upright axis, with its unit.
    kinds: what the styles of lines mean.
    percent: whether y are shares, 0 to 1.
    finish: changes the axes at the end.
  """
  kinds = {
    style: kind
    for style, kind in (kinds or {}).items()
    if any(line.style == style for line in lines)
  }

  def draw(theme: Theme) -> Figure:
    figure, axes = make_axes()
    for line in lines:
      axes.plot(
        line.x,
        line.y,
        color=theme.run(line.run),
        linestyle=line.style or "none",
        marker=MARKERS[line.run % len(MARKERS)] if line.markers else None,
        clip_on=not percent,
      )
    axes.set(xlabel=xlabel, title=ylabel)
    axes.grid(axis="y", linewidth=0.7)
    axes.margins(x=0.03)
    if percent:
      axes.set_ylim(0, 1)
      axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    finish(axes, theme)
    handles = [
      sample(theme.ink, kind, ls=style or "none", marker="" if style else "o")
      for style, kind in kinds.items()
    ]
    add_legend(figure, theme, runs, {line.run for line in lines}, handles)
    return figure

  def told(line: Line) -> str:
    first, last = (
      percents(y) if percent else f"{y:.3g}" for y in (line.y[0], line.y[-1])
    )
    who = ", ".join(x for x in (runs[line.run].name, kinds.get(line.style)) if x)
    return f"{who}: {first} at {line.x[0]:.4g}, {last} at {line.x[-1]:.4g}"

  return Plot(name, title, caption, "; ".join(map(told, lines)), draw)


def make_axes(height: float = 3.1) -> tuple[Figure, Axes]:
  """One pair of axes in a figure of so many inches."""
  figure = Figure(figsize=(_WIDTH, height), layout="constrained")
  axes = figure.subplots()
  axes.spines["left"].set_visible(False)
  return figure, axes


def add_legend(
  figure: Figure,
  theme: Theme,
  runs: Sequence[RunRecord],
  present: set[int],
  kinds: Sequence[Line2D],
) -> None:
  """Names the runs, where there are several, and the kinds, where there are."""
  handles = [
    sample(theme.run(i), runs[i].name, marker=MARKERS[i % len(MARKERS)])
    for i in sorted(present)
    if len(runs) > 1
  ]
  handles += kinds if len(kinds) > 1 else []
  if handles:
    longest = max(len(str(handle.get_label())) for handle in handles)
    figure.legend(
      handles=handles,
      loc="outside upper left",
      # As many in a row as a phone has room for.
      ncols=max(1, min(len(handles), 56 // (longest + 6))),
      labelcolor=theme.ink,
    )


def sample(color: str, label: str, **style: Any) -> Line2D:
  """What a legend shows beside a name."""
  return Line2D([], [], color=color, label=label, **style)


def own_name(name: str, runs: Sequence[RunRecord], index: int) -> str:
  """The name of a file that is one run's alone."""
  return name if len(runs) == 1 else f"{name}_{index + 1}"


def own_title(title: str, runs: Sequence[RunRecord], index: int) -> str:
  """The title of a plot that is one run's alone."""
  return title if len(runs) == 1 else f"{title}: {runs[index].name}"


def percents(share: float) -> str:
  """A share as text."""
  return f"{100 * share:.1f} %"
