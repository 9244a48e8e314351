"""The pages of docs/: their examples run, and their names are those of the code."""

from __future__ import annotations

import ast
import html.parser
import importlib
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import types
import unittest
import urllib.parse

import numpy as np
import pytest
import tensorflow as tf

import dat_tf
from dat_tf import config as config_lib
from dat_tf.config.declaring import declarations
from dat_tf.objectives import Batch
from workers import run_workers

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PROGRAM = ROOT / "dat_tf" / "program"
# By their paths in docs/; two others have tables that are wider than a line.
PAGES = {
  str(path.relative_to(DOCS)): path.read_text(encoding="utf-8")
  for path in sorted(DOCS.rglob("*.md"))
  if path.name not in ("DIFFERENCES.md", "RESULTS.md")
}
# In this order: the later ones use what the earlier ones define.
EXAMPLES = [
  f"howto/{name}.md"
  for name in (
    *("own_images", "own_model", "own_attack", "own_objective", "own_all_reduce"),
    "evaluation",
  )
]
TRAINING = "model, metrics = "  # in each example that trains
# Of the launcher, tfrecords/, the data service, benchmarks/ and pip, not of run_dat.py.
OTHER_FLAGS = {"flagfile", "help", "num_workers", "source", "output_dir", "host"}
OTHER_FLAGS |= {"skip_bad_images", "json", "tiny", "max_restarts", "restart_backoff"}
OTHER_FLAGS |= {"signal"}  # of SLURM


def _hook():
  """docs/generate.py, which is no module of a package."""
  spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


GENERATE = _hook()
MADE = {path: page() for path, page in GENERATE.PAGES.items()}


def _blocks(page, *languages):
  """Language, line and text of each block of code, of a page of docs/."""
  pattern = rf"^```({'|'.join(languages)})\n(.*?)^```"
  for block in re.finditer(pattern, PAGES[page], re.M | re.S):
    yield block[1], PAGES[page].count("\n", 0, block.start(2)), block[2]


def _commands(page):
  """The words of each command of a page."""
  for _, _, text in _blocks(page, "sh"):
    for line in text.replace("\\\n", " ").splitlines():
      yield shlex.split(line, comments=True)


def _network():
  layers = tf.keras.layers
  return tf.keras.Sequential(
    [tf.keras.Input((6, 6, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)]
  )


def _run_examples():
  """Runs all examples, one after the other; returns what they left on this worker."""
  # The network is attacked as it is drawn, and some draws see one class everywhere.
  tf.keras.utils.set_random_seed(0)
  rng = np.random.default_rng(0)
  names = {
    "images": rng.uniform(size=(128, 6, 6, 1)).astype("f4"),
    "labels": rng.integers(0, 3, size=128),
    "make_network": _network,
  }
  runs = []
  folder = tempfile.TemporaryDirectory()
  os.chdir(folder.name)
  for page in EXAMPLES:
    for _, line, text in _blocks(page, "python"):
      # Blank lines before it: a traceback then shows the page's line numbers.
      exec(compile("\n" * line + text, f"docs/{page}", "exec"), names)
      if TRAINING in text:
        weights = [v.numpy() for v in names["model"].classifier.trainable_variables]
        runs.append({"weights": weights, "metrics": names["metrics"]})

  written = tf.data.TFRecordDataset(tf.io.gfile.glob("data/mine/test-*-of-00004"))
  outcome = names["outcomes"]["apgd"]
  images, labels = tf.constant(names["images"]), tf.constant(names["labels"])
  classifier = _network()
  brighter, darker = lambda f, x, *rest: x + 0.1, lambda f, x, *rest: x - 0.1
  batch = Batch(images, labels, weights=None, keys=None, is_labeled=None)
  worse = names["WorseOf"](brighter, darker)(classifier, images, labels, keys=None)
  pairing = names["logit_pairing"](None, 1)(classifier, batch, images[::-1])
  settings = types.SimpleNamespace(epsilon=0.1, step_size=0.05, attack_steps=2)
  keys = dat_tf.stream_keys(0, 0, tf.range(len(labels)))
  by_name = names["worse_of_two"](settings, None)(classifier, images, labels, keys)
  return {
    "runs": runs,
    "labels": names["labels"],
    "worse": classifier(worse).numpy(),
    "shifted": [classifier(images + shift).numpy() for shift in (0.1, -0.1)],
    "pairing": [tensor.numpy() for tensor in pairing],
    "by_name": np.abs(by_name - names["images"]).max(),
    "records": sum(1 for _ in written),
    "right": np.mean(names["predictions"] == names["labels"]),
    "robust": outcome.robust_accuracy,
    "farthest": np.abs(outcome.images - names["images"]).max(),
    "bytes": names["all_reduce"].bytes_sent([tf.Variable(tf.zeros([20, 100]))], 2),
  }


def _cross_entropy(logits, labels):
  return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), labels]


class ExamplesTest(tf.test.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workers = run_workers(_run_examples, 2)

  def test_all_are_run(self):
    with_python = {page for page in PAGES if [*_blocks(page, "python")]}
    self.assertEqual(with_python, {*EXAMPLES, "tutorial.md"})

  def test_each_trains_two_workers_alike(self):
    first, second = (worker["runs"] for worker in self.workers)
    self.assertLen(first, sum(PAGES[page].count(TRAINING) for page in EXAMPLES))
    for mine, theirs in zip(first, second):
      self.assertEqual(mine["metrics"], theirs["metrics"])
      self.assertEqual(mine["metrics"]["examples"], 128)
      self.assertEqual(
        set(mine["metrics"]), {"loss", "accuracy", "robust_accuracy", "examples"}
      )
      for a, b in zip(mine["weights"], theirs["weights"]):
        self.assertTrue(np.all(np.isfinite(a)))
        self.assertAllEqual(a, b)

  def test_arrays_become_records(self):
    self.assertEqual(self.workers[0]["records"], 128)

  def test_arrays_are_attacked(self):
    worker = self.workers[0]
    self.assertBetween(worker["robust"], 0.0, worker["right"] - 0.05)
    self.assertAllClose(worker["farthest"], 0.1)

  def test_the_attack_is_the_worse_of_two_for_each_example(self):
    worker = self.workers[0]
    losses = [_cross_entropy(x, worker["labels"]) for x in worker["shifted"]]
    self.assertAllClose(
      _cross_entropy(worker["worse"], worker["labels"]), np.max(losses, 0), atol=1e-5
    )
    self.assertTrue(0 < np.sum(losses[0] > losses[1]) < len(losses[0]))

  def test_the_attack_of_the_command_line_keeps_to_its_ball(self):
    self.assertAllClose(self.workers[0]["by_name"], 0.1)

  def test_the_objective_is_that_of_numpy(self):
    worker = self.workers[0]
    losses, clean, attacked = worker["pairing"]
    expected = _cross_entropy(attacked, worker["labels"])
    expected += ((clean - attacked) ** 2).mean(axis=1)
    self.assertAllClose(losses, expected, atol=1e-5)

  def test_the_quantizer_sends_half_of_the_ring_s_bytes(self):
    self.assertEqual(self.workers[0]["bytes"], 2 * 2000)


@pytest.mark.long
class TutorialTest(unittest.TestCase):
  def test_all_of_it_runs(self):
    with tempfile.TemporaryDirectory() as folder:
      for name in ("run_dat.py", "tfrecords", "flags"):
        pathlib.Path(folder, name).symlink_to(ROOT / name)
      path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
      environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
      shells = {"sh": ["bash", "-e", "-c"], "python": [sys.executable, "-c"]}
      written = []
      for language, line, text in _blocks("tutorial.md", *shells):
        done = subprocess.run(
          [*shells[language], text],
          cwd=folder,
          env=environment,
          capture_output=True,
          text=True,
        )
        self.assertEqual(done.returncode, 0, f"line {line}: {done.stderr}")
        written.append(done.stdout)
      for name in ("config.flags", "results.json", "report.html"):
        self.assertTrue(pathlib.Path(folder, "runs/digits_dat_pgd", name).exists())
      figures = re.findall(r"(?:clean|under PGD): ([\d.]+)", written[-1])
      clean, attacked = map(float, figures)
      self.assertGreater(clean, 0.9)
      self.assertGreater(attacked, 0.5)
      self.assertLess(attacked, clean)


class NamesTest(unittest.TestCase):
  def test_flags_exist(self):
    known = declarations(config_lib.Settings).keys() | OTHER_FLAGS
    for page, text in PAGES.items():
      self.assertEqual(set(re.findall(r"--(\w+)", text)) - known, set(), page)

  def test_commands_are_accepted(self):
    count = 0
    for page in PAGES:
      for words in _commands(page):
        if "run_dat.py" not in words:
          continue
        own = [
          word.replace("=flags/", f"={ROOT}/flags/")
          for word in words[words.index("run_dat.py") + 1 :]
          if not word.startswith("--flagfile=runs/")  # which is not there
        ]
        needed = ["--model_dir=m", "--train_data=a", "--test_data=b"]
        config_lib.parse(["run_dat.py", *needed, *own])
        count += 1
    self.assertGreater(count, 10)

  def test_flags_page_has_each_flag_once_in_order(self):
    page = MADE["reference/flags.md"]
    names = re.findall(r"^### `--(\w+)`", page, re.M)
    self.assertEqual(sorted(names), sorted(declarations(config_lib.Settings)))
    for first, second in (("mode", "train_data"), ("train_data", "test_data")):
      self.assertLess(names.index(first), names.index(second))
    for told in ("Default: `8/255`", "Range: (0, inf)", "`pgd`: projected gradient"):
      self.assertIn(told, page)

  def test_what_a_later_run_may_change(self):
    sections = re.split(r"^### ", MADE["reference/flags.md"], flags=re.M)[1:]
    free = {
      re.match(r"`--(\w+)`", section)[1]
      for section in sections
      if "A later run may change it: yes" in section
    }
    self.assertEqual(free, config_lib.MAY_CHANGE)

  def test_tables_have_each_method(self):
    page = GENERATE.with_tables(PAGES["explanation/attacks_and_objectives.md"])
    self.assertNotIn("(table of", page)
    for method in (*config_lib.ATTACKS.values(), *config_lib.OBJECTIVES.values()):
      row = re.search(rf"^\| `{method.name}` \| .*$", page, re.M)[0]
      self.assertIn(method.help, row)
      for name in method.own:
        self.assertIn(f"`--{name}`", row)

  def test_tables_have_the_defaults(self):
    for name, rule, written in (("pgd", "10", "2.5 ε / K"), ("yopo", "5", "0.25 ε")):
      row = re.search(rf"^\| `{name}` \|.*$", GENERATE.attack_table(), re.M)[0]
      self.assertIn(f" | {rule} | {written} | ", row)
    row = re.search(r"^\| `trades` \|.*$", GENERATE.objective_table(), re.M)[0]
    self.assertIn(" | any attack | 6 | ", row)

  def test_public_names_are_in_the_reference(self):
    self.assertEqual(set(GENERATE.PUBLIC), set(dat_tf._ROOMS))
    for room in GENERATE.PUBLIC:
      for name in importlib.import_module(f"dat_tf.{room}").__all__:
        self.assertIn(f"::: dat_tf.{room}.{name}\n", MADE["reference/api.md"])

  def test_every_key_of_the_results_is_explained(self):
    written = {
      key.value
      for name in ("training.py", "evaluating.py")
      for node in ast.walk(ast.parse((PROGRAM / name).read_text("utf-8")))
      if isinstance(node, ast.Dict)
      and re.search("standard_accuracy|certified_accuracy", ast.unparse(node))
      for key in node.keys
      if key is not None
    }
    page = PAGES["reference/run_directory.md"]
    table = page[page.index("| key |") : page.index("## Events")]
    self.assertEqual(set(re.findall(r"^\| `(\w+)`", table, re.M)), written)

  def test_every_warning_is_explained(self):
    source = (ROOT / "dat_tf/evaluation/checks.py").read_text("utf-8")
    checks = {
      re.sub(r"\{\w+\}", "NAME", check)
      for check in re.findall(r'(?:found\[f?|^ +)"([^" ]+)"(?:\] =|: f")', source, re.M)
    }
    self.assertGreater(len(checks), 10)
    page = PAGES["howto/evaluation.md"]
    table = page[page.index("| `check` |") + 1 :]
    self.assertEqual(set(re.findall(r"^\| `(\w+)` \|", table, re.M)), checks)

  def test_paths_exist(self):
    folders = "benchmarks|dat_tf|docs|flags|tests|tfrecords"
    pattern = rf"(?<![\w/.])((?:{folders})/[\w/.]*|(?:README|CONTRIBUTING)\.md)"
    paths = {path for text in PAGES.values() for path in re.findall(pattern, text)}
    self.assertGreater(len(paths), 15)
    for path in paths:
      self.assertTrue((ROOT / path.rstrip(".")).exists(), path)

  def test_make_docs_counts_warnings(self):
    recipe = re.search(r"mkdocs build (.*)", (ROOT / "Makefile").read_text("utf-8"))[1]
    self.assertIn("--strict", recipe)
    self.assertNotIn("quiet", recipe)  # which keeps warnings from being counted

  def test_nobody_names_the_guide_that_was(self):
    for path in ("README.md", "CONTRIBUTING.md", "docs/DIFFERENCES.md"):
      self.assertNotIn("GUIDE", (ROOT / path).read_text("utf-8"))

  def test_links_of_the_files_beside_docs_lead_somewhere(self):
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
      for link in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text("utf-8")):
        if "://" not in link:
          self.assertTrue((ROOT / link).exists(), f"{name}: {link}")

  def test_lines_are_short(self):
    for page, text in PAGES.items():
      for line in text.splitlines():
        self.assertLessEqual(len(line), 88, f"{page}: {line}")

  def test_no_sentence_twice(self):
    seen = {}
    for page, text in PAGES.items():
      prose = re.sub(r"^```.*?^```|^[|#].*?$", "", text, flags=re.M | re.S)
      for sentence in re.split(r"(?<=[.:!?])\s+|\n\n", prose):
        words = " ".join(sentence.split())
        if len(words) > 60:
          self.assertIsNone(seen.get(words), f"{page}: {words}")
          seen[words] = page


class _Links(html.parser.HTMLParser):
  """What a page links to, what it loads, and the anchors that it has."""

  def __init__(self, page):
    super().__init__()
    self.links, self.loaded, self.anchors = [], [], set()
    self.feed(page.read_text(encoding="utf-8"))

  def handle_starttag(self, tag, attributes):
    values = dict(attributes)
    self.anchors.add(values.get("id"))
    if tag == "a" and values.get("href"):
      self.links.append(values["href"])
    if tag in ("script", "img") and values.get("src"):
      self.loaded.append(values["src"])
    if tag == "link" and values.get("rel") in ("stylesheet", "icon"):
      self.loaded.append(values["href"])


WITHOUT = [
  name
  for name in ("mkdocs", "mkdocstrings", "material")
  if importlib.util.find_spec(name) is None
]


@unittest.skipIf(WITHOUT, f"the docs extra is not installed: no {', '.join(WITHOUT)}")
class SiteTest(unittest.TestCase):
  @classmethod
  def setUpClass(cls):
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.site = pathlib.Path(folder.name).resolve()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    cls.built = subprocess.run(
      [*command, f"--site-dir={folder.name}"],
      cwd=ROOT,
      env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
      capture_output=True,
      text=True,
    )
    cls.pages = {path: _Links(path) for path in cls.site.rglob("*.html")}

  def setUp(self):
    self.assertEqual(self.built.returncode, 0, self.built.stderr)

  def test_builds_without_a_warning(self):
    self.assertNotIn("WARNING", self.built.stderr)

  def test_every_page_is_there(self):
    for page in (*PAGES, *MADE, "RESULTS.md", "DIFFERENCES.md"):
      path = "" if page == "index.md" else page.removesuffix(".md")
      self.assertTrue((self.site / path / "index.html").is_file(), page)

  def test_links_lead_somewhere(self):
    for page, links in self.pages.items():
      if page.name == "404.html":  # its links begin at the server's root
        continue
      for link in (*links.links, *links.loaded):
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
          continue
        target = page.parent / parts.path if parts.path else page
        target = target / "index.html" if target.is_dir() else target
        told = f"{page.relative_to(self.site)}: {link}"
        self.assertTrue(target.is_file(), told)
        anchor = urllib.parse.unquote(parts.fragment)
        if anchor and target.suffix == ".html":
          self.assertIn(anchor, self.pages[target.resolve()].anchors, told)

  def test_nothing_is_loaded_from_elsewhere(self):
    for page, links in self.pages.items():
      for link in links.loaded:
        self.assertFalse(urllib.parse.urlsplit(link).netloc, f"{page.name}: {link}")

  def test_every_public_name_has_its_place(self):
    anchors = self.pages[self.site / "reference/api/index.html"].anchors
    for room in GENERATE.PUBLIC:
      for name in GENERATE.public_names(room):
        self.assertIn(f"dat_tf.{room}.{name}", anchors)


if __name__ == "__main__":
  unittest.main()
