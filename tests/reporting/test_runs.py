"""What a report reads of runs, and what it says of files that are damaged."""

from __future__ import annotations

import shutil
import struct

import numpy as np
import report_files
import tensorflow as tf
from absl.testing import parameterized
from report_case import ReportCase

from dat_tf.base.errors import UserError
from dat_tf.data import framing
from dat_tf.reporting.runs import read_runs


class RunsTest(ReportCase, parameterized.TestCase):
  def test_mistakes(self):
    with self.assertRaisesRegex(UserError, "nowhere holds neither results.json nor"):
      self.report("nowhere")
    with self.assertRaisesRegex(UserError, "nowhere holds neither results.json nor"):
      self.report("at", "nowhere")
    for name in ("results.json", "evaluation/square.npz"):
      path = self.folder / "at" / name
      whole = path.read_bytes()
      path.write_bytes(whole[: len(whole) // 2])
      with self.assertRaisesRegex(UserError, f"{name} cannot be read .*: remove it"):
        self.read("at")
      path.write_bytes(whole)
    (self.folder / "file").write_text("")
    with self.assertRaisesRegex(UserError, "file/report.html cannot be written"):
      self.report("file", "at")

  @parameterized.parameters('"><svg onload=alert(1)>', "/../../x", "../x", "a b", "")
  def test_a_norm_or_an_attack_of_another_kind(self, name):
    directory = self.folder / "odd"
    for figures in ({"norm": name}, {"robust_accuracy": {name: 0.5}}):
      shutil.rmtree(directory, ignore_errors=True)
      report_files.write_run(directory, plots=False, **figures)
      before = sorted(self.folder.rglob("*"))
      with self.assertRaisesRegex(UserError, "results.json cannot be read"):
        self.report("odd")
      self.assertEqual(sorted(self.folder.rglob("*")), before)

  @parameterized.parameters(
    ("standard_accuracy", "0.5"),
    ("standard_accuracy", 1.5),
    ("standard_accuracy", [0.5]),
    ("robust_accuracy", [0.5]),
    ("robust_accuracy", {"a": "b"}),
    ("robust_accuracy", {"a": None}),
    ("test_examples", 1.5),
    ("test_examples", -1),
    ("test_examples", True),
    ("epsilon", "x"),
    ("epsilon", 10**400),
    ("train_seconds", "1"),
    ("examples_per_second", {}),
    ("trained_with", "x"),
    ("trained_with", {"python": 3}),
    ("warnings", "x"),
    ("warnings", [1]),
    ("warnings", [{"check": "x"}]),
    ("fingerprint", 1),
    ("norm", 3),
    ("norm", ["linf"]),
    ("global_batch_size", "1"),
  )
  def test_figures_of_another_kind(self, name, value):
    directory = self.folder / "kinds"
    shutil.rmtree(directory, ignore_errors=True)
    report_files.write_run(directory, plots=False, **{name: value})
    with self.assertRaisesRegex(UserError, "results.json cannot be read .*: remove it"):
      self.report("kinds")

  @parameterized.parameters(
    b"\xff\xfe{}",
    b"[]",
    b"3",
    b"[" * 100_000,
    b'{"epsilon": NaN}',
    b'{"epsilon": 1e999}',
  )
  def test_results_that_are_none(self, content):
    (self.folder / "none").mkdir(exist_ok=True)
    (self.folder / "none" / "results.json").write_bytes(content)
    with self.assertRaisesRegex(UserError, "results.json (cannot be|is not UTF-8)"):
      self.report("none")

  def test_settings_that_are_not_utf_8(self):
    directory = self.folder / "settings"
    report_files.write_run(directory, plots=False)
    with open(directory / "config.flags", "ab") as file:
      file.write(b"--train_data=\xff\n")
    with self.assertRaisesRegex(UserError, "config.flags is not UTF-8"):
      self.report("settings")

  @parameterized.parameters(
    ("apgd-ce", "label", lambda x: x.astype("f4")),
    ("apgd-ce", "label", lambda x: x[:, None]),
    ("apgd-ce", "label", lambda x: x - 10),
    ("apgd-ce", "prediction", lambda x: x[:5]),
    ("apgd-ce", "adversarial_prediction", lambda x: x + 2**30),
    ("apgd-ce", "label", None),
    ("probes", "epsilons", lambda x: x[:3]),
    ("probes", "epsilons", lambda x: x * np.nan),
    ("probes", "steps", lambda x: x.astype("S")),
    ("probes", "surface", lambda x: x[:2]),
    ("probes", "gallery_image", lambda x: x[..., 0]),
    ("probes", "gallery_adversarial", lambda x: x[:, :2]),
    ("probes", "gallery_confidence", lambda x: x + 5),
    ("probes", "gallery_label", None),
    ("probes", "fingerprint", None),
  )
  def test_arrays_of_another_kind(self, file, name, change):
    directory = self.folder / "arrays"
    shutil.rmtree(directory, ignore_errors=True)
    report_files.write_run(directory)
    path = directory / "evaluation" / f"{file}.npz"
    arrays = dict(np.load(path))
    if change:
      arrays[name] = change(arrays[name])
    else:
      del arrays[name]
    np.savez(path, **arrays)
    with self.assertRaisesRegex(UserError, rf"{file}.npz cannot be read .*: remove"):
      self.report("arrays")

  def test_arrays_that_grow_without_measure(self):
    directory = self.folder / "bomb"
    report_files.write_run(directory)
    path = directory / "evaluation" / "probes.npz"
    np.savez_compressed(path, fingerprint=np.array("0"), surface=np.zeros(2**26))
    with self.assertRaisesRegex(UserError, "probes.npz cannot be read .*unpacks to"):
      self.report("bomb")

  def test_event_files(self):
    directory = self.folder / "events"
    report_files.write_logs(directory, np.random.default_rng(0))
    (path,) = (directory / "logs" / "train").iterdir()
    whole = path.read_bytes()
    expected = self.read("events")[0].curves
    self.assertLen(expected["train/loss"][0], 10)
    for length in (2**36, 2**62, 2**63, 2**64 - 1):
      head = struct.pack("<Q", length)
      head += struct.pack("<I", framing._masked_crc32c(head))
      path.write_bytes(whole + head + b"rest")
      np.testing.assert_equal(self.read("events")[0].curves, expected)
    path.write_bytes(whole[:-20])  # as while it is written
    self.assertLen(self.read("events")[0].curves["train/loss"][0], 10)
    with tf.io.TFRecordWriter(str(path)) as writer:
      writer.write(b"no event")
    with self.assertRaisesRegex(UserError, "tfevents.* cannot be read"):
      self.report("events")
    event = tf.compat.v1.Event(step=1)
    value = event.summary.value.add(tag="loss")
    value.metadata.plugin_data.plugin_name = "scalars"
    value.tensor.dtype = tf.float32.as_datatype_enum
    value.tensor.tensor_shape.dim.add(size=2**40)
    value.tensor.float_val.append(1.0)
    with tf.io.TFRecordWriter(str(path)) as writer:
      writer.write(event.SerializeToString())
    self.assertNotIn("train/loss", self.read("events")[0].curves)

  def test_outcomes_of_other_weights_or_images_are_left_out(self):
    directory = self.folder / "stale"
    for figures, expected in (
      ({}, {"apgd-ce", "square"}),
      ({"test_examples": 300}, set()),
      ({"fingerprint": "1"}, set()),
    ):
      shutil.rmtree(directory, ignore_errors=True)
      report_files.write_run(directory, **figures)
      (run,) = read_runs([str(directory)])
      self.assertEqual({outcome.attack for outcome in run.outcomes}, expected)
      self.assertEqual(bool(run.probes), "fingerprint" not in figures)
