"""Writes MODEL_DIR/report.html, a page that needs nothing beside it, and its plots."""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import markupsafe
import tensorflow as tf

import dat_tf
from dat_tf.base import files
from dat_tf.base.errors import UserError, one_line
from dat_tf.base.run_directory import RunDirectory
from dat_tf.reporting import gallery, plots, tables, theme
from dat_tf.reporting.plot import Plot, own_name
from dat_tf.reporting.runs import RunRecord, holds_run, read_runs


def write_report(model_dir: str, others: Sequence[str] = ()) -> str:
  """Writes `model_dir`/report.html, and each plot as PNG in `model_dir`/report.

  Args:
    model_dir: the directory of a run, which then comes first; or one of no run, for a
      report of the others alone.
    others: directories of runs that are shown beside it.

  Returns:
    The path of the page.

  Raises:
    UserError: there is no run to report on, a file of one is damaged, or the report
      cannot be written.
  """
  mine = [model_dir] if holds_run(model_dir) or not others else []
  # The same run beside itself tells nothing.
  runs = read_runs(list(dict.fromkeys(path.rstrip("/") for path in [*mine, *others])))
  directory = RunDirectory(model_dir)
  path = directory.report
  try:
    files.write_text(path, _render(runs, directory.plots))
  except tf.errors.OpError as error:
    raise UserError(
      f"{path} cannot be written ({one_line(error)}): make room, or choose another "
      "`model_dir`."
    ) from None
  return path


def _render(runs: Sequence[RunRecord], directory: str) -> str:
  """The page's text; the plots' files are written on the way."""
  tf.io.gfile.makedirs(directory)
  for plot in tf.io.gfile.glob(os.path.join(directory, "*.png")):
    tf.io.gfile.remove(plot)  # perhaps of other runs
  single = len(runs) == 1
  galleries = []
  for i, run in enumerate(runs):
    if "gallery_image" in run.probes:
      galleries.append(gallery.gallery(run))
      _write(directory, own_name("gallery", runs, i), gallery.gallery_png(run))
  # Title of a section, and what it shows; in the page's order.
  sections: dict[str, Any] = {
    "Warnings": _warnings(runs),
    "Accuracy": tables.accuracy_table(runs),
    "Attack strength": _drawn(plots.strength_plots(runs), directory),
    "Classes": _drawn(plots.class_plots(runs), directory),
    "Images": galleries,
    "Training": _drawn(plots.training_plots(runs), directory),
    "Communication": tables.communication_table(runs),
    "Settings": tables.settings_table(runs),
    "Software": tables.software_table(runs),
  }
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template("page.html").render(
    title=f"Robustness of {runs[0].name}" if single else "Robustness, side by side",
    runs=[{"name": run.name, "about": _about(run)} for run in runs],
    tiles=_tiles(runs[0]) if single else [],
    sections={name: shown for name, shown in sections.items() if shown},
    # What was not probed was not checked.
    unsuspicious=[
      run.name for run in runs if run.probes and run.results.get("warnings") == []
    ],
    confused=[table for run in runs for table in tables.confused_tables(run)],
    colors=len(theme.LIGHT.runs),
    light=_variables(theme.LIGHT),
    dark=_variables(theme.DARK),
    version=dat_tf.__version__,
  )


def _drawn(some: Iterable[Plot], directory: str) -> list[dict[str, Any]]:
  """Plots for the page; each is also written as a file."""
  drawn = []
  for plot in some:
    _write(directory, plot.name, theme.to_png(plot.draw))
    title = html.escape(f"{plot.title}. {plot.values}")
    svg = markupsafe.Markup(theme.to_svg(plot.draw, plot.name, title))
    drawn.append({**plot._asdict(), "svg": svg})
  return drawn


def _write(directory: str, name: str, png: bytes) -> None:
  with files.complete_file(os.path.join(directory, f"{name}.png")) as temporary:
    with tf.io.gfile.GFile(temporary, "wb") as file:
      file.write(png)


def _warnings(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
  return [
    {"run": run.name if len(runs) > 1 else "", **warning}
    for run in runs
    for warning in run.results.get("warnings") or []
  ]


def _about(run: RunRecord) -> str:
  """What was measured, in a line."""
  parts = [
    run.settings.get("model_path") or run.settings.get("model"),
    tables.ball(run),
    f"{run.results['test_examples']:,} test images"
    if run.results.get("test_examples")
    else None,
  ]
  return ", ".join(part for part in parts if part)


def _tiles(run: RunRecord) -> list[tuple[str, tables.Cell]]:
  """The few figures that one looks for first."""
  clean, examples = (
    run.results.get(key) for key in ("standard_accuracy", "test_examples")
  )
  tiles = [("Clean accuracy", tables.accuracy_cell(clean, examples))]
  if run.accuracies:
    attack, accuracy = min(run.accuracies.items(), key=lambda item: item[1])
    cell = tables.accuracy_cell(accuracy, examples)
    tiles.append(("Robust accuracy", cell._replace(note=f"under {attack}")))
  seconds, speed = (
    run.results.get(key) for key in ("train_seconds", "examples_per_second")
  )
  if seconds:
    tiles.append(("Training", tables.Cell(_duration(seconds))))
  if speed:
    tiles.append(("Speed", tables.Cell(f"{speed:,.0f}", "images a second")))
  return [(name, cell) for name, cell in tiles if cell.text]


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, hours = round(seconds / 60), seconds / 3600
  return f"{minutes} min" if minutes < 120 else f"{hours:.1f} h"


def _variables(colors: theme.Theme) -> str:
  return " ".join(f"--{name}: {color};" for name, color in colors.variables().items())
