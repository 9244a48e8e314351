"""The report's figures: drawn are the numbers that were measured."""

from __future__ import annotations

import io
import shutil

import numpy as np
import report_files
import tensorflow as tf
from PIL import Image
from report_case import ReportCase, drawn

from dat_tf.reporting import plots, theme


class PlotsTest(ReportCase):
  """The figures that are drawn are those that were measured."""

  def setUp(self):
    super().setUp()
    (self.run_,) = self.read("at")
    self.probes = self.run_.probes

  def lines(self, figure):
    return [line.get_xydata() for line in figure.axes[0].lines]

  def test_axes_say_what_and_in_which_unit(self):
    for some in (plots.strength_plots, plots.class_plots, plots.training_plots):
      for name, figure in drawn(some([self.run_])).items():
        axes = figure.axes[0]
        self.assertGreater(len(axes.get_xlabel()), 5, name)
        self.assertGreater(len(axes.get_title()), 3, name)

  def test_plots_of_probes_say_of_how_many_images(self):
    count = len(self.probes["example_id"])
    for plot in plots.strength_plots([self.run_]):
      if "surface" not in plot.name:
        self.assertStartsWith(plot.caption, f"On the first {count} test images. ")

  def test_epsilon(self):
    figure = drawn(plots.strength_plots([self.run_]))["epsilon_linf"]
    pgd, noise, radius = self.lines(figure)
    epsilons = self.probes["epsilons"]
    self.assertAllClose(pgd, np.stack([epsilons, self.probes["epsilon_accuracy"]], 1))
    self.assertAllClose(noise, np.stack([epsilons, self.probes["noise_accuracy"]], 1))
    self.assertAllClose(radius[:, 0], [0.1, 0.1])

  def test_classes(self):
    outcomes = self.outcomes["apgd-ce"]  # the most harmful
    clean, robust = plots.by_class(self.run_)
    for c in range(report_files.CLASSES):
      of_class = outcomes["label"] == c
      for name, accuracies in (
        ("prediction", clean),
        ("adversarial_prediction", robust),
      ):
        self.assertAllClose(accuracies[c], np.mean(outcomes[name][of_class] == c))
    figure = drawn(plots.class_plots([self.run_]))["classes"]
    hollow, filled = self.lines(figure)
    self.assertAllClose(hollow[:, 0], clean)
    self.assertAllClose(filled[:, 0], robust)

  def test_confusion(self):
    outcomes = self.outcomes["apgd-ce"]
    shares = plots.confusion(self.run_)
    for true, found in np.ndindex(shares.shape):
      of_class = outcomes["adversarial_prediction"][outcomes["label"] == true]
      self.assertAllClose(shares[true, found], np.mean(of_class == found))
    axes = drawn(plots.class_plots([self.run_]))["confusion"].axes[0]
    for text in axes.texts:
      found, true = text.get_position()
      self.assertEqual(text.get_text(), f"{100 * shares[true, found]:.0f}")

  def test_training_curves_count_images(self):
    figures = drawn(plots.training_plots([self.run_]))
    (loss,) = self.lines(figures["training_loss"])
    steps, values = self.run_.curves["train/loss"]
    self.assertAllEqual(steps, range(2, 21, 2))
    self.assertAllClose(loss[:, 0], 128 * steps / 1000)
    self.assertAllClose(loss[:, 1], values)
    self.assertIn("thousands", figures["training_loss"].axes[0].get_xlabel())
    self.assertLen(self.lines(figures["training_accuracy"]), 4)

  def test_what_a_restarted_run_wrote_again_holds(self):
    directory = self.folder / "restarted"
    shutil.copytree(self.folder / "at", directory)
    directory = directory / "logs" / "train"
    writer = tf.summary.create_file_writer(str(directory), filename_suffix=".later")
    with writer.as_default():
      tf.summary.scalar("loss", 77.0, 20)
    writer.close()
    (again,) = self.read("restarted")
    expected = self.run_.curves["train/loss"].copy()
    expected[1, -1] = 77
    self.assertAllClose(again.curves["train/loss"], expected)

  def test_the_surface_s_gradient_direction_is_level(self):
    axis = self.probes["surface_gradient"]
    self.probes["surface"] = np.tile(axis[:, None], [1, len(axis)])  # of the gradient
    (plot,) = (p for p in plots.strength_plots([self.run_]) if p.name == "surface")
    png = theme.to_png(plot.draw)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)
    height, width = pixels.shape
    middle = pixels[height // 2, width // 4 : width // 2]
    self.assertGreater(middle[-1], middle[0] + 20)
    upright = pixels[height // 3 : 2 * height // 3, width // 4 + 20]
    self.assertLess(np.ptp(upright[10:-10]), 60)


if __name__ == "__main__":
  tf.test.main()
