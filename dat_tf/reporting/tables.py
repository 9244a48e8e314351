"""The tables of a report: figures in rows, runs in columns."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from dat_tf import config as config_lib
from dat_tf.reporting import plots
from dat_tf.reporting.runs import RunRecord, num_classes

# Classes of which a table of all pairs has its place in memory.
_MOST_PAIRS = 4096


class Cell(NamedTuple):
  """A table's cell.

  Attributes:
    text: what it says; empty where a run has no such figure.
    note: stands beside it, smaller.
    share: 0 to 1, shown as a bar; None for none.
  """

  text: str = ""
  note: str = ""
  share: Optional[float] = None


class Table(NamedTuple):
  """A table.

  Attributes:
    caption: what it tells.
    corner: heads the first column.
    columns: heads the others.
    rows: what heads a row, and its cells.
  """

  caption: str
  corner: str
  columns: list[str]
  rows: list[tuple[str, list[Cell]]]


def accuracy_table(runs: Sequence[RunRecord]) -> Optional[Table]:
  """Clean, under each attack, and by proof."""

  def measured(key: str) -> list[Cell]:
    return [
      accuracy_cell(run.results.get(key), run.results.get("test_examples"))
      for run in runs
    ]

  rows = [("none: images as they are", measured("standard_accuracy"))]
  conditions = [
    Cell(ball(run), f"{count:,} images") if count else Cell()
    for run in runs
    for count in [run.results.get("test_examples")]
  ]
  if len(set(conditions) - {Cell()}) > 1:
    rows.insert(0, ("not measured alike", conditions))
  for attack in dict.fromkeys(name for run in runs for name in run.accuracies):
    cells = [
      accuracy_cell(run.accuracies.get(attack), run.results.get("test_examples"))
      for run in runs
    ]
    rows.append((attack, cells))
  rows.append(("the worst of them for each image", [_worst(run) for run in runs]))
  rows.append(("any within ε: certified", measured("certified_accuracy")))
  return _table(
    "Share of the test images that are classified right, with its 95 % interval.",
    "Attack",
    runs,
    rows,
  )


def communication_table(runs: Sequence[RunRecord]) -> Optional[Table]:
  """What a training step sends, how fast it is, and where the time goes."""

  def figure(key: str, unit: str = "", digits: int = 0) -> Callable[[RunRecord], str]:
    def text(run: RunRecord) -> str:
      value = run.results.get(key)
      return "" if value is None else f"{value:,.{digits}f}{unit}"

    return text

  def median(tag: str, form: str) -> Callable[[RunRecord], str]:
    def text(run: RunRecord) -> str:
      curve = run.curves.get(f"train/{tag}")
      return "" if curve is None else form.format(np.median(curve[1]))

    return text

  def part_of_fp32(run: RunRecord) -> str:
    sent, full = (
      run.results.get(key) for key in ("bytes_sent_per_step", "fp32_bytes_per_step")
    )
    return f"{sent / full:.3f}" if sent is not None and full else ""

  def precisions(run: RunRecord) -> str:
    trained, attacked = (
      run.settings.get("precision"),
      run.results.get("attack_precision"),
    )
    return f"{trained}, {attacked}" if trained and attacked else ""

  def all_reduce(run: RunRecord) -> str:
    name = run.settings.get("all_reduce", "")
    quantized = name in ("auto", "one_sided", "two_sided")
    return f"{name}, {run.settings['bits']} bits" if quantized else name

  rows: list[tuple[str, Callable[[RunRecord], str]]] = [
    ("Workers", figure("num_workers")),
    ("All-reduce", all_reduce),
    ("Images of a step", figure("global_batch_size")),
    ("Images a second", figure("examples_per_second", digits=1)),
    ("Precision of training, and of its attack", precisions),
    ("Sent by a worker in a step", figure("bytes_sent_per_step", " bytes")),
    ("as part of fp32's", part_of_fp32),
    ("From last gradient to last mean", median("reduction_ms", "{:.1f} ms")),
    ("Encode", median("encode_ms", "{:.1f} ms")),
    ("Exchange", median("exchange_ms", "{:.1f} ms")),
    ("Decode", median("decode_ms", "{:.1f} ms")),
    ("Error of quantization", median("quantization_error", "{:.3f}")),
  ]
  if not any(run.results.get("bytes_sent_per_step") is not None for run in runs):
    return None
  return _table(
    "Times and errors are medians of what the chief logged.",
    "Communication",
    runs,
    [(name, [Cell(text(run)) for run in runs]) for name, text in rows],
  )


def settings_table(runs: Sequence[RunRecord]) -> Optional[Table]:
  """The flags that differ between runs; of a single run, from their defaults."""
  known = [run for run in runs if run.settings]
  if not known:
    return None
  # These name the run, or what was last done with it.
  names = sorted(set(known[0].settings) - {"model_dir", "mode", "runs"})
  single = len(runs) == 1
  reference = dataclasses.asdict(config_lib.Settings()) if single else known[0].settings
  differing = [
    name
    for name in names
    if any(run.settings[name] != reference[name] for run in known)
  ]
  rows = []
  for name in differing:
    cells = [Cell(_setting(run.settings.get(name))) for run in runs]
    if single:
      cells.append(Cell(_setting(reference[name])))
    rows.append((f"--{name}", cells))
  if not rows:
    return None
  table = _table(
    "Flags that are not at their defaults, or follow from others."
    if single
    else "Flags in which the runs differ.",
    "Flag",
    runs,
    rows,
  )
  if table and single:
    return table._replace(columns=["value", "default"])
  return table


def software_table(runs: Sequence[RunRecord]) -> Optional[Table]:
  """The versions that trained and, where they were others, that evaluated."""

  def cell(run: RunRecord, part: str) -> Cell:
    trained, evaluated = (
      run.results.get(key, {}).get(part, "")
      for key in ("trained_with", "evaluated_with")
    )
    if not trained or not evaluated or trained == evaluated:
      return Cell(trained or evaluated)
    return Cell(trained, f"evaluated with {evaluated}")

  titles = {"dat_tf": "DAT-TF", "tensorflow": "TensorFlow"}
  rows = [
    (titles.get(part, part.capitalize()), [cell(run, part) for run in runs])
    for part in ("dat_tf", "commit", "python", "tensorflow", "keras")
  ]
  return _table("The versions that the figures come from.", "Software", runs, rows)


def confused_tables(run: RunRecord, most: int = 20) -> list[Table]:
  """The pairs of classes most often confused; of a run with too many for a plot."""
  if not run.outcomes or not plots.MOST_CLASSES < num_classes(run) <= _MOST_PAIRS:
    return []
  wrong = plots.confusion(run) * (1 - np.eye(num_classes(run)))
  places = np.argsort(wrong, axis=None)[::-1][:most]
  rows = [
    (f"{row} for {column}", [Cell(plots.percents(wrong[row, column]))])
    for row, column in zip(*np.unravel_index(places, wrong.shape))
    if wrong[row, column] > 0
  ]
  caption = f"Under {run.outcomes[0].attack}; of the images of the true class."
  return [Table(caption, "True class, taken for", [run.name], rows)]


def accuracy_cell(accuracy: Optional[float], examples: Optional[int]) -> Cell:
  """An accuracy, and Wilson's 95 % interval (1927), which is sound at 0 and 1 too."""
  if accuracy is None:
    return Cell()
  text = f"{100 * accuracy:.1f} %"
  if not examples:
    return Cell(text, share=accuracy)
  z, n = 1.96, examples
  middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
  half = z * math.sqrt(accuracy * (1 - accuracy) / n + (z / (2 * n)) ** 2)
  half /= 1 + z * z / n
  interval = f"{100 * (middle - half):.1f}–{100 * (middle + half):.1f}"
  return Cell(text, interval, accuracy)


def ball(run: RunRecord) -> str:
  """Norm and radius of the perturbations, empty if they are not known."""
  if run.norm is None or run.epsilon is None:
    return ""
  return f"{plots.NORMS.get(run.norm, run.norm)}, ε = {number(run.epsilon)}"


def _worst(run: RunRecord) -> Cell:
  """Accuracy under all attacks whose outcomes on the same examples are known."""
  outcomes = run.outcomes
  same = [
    outcome.robust
    for outcome in outcomes
    if np.array_equal(outcome.example_id, outcomes[0].example_id)
  ]
  if len(same) < 2:
    return Cell()
  robust = functools.reduce(np.logical_and, same)
  return accuracy_cell(float(robust.mean()), len(robust))


def _setting(value: Any) -> str:
  if value is None:
    return ""
  if isinstance(value, (list, tuple)):
    return ", ".join(map(_setting, value))
  if isinstance(value, bool):
    return "yes" if value else "no"
  return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
  """A fraction of 255 where it is one, as epsilons often are."""
  of_255 = round(value * 255)
  is_fraction = 1 <= of_255 < 255 and math.isclose(value, of_255 / 255, rel_tol=1e-6)
  if is_fraction and value != float(f"{value:.3g}"):  # but 0.2 is 0.2
    return f"{of_255}/255"
  return f"{value:.6g}"


def _table(
  caption: str,
  corner: str,
  runs: Sequence[RunRecord],
  rows: Sequence[tuple[str, list[Cell]]],
) -> Optional[Table]:
  """Without the rows that are empty; None if all are."""
  full = [(name, cells) for name, cells in rows if any(cell.text for cell in cells)]
  columns = [run.name for run in runs]
  return Table(caption, corner, columns, full) if full else None
