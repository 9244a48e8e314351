"""A run's directory: what is left half done, damaged, cleared, or another run's."""

from __future__ import annotations

import contextlib
import io
import json
import os

import numpy as np
from config_case import ConfigCase, parse

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError
from dat_tf.program import directory


class DirectoryTest(ConfigCase):
  def write(self, name, content="x"):
    path = self.model_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

  def names(self):
    paths = (path for path in self.model_dir.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(self.model_dir)) for path in paths)

  def config(self, **values):
    return parse(**{**values, "model_dir": self.model_dir})

  def claim(self, **values):
    lock = directory.claim(self.config(**values))
    self.addCleanup(lock.release)
    return lock

  def check(self, **values):
    with contextlib.redirect_stdout(io.StringIO()) as output:
      directory.check(self.config(**values))
    return output.getvalue()

  def assert_damaged(self, path, **values):
    with self.assertRaisesRegex(
      UserError, f"{path} (cannot be read|is not UTF-8)"
    ) as caught:
      self.check(**values)
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_what_killed_runs_left_goes_and_nothing_else(self):
    hexadecimal = "0123456789abcdef" * 2
    for name in (
      f".results.json.{hexadecimal}",
      f"evaluation/.square.npz.{hexadecimal}",
      "checkpoints/epoch-2_temp/part-00000-of-00001.index",
      "tmpabc_12fg/new/saved_model.pb",
      ".export.abc_12fg/new/saved_model.pb",
    ):
      self.write(name)
    kept = [".hidden", "notes.txt", "tmpabc_12fg.txt", "tmpmy_data/new/x/old/y"]
    kept += ["tmp_notes1/mine.txt", "checkpoints/epoch-1.index", "logs/train/events"]
    for name in kept:
      self.write(name)
    self.claim()
    self.assertEqual(self.names(), sorted([*kept, "lock"]))

  def test_an_export_that_was_moved_aside_comes_back(self):
    self.write(".export.abcd1234/old/saved_model.pb", "first")
    self.write(".export.abcd1234/new/saved_model.pb", "second")
    self.write(".serving.abcd1234/old/saved_model.pb", "first")
    self.write("serving/saved_model.pb", "second")
    self.claim()
    self.assertEqual(
      self.names(), ["export/saved_model.pb", "lock", "serving/saved_model.pb"]
    )
    self.assertEqual((self.model_dir / "export/saved_model.pb").read_text(), "first")
    self.assertEqual((self.model_dir / "serving/saved_model.pb").read_text(), "second")

  def test_overwrite_clears_what_a_run_wrote(self):
    for name in (
      *("config.flags", "results.json", "results_32.json", "report.html"),
      "events.jsonl",
      *("checkpoints/checkpoint", "checkpoints/epoch-1.index", "best/epoch-1.index"),
      *("export/saved_model.pb", "export.keras", "serving/saved_model.pb"),
      *("logs/train/events", "evaluation/square.npz", "report/loss.png"),
    ):
      self.write(name)
    kept = ["notes.txt", "results_mine.csv", "data/train-00000-of-00001"]
    for name in kept:
      self.write(name)
    self.claim().release()
    self.assertContainsSubset({"config.flags", "results_32.json"}, set(self.names()))
    self.claim(overwrite=True, mode="train").release()
    self.assertEqual(self.names(), sorted(kept))

  def test_names_that_tensorflow_takes_for_patterns(self):
    for name in ("lr[0.1]", "what?", "all*", "a\\b"):
      self.assert_refused(model_dir=name, names=["--model_dir=", "pattern"])
      self.assert_refused(
        pseudo_label_dir=name, names=["--pseudo_label_dir=", "pattern"]
      )
    self.assert_refused(pseudo_label_dir="a,b", names=["--pseudo_label_dir=", "','"])
    parse(model_dir="a,b")

  def test_overwrite_is_for_training(self):
    for mode in ("evaluate", "export", "report"):
      self.assert_refused(mode=mode, overwrite=True, names=["--overwrite", "train"])
    self.assert_refused(
      mode="train", overwrite=True, initialize_from="m", names=["--initialize_from"]
    )

  def test_a_second_run_is_refused_before_anything_is_cleared(self):
    self.write("results.json", "{}")
    self.claim()
    with self.assertRaisesRegex(UserError, f"in use by process {os.getpid()} "):
      self.claim(overwrite=True, mode="train")
    self.assertEqual(self.names(), ["lock", "results.json"])

  def test_settings_bind_only_beside_a_checkpoint(self):
    config_lib.save(self.config(epsilon=0.1))
    self.assertEqual(self.check(epsilon=0.2), "")
    self.write("checkpoints/epoch-1.index")
    self.assertEqual(self.check(epsilon=0.1), "")
    with self.assertRaisesRegex(UserError, "--epsilon=0.1.*--epsilon=0.2"):
      self.check(epsilon=0.2)

  def test_checkpoints_without_settings(self):
    self.write("checkpoints/epoch-1.index")
    self.assertRegex(self.check(), r"\AWarning: .*no config.flags.*\n\Z")

  def test_damaged_results(self):
    good = {"standard_accuracy": 0.5, "robust_accuracy": {"pgd-2": 0.25}, "epochs": 3}
    self.write("results.json", json.dumps(good))
    self.assertEqual(self.check(), "")
    for content in (
      *("{", json.dumps(good)[:40], "[]", "3", b"\xff\xfe{}", "[" * 100_000),
      *('{"epochs": "3"}', '{"epochs": -1}', '{"standard_accuracy": 2}'),
      *('{"standard_accuracy": NaN}', '{"robust_accuracy": null}'),
      *('{"robust_accuracy": {"../../x": 0.5}}', '{"robust_accuracy": {"a": "b"}}'),
      *('{"norm": "<svg>"}', '{"warnings": [3]}', '{"warnings": {"a": 1}}'),
    ):
      for name in ("results.json", "results_32.json"):
        path = self.write(name, content)
        self.assert_damaged(path)
        path.unlink()

  def test_damaged_outcomes(self):
    path = self.write("evaluation/square.npz")
    np.savez_compressed(path, label=np.arange(100), fingerprint=np.array("0"))
    self.assertEqual(self.check(), "")
    whole = path.read_bytes()
    middle = len(whole) // 3
    for content in (
      *(b"", b"garbage", whole[:-30], whole[: len(whole) // 2]),
      whole[:middle] + b"\0\1\2\3\4\5\6\7" + whole[middle + 8 :],
    ):
      path.write_bytes(content)
      self.assert_damaged(path)
    np.savez(path, label=np.array([object()]), fingerprint=np.array("0"))
    self.assert_damaged(path)
    np.savez(path, label=np.arange(3))
    self.assert_damaged(path)
