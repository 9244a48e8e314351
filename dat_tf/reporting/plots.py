"""The plots of a report, by matplotlib.

A plot of several runs gives each its colour and marker; where runs must not share axes,
each has a plot of its own. A plot of which no run has the figures is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dat_tf.reporting.plot import (
  Line,
  Plot,
  add_legend,
  line_plot,
  make_axes,
  own_name,
  own_title,
  percents,
  sample,
)
from dat_tf.reporting.runs import RunRecord, num_classes
from dat_tf.reporting.theme import MARKERS, Figure, Theme

NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}

# With more classes than this a row of pixels for each is too thin to be read.
MOST_CLASSES = 30


def strength_plots(runs: Sequence[RunRecord]) -> Iterator[Plot]:
  """Accuracy against the radius and the steps of an attack; the loss around images."""
  # A radius of one norm says nothing about another's.
  for norm in dict.fromkeys(run.norm for run in runs if "epsilons" in run.probes):
    shown = {
      i: run
      for i, run in enumerate(runs)
      if run.norm == norm and "epsilons" in run.probes
    }
    lines = [
      Line(i, run.probes["epsilons"], run.probes[key], style, style == "-")
      for i, run in shown.items()
      for key, style in (("epsilon_accuracy", "-"), ("noise_accuracy", ":"))
      if key in run.probes
    ]

    def mark(axes: Axes, theme: Theme, shown: dict[int, RunRecord] = shown) -> None:
      for i, run in shown.items():
        if run.epsilon is not None:
          axes.axvline(run.epsilon, color=theme.run(i), linewidth=0.8, zorder=0.5)

    yield line_plot(
      runs,
      lines,
      name=f"epsilon_{norm}",
      title="Accuracy against ε",
      caption=f"{_probed(shown.values())}The upright line is the ε of the evaluation. "
      "An attack that works brings the accuracy to 0 where ε is large, long before "
      "noise of that size does.",
      xlabel=f"ε, {NORMS.get(str(norm), '')} norm of the perturbation, "
      "pixels in [0, 1]",
      ylabel="Accuracy",
      kinds={"-": "PGD", ":": "random noise"},
      percent=True,
      finish=mark,
    )
  for key, title, unit, caption in (
    (
      "steps_accuracy",
      "Accuracy against K",
      "Accuracy",
      "Where more steps of PGD change nothing, the attack has converged.",
    ),
    (
      "steps_loss",
      "Loss against K",
      "Mean cross-entropy, nats",
      "More steps should raise the loss: where it falls, the gradient misleads.",
    ),
  ):
    lines = [
      Line(i, run.probes["steps"], run.probes[key], markers=True)
      for i, run in enumerate(runs)
      if key in run.probes
    ]
    if lines:
      ticks = sorted({int(step) for line in lines for step in line.x})

      def scale(axes: Axes, theme: Theme, ticks: list[int] = ticks) -> None:
        axes.set_xscale("symlog", linthresh=2)
        axes.set_xticks(ticks, [str(step) for step in ticks])
        axes.minorticks_off()
        axes.set_xlim(ticks[0] - 0.15, 1.15 * ticks[-1])

      yield line_plot(
        runs,
        lines,
        name=key,
        title=title,
        caption=_probed(runs) + caption,
        xlabel="K, steps of PGD",
        ylabel=unit,
        percent=key == "steps_accuracy",
        finish=scale,
      )
  yield from _surface_plots(runs)


def _probed(runs: Iterable[RunRecord]) -> str:
  """How many images plots of probes are of."""
  ids = [run.probes["example_id"] for run in runs if "example_id" in run.probes]
  counts = sorted({len(some) for some in ids})
  return f"On the first {' or '.join(map(str, counts))} test images. " if counts else ""


# Tag in TensorBoard, title, caption, what stands above the upright axis.
_CURVES = (
  ("loss", "Loss in training", "What training minimises.", "Loss, nats"),
  (
    "gradient_norm",
    "Gradient in training",
    "The norm of the mean over all workers, all weights together.",
    "ℓ2 norm of the gradient",
  ),
  ("learning_rate", "Learning rate", "Its warm-up and decay.", "Learning rate"),
)


def training_plots(runs: Sequence[RunRecord]) -> Iterator[Plot]:
  """What TensorBoard has of the training."""
  trained = [i for i, run in enumerate(runs) if run.curves and run.batch_size]
  # Runs with other batches have seen as many images after other numbers of steps.
  images = {
    (i, tag): curve[0] * (runs[i].batch_size or 0)
    for i in trained
    for tag, curve in runs[i].curves.items()
  }
  most = max((x[-1] for x in images.values()), default=0)
  scale, unit = (1e6, "millions") if most >= 2e6 else (1e3, "thousands")
  xlabel = f"Training images seen, {unit}"

  def lines_of(tag: str, style: str = "-") -> list[Line]:
    return [
      Line(i, images[i, tag] / scale, runs[i].curves[tag][1], style, not style)
      for i in trained
      if tag in runs[i].curves
    ]

  accuracies = [
    line
    for tag, style in (
      ("train/robust_accuracy", "-"),
      ("train/accuracy", "--"),
      ("test/robust_accuracy", ""),
      ("test/accuracy", ""),
    )
    for line in lines_of(tag, style)
  ]
  if accuracies:
    yield line_plot(
      runs,
      accuracies,
      name="training_accuracy",
      title="Accuracy in training",
      caption="On the batches of training, means over the epoch so far.",
      xlabel=xlabel,
      ylabel="Accuracy",
      kinds={"-": "under attack", "--": "clean", "": "test data"},
      percent=True,
    )
  for tag, title, caption, ylabel in _CURVES:
    lines = lines_of(f"train/{tag}")
    if lines:
      yield line_plot(
        runs,
        lines,
        name=f"training_{tag}",
        title=title,
        caption=caption,
        xlabel=xlabel,
        ylabel=ylabel,
      )


def class_plots(runs: Sequence[RunRecord]) -> Iterator[Plot]:
  """Accuracy by class, and which class is taken for which."""
  shown = [i for i, run in enumerate(runs) if run.outcomes]
  if not shown:
    return
  yield _classes_plot(runs, shown)
  for i in shown:
    if num_classes(runs[i]) <= MOST_CLASSES:
      yield _confusion_plot(runs, i)


def by_class(run: RunRecord) -> tuple[np.ndarray, np.ndarray]:
  """Clean accuracy and that under the most harmful attack, [classes] each.

  NaN for a class of which there is no image.
  """
  outcomes, classes = run.outcomes[0], num_classes(run)
  count = np.bincount(outcomes.label, minlength=classes)
  right = [
    np.bincount(outcomes.label, weights=hit, minlength=classes)
    for hit in (outcomes.prediction == outcomes.label, outcomes.robust)
  ]
  with np.errstate(invalid="ignore"):
    return right[0] / count, right[1] / count


def confusion(run: RunRecord) -> np.ndarray:
  """[classes, classes]: of the images of a class (row), the share taken for another.

  Under the most harmful attack; 0 in the rows of classes without an image.
  """
  outcomes, classes = run.outcomes[0], num_classes(run)
  counts = np.zeros([classes, classes])
  np.add.at(counts, (outcomes.label, outcomes.adversarial_prediction), 1)
  return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _surface_plots(runs: Sequence[RunRecord]) -> Iterator[Plot]:
  """The loss around images, a plot a run, on one scale."""
  surfaces = {
    i: run.probes["surface"]
    for i, run in enumerate(runs)
    if np.isfinite(run.probes.get("surface", np.nan)).all()
  }
  if not surfaces:
    return
  levels = MaxNLocator(12).tick_values(
    min(surface.min() for surface in surfaces.values()),
    max(surface.max() for surface in surfaces.values()),
  )
  for i, surface in surfaces.items():

    def draw(theme: Theme, i: int = i) -> Figure:
      figure, axes = make_axes(3.7)
      x, y = (runs[i].probes[f"surface_{name}"] for name in ("gradient", "random"))
      heights = surfaces[i].T  # matplotlib's rows go with y
      filled = axes.contourf(x, y, heights, levels, cmap="viridis")
      axes.contour(x, y, heights, levels, colors="white", linewidths=0.4, alpha=0.6)
      axes.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=1.8)
      axes.set(
        xlabel="Along the gradient, units of ε",
        title="Along a random direction, units of ε",
        aspect="equal",
      )
      bar = figure.colorbar(filled, ax=axes, shrink=0.9, pad=0.03)
      bar.set_label("Mean cross-entropy, nats")
      bar.outline.set_visible(False)
      return figure

    yield Plot(
      own_name("surface", runs, i),
      own_title("Loss around images", runs, i),
      "The cross is the images as they are. Gradient attacks need a slope to the right;"
      " where the random direction rises as much, they are lost.",
      f"The mean cross-entropy goes from {surface.min():.2f} to {surface.max():.2f}",
      draw,
    )


def _classes_plot(runs: Sequence[RunRecord], shown: Sequence[int]) -> Plot:
  shares = {i: by_class(runs[i]) for i in shown}
  classes = max(num_classes(runs[i]) for i in shown)
  few = classes <= MOST_CLASSES

  def draw(theme: Theme) -> Figure:
    row = max(0.24, 0.11 * len(shown))
    figure, axes = make_axes(max(2.4, row * classes + 1.1) if few else 3.1)
    for place, (i, (clean, robust)) in enumerate(shares.items()):
      color = theme.run(i)
      if few:
        y = np.arange(len(clean)) + 0.6 * ((place + 0.5) / len(shares) - 0.5)
        axes.hlines(y, robust, clean, color=color, linewidth=1.4, alpha=0.45)
        marks = functools.partial(
          axes.plot,
          ls="none",
          marker=MARKERS[i % len(MARKERS)],
          color=color,
          clip_on=False,
        )
        marks(clean, y, markerfacecolor=theme.paper)
        marks(robust, y)
      else:
        y = np.linspace(0, 1, len(clean))
        axes.plot(np.sort(clean), y, "--", color=color)
        axes.plot(np.sort(robust), y, "-", color=color)
    axes.set(xlim=(0, 1), xlabel="Accuracy of a class")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="x", linewidth=0.7)
    if few:
      axes.set(ylim=(classes - 0.5, -0.5), yticks=range(classes), title="Class")
    else:
      axes.set(title="Share of the classes with at most that accuracy")
      axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    styles = (
      ({"ls": "none", "marker": "o"}, {"ls": "none", "marker": "o", "mfc": theme.paper})
      if few
      else ({"ls": "-"}, {"ls": "--"})
    )
    kinds = [
      sample(theme.ink, label, **style)
      for label, style in zip(("under attack", "clean"), styles)
    ]
    add_legend(figure, theme, runs, set(shown), kinds)
    return figure

  attacks = ", ".join(dict.fromkeys(runs[i].outcomes[0].attack for i in shown))
  return Plot(
    "classes",
    "Accuracy by class",
    f"Under the most harmful attack ({attacks}), and of the images as they are.",
    "; ".join(
      f"{runs[i].name}: lowest under attack {percents(np.nanmin(robust))}, of class "
      f"{np.nanargmin(robust)}"
      for i, (_, robust) in shares.items()
    ),
    draw,
  )


def _confusion_plot(runs: Sequence[RunRecord], index: int) -> Plot:
  run = runs[index]
  shares = confusion(run)
  classes = len(shares)

  def draw(theme: Theme) -> Figure:
    figure, axes = make_axes(min(4.6, 2.2 + 0.24 * classes))
    for (row, column), share in np.ndenumerate(shares):
      # The run's colour, stronger for larger shares, shows on light and dark paper.
      cell = Rectangle((column - 0.5, row - 0.5), 1, 1, lw=0, alpha=share)
      cell.set_facecolor(theme.run(index))
      axes.add_patch(cell)
      if share >= 0.005 and classes <= 15:
        color = theme.paper if share > 0.6 else theme.ink
        text = f"{100 * share:.0f}"
        axes.text(column, row, text, color=color, size=8, ha="center", va="center")
    axes.spines[:].set_visible(False)
    ends = (-0.5, classes - 0.5)
    axes.set(xlim=ends, ylim=ends[::-1], xticks=range(classes), yticks=range(classes))
    axes.set(xlabel="Class found under attack", title="True class", aspect="equal")
    axes.tick_params(length=0, labelsize=min(9.5, 150 / classes))
    return figure

  wrong = shares * (1 - np.eye(classes))
  row, column = np.unravel_index(wrong.argmax(), wrong.shape)
  return Plot(
    own_name("confusion", runs, index),
    own_title("Confusion under attack", runs, index),
    f"Under {run.outcomes[0].attack}, in percent of the images of the true class.",
    f"Most often class {row} is taken for class {column}: {percents(wrong.max())}",
    draw,
  )
