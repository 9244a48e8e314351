"""The report: what is on the page, of one run and of several."""

from __future__ import annotations

import html
import io
import json
import os
import re
import unittest

import browser
import numpy as np
import report_files
import tensorflow as tf
from absl.testing import parameterized
from PIL import Image
from report_case import ReportCase, drawn

from dat_tf import config as config_lib
from dat_tf.program import modes
from dat_tf.reporting import plots, tables, theme
from dat_tf.workers.cluster import Cluster

PLOTS = {
  "epsilon_linf",
  "steps_accuracy",
  "steps_loss",
  "surface",
  "classes",
  "confusion",
  "training_accuracy",
  "training_loss",
  "training_gradient_norm",
  "training_learning_rate",
}
SECTIONS = ["Accuracy", "Attack strength", "Classes", "Images", "Training"]
SECTIONS += ["Communication", "Settings"]


def words(fragment):
  return " ".join(html.unescape(re.sub("<[^>]*>", " ", fragment)).split())


def rows(page, section):
  """{head of a row: [its cells]} of the table in a section."""
  part = page[page.index(f">{section}</h2>") :]
  found = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", part, re.S)
  return {
    words(name): [words(cell) for cell in re.findall(r"<td>(.*?)</td>", cells, re.S)]
    for name, cells in found[: part[: part.index("</table>")].count('scope="row"')]
  }


def brightness(color):
  """0 to 255, of CSS' rgb(...)."""
  return np.mean([float(number) for number in re.findall(r"[\d.]+", color)[:3]])


def sections(page):
  return re.findall(r'<h2 id="[\w-]+">(.*?)</h2>', page)


class PageTest(ReportCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.page = cls.report("at")

  def test_each_plot_is_on_the_page_and_a_file(self):
    figures = re.findall(
      r'<figure class="card" id="plot-(\w+)">(.*?)</figure>', self.page, re.S
    )
    self.assertEqual({name for name, _ in figures}, PLOTS)
    self.assertLen(figures, len(PLOTS))
    for name, figure in figures:
      self.assertRegex(figure, r'<svg role="img" aria-label="[^"]{30,}"', name)
    files = {path.stem: path for path in (self.folder / "at" / "report").iterdir()}
    self.assertEqual(set(files), PLOTS | {"gallery"})
    for path in files.values():
      self.assertEqual(path.suffix, ".png")
      self.assertGreater(np.asarray(Image.open(path).convert("L")).std(), 1, path)

  def test_sections_in_order(self):
    self.assertEqual(sections(self.page), SECTIONS)

  def test_needs_nothing_else(self):
    self.assertNotIn("<script", self.page)
    self.assertNotIn("@import", self.page)
    for source in re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)', self.page):
      self.assertRegex("".join(source), r"^(#|data:)")

  def test_ids_are_unique_and_found(self):
    ids = re.findall(r'\sid="([^"]*)"', self.page)
    self.assertLen(set(ids), len(ids))
    named = re.findall(r'(?:href="#|url\(#|labelledby=")([^")]*)', self.page)
    self.assertNotEmpty(named)
    self.assertEqual(set(named) - set(ids), set())

  def test_plots_take_the_colors_of_the_page(self):
    for svg in re.findall(r"<svg.*?</svg>", self.page, re.S):
      self.assertNotIn("#0000", svg)
      self.assertNotIn("<style", svg)
      self.assertIn("fill: var(--muted)", svg)

  def test_accuracies(self):
    table = rows(self.page, "Accuracy")
    names = ["none: images as they are", "apgd-ce", "square"]
    self.assertEqual(list(table), [*names, "the worst of them for each image"])
    correct = [
      o["adversarial_prediction"] == o["label"] for o in self.outcomes.values()
    ]
    clean = next(iter(self.outcomes.values()))
    every = [clean["prediction"] == clean["label"], *correct, np.all(correct, axis=0)]
    for (cell,), right in zip(table.values(), every):
      self.assertStartsWith(cell, f"{100 * np.mean(right):.1f} % ")
    self.assertLess(np.mean(every[3]), min(map(np.mean, correct)))

  def test_no_warning_of_what_was_checked(self):
    self.assertIn("None of the checks for attacks that mislead found", self.page)

  def test_communication(self):
    table = rows(self.page, "Communication")
    curves = self.read("at")[0].curves
    self.assertEqual(table["Sent by a worker in a step"], ["1,004 bytes"])
    self.assertEqual(table["as part of fp32's"], ["0.251"])
    self.assertEqual(table["Images a second"], ["640.5"])
    encode = np.median(curves["train/encode_ms"][1])
    self.assertEqual(table["Encode"], [f"{encode:.1f} ms"])
    self.assertNotIn("Decode", table)

  def test_settings_of_one_run_are_those_not_at_their_defaults(self):
    table = rows(self.page, "Settings")
    self.assertEqual(table["--epsilon"], ["0.1", "8/255"])
    self.assertNotIn("--learning_rate", table)
    self.assertNotIn("--model_dir", table)

  def test_gallery(self):
    pictures = re.findall(r'<div class="triple">(.*?)</div></li>', self.page, re.S)
    self.assertLen(pictures, 4)
    probes = self.read("at")[0].probes
    right = {"✓": True, "✗": False}
    for i, picture in enumerate(pictures):
      before, after = re.findall(r"([✓✗]) (\d)", picture)
      label = probes["gallery_label"][i]
      for (mark, found), name in (
        (before, "gallery_prediction"),
        (after, "gallery_adversarial_prediction"),
      ):
        self.assertEqual(int(found), probes[name][i])
        self.assertEqual(right[mark], int(found) == label)
      stored = [
        np.asarray(
          Image.open(
            io.BytesIO(
              tf.io.decode_base64(
                data.replace("+", "-").replace("/", "_").rstrip("=")
              ).numpy()
            )
          ),
          float,
        )
        for data in re.findall(r'src="data:image/png;base64,([^"]*)"', picture)
      ]
      image, adversarial = (
        255 * probes[name][i, ..., 0]
        for name in ("gallery_image", "gallery_adversarial")
      )
      self.assertAllClose(stored[0], image, atol=0.51)
      self.assertAllClose(stored[2], adversarial, atol=0.51)
      # The largest change of a pixel is stretched to black or white.
      changes = probes["gallery_adversarial"] - probes["gallery_image"]
      stretched = 127.5 + (adversarial - image) / (2 * np.abs(changes).max())
      self.assertAllClose(stored[1], stretched, atol=0.6)

  @unittest.skipIf(browser.MISSING, browser.MISSING or "")
  def test_in_a_browser(self):
    def color(selector, name):
      return driver.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
        selector,
        name,
      )

    seen = []
    with browser.opened() as driver:
      for scheme, media, width in (
        ("light", "screen", 1200),
        ("dark", "screen", 390),
        ("dark", "print", 800),
      ):
        with self.subTest(scheme=scheme, media=media, width=width):
          browser.prefer(driver, scheme, media)
          browser.resize(driver, width, 900)
          driver.get((self.folder / "at" / "report.html").as_uri())
          self.assertEqual(browser.errors(driver), [])
          loaded = "return performance.getEntriesByType('resource').map(x => x.name)"
          network = [x for x in driver.execute_script(loaded) if x[:5] != "data:"]
          self.assertEqual(network, [])
          self.assertEqual(  # nothing sticks out
            driver.execute_script("return document.documentElement.scrollWidth"), width
          )
          boxes = driver.execute_script(
            "return [...document.querySelectorAll('figure svg')].map(x => ["
            "x.closest('figure').id, x.getBoundingClientRect().width])"
          )
          self.assertEqual({name for name, _ in boxes}, {f"plot-{x}" for x in PLOTS})
          for name, size in boxes:
            self.assertBetween(size, 250, width, name)
          broken = "return [...document.images].filter(x => !x.naturalWidth).length"
          self.assertEqual(driver.execute_script(broken), 0)
          seen.append(
            [color("body", "color"), color("figure svg text", "fill")]
            + [color("nav", "display")]
          )
    (ink, muted, shown), (dark_ink, dark_muted, _), printed = seen
    for light, dark in ((ink, dark_ink), (muted, dark_muted)):
      self.assertLess(brightness(light), 110)
      self.assertGreater(brightness(dark), 150)
    self.assertEqual(printed, [ink, muted, "none"])  # on paper it is light
    self.assertNotEqual(shown, "none")


class ChangedTest(ReportCase, parameterized.TestCase):
  """Other runs, each but a part of what a run can leave."""

  def test_the_interval_is_wilson_s(self):
    # Its ends are where the test of the share at the end just does not reject.
    for share, examples in ((0.0, 10), (0.3, 50), (1.0, 30)):
      cell = tables.accuracy_cell(share, examples)
      low, high = (float(end) / 100 for end in cell.note.split("–"))
      self.assertBetween(share, low, high)
      for end in (low, high):
        if end != share:
          error = np.sqrt(end * (1 - end) / examples)
          self.assertAllClose(abs(share - end) / error, 1.96, rtol=0.02)

  def test_epsilons_are_fractions_where_they_were(self):
    numbers = (8 / 255, 2 / 255, 0.2, 0.1, 1.0, 1e-4, 128.5)
    shown = [tables.number(number) for number in numbers]
    self.assertEqual(shown, ["8/255", "2/255", "0.2", "0.1", "1", "0.0001", "128.5"])

  def test_certified_accuracy(self):
    directory = self.folder / "certified"
    report_files.write_run(directory, plots=False, certified_accuracy=0.25)
    (cell,) = rows(self.report("certified"), "Accuracy")["any within ε: certified"]
    self.assertStartsWith(cell, "25.0 % ")

  def test_versions_that_trained_and_that_evaluated(self):
    trained = {"dat_tf": "0.1.0", "python": "3.11.7", "tensorflow": "2.15.1"}
    directory = self.folder / "moved"
    evaluated = {**trained, "tensorflow": "2.21.0"}
    report_files.write_run(
      directory, plots=False, trained_with=trained, evaluated_with=evaluated
    )
    found = rows(self.report("moved"), "Software")
    self.assertEqual(found["Python"], ["3.11.7"])
    (cell,) = found["TensorFlow"]
    self.assertRegex(cell, r"2\.15\.1\s*evaluated with 2\.21\.0")
    self.assertNotIn("Keras", found)

  def test_warnings(self):
    report_files.write_run(self.folder / "unchecked", plots=False)
    self.assertNotIn("None of the checks", self.report("unchecked"))
    message = "The loss does not rise, <b>whatever</b> the steps."
    warnings = [{"check": "steps", "message": message}]
    report_files.write_run(self.folder / "warned", plots=False, warnings=warnings)
    page = self.report("warned")
    self.assertEqual(sections(page)[0], "Warnings")
    self.assertNotIn("None of the checks", page)
    self.assertIn("&lt;b&gt;whatever&lt;/b&gt;", page)
    self.assertNotIn("<b>whatever", page)

  def test_what_is_missing_is_left_out(self):
    # As a training leaves it, without its logs and settings.
    directory = self.folder / "bare"
    unknown = {"standard_accuracy": None, "robust_accuracy": {}}
    report_files.write_run(directory, plots=False, **unknown)
    (directory / "config.flags").unlink()
    path = directory / "results.json"
    figures = json.loads(path.read_text())
    del figures["warnings"]
    path.write_text(json.dumps(figures))
    page = self.report("bare")
    self.assertEqual(sections(page), ["Communication"])
    self.assertNotIn("<svg", page)
    self.assertNotIn("None of the checks", page)
    self.assertEqual(os.listdir(directory / "report"), [])

  def test_probes_of_earlier_weights_are_left_out(self):
    # Trained on, and not yet attacked again.
    unknown = {"standard_accuracy": None, "robust_accuracy": {}, "probed_images": 0}
    report_files.write_run(self.folder / "on", **unknown)
    self.assertEqual(
      sections(self.report("on")), ["Training", "Communication", "Settings"]
    )

  def test_a_run_under_way_shows_its_curves(self):
    directory = self.folder / "running"
    report_files.write_logs(directory, np.random.default_rng(0))
    self.assertEqual(sections(self.report("running")), [])
    report_files.write_run(directory, plots=False)
    os.remove(directory / "results.json")
    self.assertEqual(sections(self.report("running")), ["Training", "Settings"])

  def test_names_that_html_means_otherwise(self):
    name = "<img src=x onerror=alert(1)> &quot; ' $x$"
    report_files.write_run(self.folder / name)
    report_files.write_run(self.folder / "plain", plots=False)
    page = self.report("together", name, "plain")
    self.assertNotIn("<img src=x", page)
    self.assertIn("&lt;img src=x", page)
    self.assertIn(html.escape(name).replace("&#x27;", "&#39;"), page)

  def test_mode_report_needs_no_data(self):
    for name in ("one", "other"):
      report_files.write_run(self.folder / name, plots=False)
    flags = ["", "--mode=report", f"--model_dir={self.folder}/one"]
    config = config_lib.parse([*flags, f"--runs={self.folder}/other"])
    modes.run(config, Cluster.from_environment())
    page = (self.folder / "one" / "report.html").read_text()
    self.assertIn("side by side", page)

  def test_with_many_classes_the_most_frequent_confusions_are_a_table(self):
    directory = self.folder / "many"
    label = np.repeat(np.arange(100, dtype=np.int32), 4)
    adversarial = label.copy()
    adversarial[28:32] = [7, 50, 50, 50]  # of class 7
    adversarial[400 - 1] = 0  # of class 99
    outcomes = {**self.outcomes["apgd-ce"], "label": label, "prediction": label}
    report_files.write_run(directory, plots=False)
    (directory / "evaluation").mkdir()
    outcomes["adversarial_prediction"] = adversarial
    np.savez(directory / "evaluation" / "apgd-ce.npz", **outcomes)
    page = self.report("many")
    table = rows(page, "Classes")
    self.assertEqual(table, {"7 for 50": ["75.0 %"], "99 for 0": ["25.0 %"]})
    self.assertIn('id="plot-classes"', page)
    self.assertNotIn('id="plot-confusion"', page)


class SeveralRunsTest(ReportCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    report_files.write_run(cls.folder / "a/one", flags=["--seed=1"])
    flags = ["--learning_rate=0.5", "--seed=1"]
    report_files.write_run(cls.folder / "b/one", seed=1, flags=flags, plots=False)
    flags = ["--norm=l2", "--seed=2"]
    report_files.write_run(cls.folder / "b/two", seed=2, flags=flags, norm="l2")

  def test_columns_are_the_runs(self):
    page = self.report("compared", "a/one", "b/one", "b/two")
    head = page[page.index("<thead>") : page.index("</thead>")]
    columns = [words(x) for x in re.findall(r"<th [^>]*>(.*?)</th>", head, re.S)]
    self.assertEqual(columns, ["Attack", "a/one", "b/one", "b/two"])
    self.assertEqual(
      rows(page, "Settings"),
      {
        "--learning_rate": ["0.01", "0.5", "0.01"],
        "--norm": ["linf", "linf", "l2"],
        "--seed": ["1", "1", "2"],
      },
    )
    figures = set(re.findall(r'<figure class="card" id="plot-(\w+)"', page))
    # Of what cannot share axes each run has its own; one has none.
    own = {f"{name}_{i}" for name in ("surface", "confusion") for i in (1, 3)}
    shared = PLOTS - {"surface", "confusion"}
    self.assertEqual(figures, shared | own | {"epsilon_l2"})
    self.assertLen(re.findall(r'<h3 class="own">', page), 2)

  def test_runs_that_were_not_measured_alike_say_so(self):
    row = "not measured alike"
    alike = self.report("alike", "a/one", "b/one")
    self.assertNotIn(row, rows(alike, "Accuracy"))
    unlike = rows(self.report("unlike", "a/one", "b/two"), "Accuracy")[row]
    self.assertEqual(unlike, ["ℓ∞, ε = 0.1 400 images", "ℓ2, ε = 0.1 400 images"])

  def test_plots_of_an_earlier_report_go(self):
    self.report("again", "a/one")
    before = set(os.listdir(self.folder / "again/report"))
    self.report("again", "a/one", "b/two")
    after = set(os.listdir(self.folder / "again/report"))
    self.assertIn("gallery.png", before - after)
    self.assertIn("gallery_1.png", after - before)

  def test_the_directory_s_own_run_comes_first_and_once(self):
    report_files.write_run(self.folder / "b/four", plots=False)
    page = self.report("b/four", "b/one", "b/four")
    listed = re.search(r'<ul class="runs">(.*?)</ul>', page, re.S)[1]
    names = [words(name) for name in re.findall(r"</span>([^<]+)<span", listed)]
    self.assertEqual(names, ["four", "one"])

  def test_lines_have_the_color_of_their_run(self):
    read = self.read("a/one", "b/two")
    (axes,) = drawn(plots.strength_plots(read))["steps_accuracy"].axes
    for line, run, color in zip(axes.lines, read, theme.LIGHT.runs):
      self.assertEqual(line.get_color(), color)
      expected = np.stack([run.probes["steps"], run.probes["steps_accuracy"]], 1)
      self.assertAllClose(line.get_xydata(), expected)
