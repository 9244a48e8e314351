"""The flags that a run keeps, and which of them a later one may change."""

from __future__ import annotations

import dataclasses
import os
from unittest import mock

import tensorflow as tf
from absl.testing import parameterized
from config_case import COMPANY, OTHER, ConfigCase, parse

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError

# The list that the documentation of a run's directory promises, written out once more.
MAY_CHANGE = {
  "mode",
  "model_dir",
  "epochs",
  "evaluate_every",
  "early_stopping",
  "test_data",
  "evaluation_attack_steps",
  "evaluation_step_size",
  "attacks",
  "evaluation_examples",
  "probe_images",
  "logits",
  "source_model_path",
  "source_input_range",
  "source_probabilities",
  "log_every",
  "checkpoint_steps",
  "grace_seconds",
  "checkpoint_minutes",
  "verify_every",
  "pictures",
  "checkpoints_to_keep",
  "communication",
  "export_formats",
  "bytes_per_pack",
  "collective_timeout",
  "start_timeout",
  "unsafe_model",
  "skip_bad_records",
  "data_service",
  "pseudo_label_dir",
  "pseudo_labels",
  "confidence_threshold",
  "runs",
  "profile_steps",
  "overwrite",
  "channels",
}


class SavedTest(ConfigCase):
  def test_what_no_run_writes(self):
    for line in ("--flagfile=/dev/zero", "--flagfile /dev/zero", "some words", "-x"):
      self.model_dir.mkdir(exist_ok=True)
      (self.model_dir / "config.flags").write_text(f"--epsilon=0.1\n{line}\n")
      with self.assertRaisesRegex(UserError, "config.flags cannot be read"):
        config_lib.load(str(self.model_dir))

  def save(self, **values):
    config = parse(**{**values, "model_dir": self.model_dir})
    config_lib.save(config)
    return config

  def reopened(self):
    flagfile = self.model_dir / "config.flags"
    return config_lib.parse(["run_dat.py", f"--flagfile={flagfile}"])

  def test_what_may_change(self):
    self.assertEqual(config_lib.MAY_CHANGE, MAY_CHANGE)

  def test_the_saved_flagfile_reproduces_every_value(self):
    for name, value in ({"seed": "0"} | OTHER).items():
      saved = self.save(**{**COMPANY.get(name, {}), name: value})
      if name != "overwrite":
        self.assertEqual(self.reopened(), saved)

  def test_a_flagfile_does_not_clear_again_what_it_once_cleared(self):
    self.assertTrue(self.save(mode="train", overwrite=True).overwrite)
    self.assertFalse(self.reopened().overwrite)

  def test_what_plays_no_part_is_not_kept(self):
    self.save(attack="none", epsilon=0.2)
    text = (self.model_dir / "config.flags").read_text()
    self.assertNotIn("--step_size", text)
    self.assertNotIn("--inner_steps", text)
    other = parse(
      f"--flagfile={self.model_dir}/config.flags",
      model_dir="other",
      mode="evaluate",
      model_path="m",
      attacks="fgsm",
      epsilon=0.3,
    )
    self.assertIsNone(other.step_size)

  def test_what_an_earlier_version_kept_although_it_plays_no_part(self):
    """As from a flagfile of an attack, with --attack=none after it."""
    self.save(attack="none", epsilon=0.2)
    path = self.model_dir / "config.flags"
    idle = "--attack_steps=10\n--step_size=0.05\n--momentum=0.8\n"
    path.write_text(path.read_text() + idle)
    # Both from there, and from the flagfile as it is now.
    for again in (
      config_lib.parse(["run_dat.py", f"--flagfile={path}"]),
      parse(model_dir=self.model_dir, attack="none", epsilon=0.2),
    ):
      self.assertTrue(config_lib.check_against_saved(again))

  def test_numbers_survive_to_the_last_bit(self):
    thirds = {"epsilon": "1/3", "step_size": "1/30000000", "clean_weight": "1e20"}
    self.save(**thirds)
    values = [getattr(self.reopened(), name) for name in thirds]
    self.assertEqual(values, [1 / 3, 1 / 30000000, 1e20])

  @parameterized.parameters(*OTHER)
  def test_only_what_may_change_may_change(self, name):
    common = COMPANY.get(name, {})
    self.save(**common)
    config_lib.check_against_saved(parse(model_dir=self.model_dir, **common))
    changed = parse(**{**common, "model_dir": self.model_dir, name: OTHER[name]})
    if name == "model_dir":
      # Moved as a whole: the flagfile inside still has the old name.
      os.rename(self.model_dir, self.folder / OTHER[name])
      changed = dataclasses.replace(changed, model_dir=str(self.folder / OTHER[name]))
    if name in MAY_CHANGE:
      config_lib.check_against_saved(changed)
      return
    with self.assertRaises(UserError) as caught:
      config_lib.check_against_saved(changed)
    message = str(caught.exception)
    self.assertRegex(message, rf"with (no )?--(no)?{name}\b.*has --(no)?{name}\b")
    self.assertIn(str(self.model_dir), message)
    self.assertEqual(len(message.splitlines()), 1)

  def test_a_flag_without_a_value_differs_too(self):
    self.save()
    config = parse(model_dir=self.model_dir, mode="evaluate", train_data=None)
    with self.assertRaisesRegex(UserError, "this run has no --train_data"):
      config_lib.check_against_saved(config)

  def test_another_ball_is_for_the_export(self):
    self.save()
    for other in ({"norm": "l2"}, {"epsilon": 1}):
      config = parse(model_dir=self.model_dir, mode="evaluate", **other)
      with self.assertRaisesRegex(UserError, f"--model_path={self.model_dir}/export "):
        config_lib.check_against_saved(config)

  def test_what_is_labeled_now_was_not_trained_on(self):
    self.save()
    config = parse(model_dir=self.model_dir, unlabeled_data="u-*")
    with self.assertRaisesRegex(UserError, "--unlabeled_data=u-"):
      config_lib.check_against_saved(config)
    labeling = dataclasses.replace(config, mode="pseudo_label")
    config_lib.check_against_saved(labeling)

  def test_an_object_store(self):
    path = "ram://test_config/run"
    config_lib.save(parse(model_dir=path))
    config_lib.check_against_saved(parse(model_dir=path))
    with self.assertRaisesRegex(UserError, "--epsilon=0.5"):
      config_lib.check_against_saved(parse(model_dir=path, epsilon=0.5))

  def test_a_new_directory_has_nothing_to_differ_from(self):
    config_lib.check_against_saved(parse(model_dir=self.model_dir))
    self.assertFalse(self.model_dir.exists())

  def test_a_damaged_saved_flagfile(self):
    self.save()
    path = self.model_dir / "config.flags"
    path.write_text(path.read_text() + "--nonsense=1\n")
    with self.assertRaisesRegex(UserError, "config.flags cannot be read.*nonsense"):
      config_lib.check_against_saved(parse(model_dir=self.model_dir))

  @parameterized.parameters(b"", b"\xff\xfe--seed=1\n", b"{}\n--seed=1\n", b"-")
  def test_a_damaged_saved_flagfile_of_any_kind(self, content):
    self.save()
    (self.model_dir / "config.flags").write_bytes(content)
    with self.assertRaisesRegex(UserError, "config.flags cannot be read") as caught:
      config_lib.check_against_saved(parse(model_dir=self.model_dir))
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_a_save_that_fails_leaves_the_old_file(self):
    self.save()
    old = (self.model_dir / "config.flags").read_text()
    config = parse(model_dir=self.model_dir, epsilon=0.5)
    with mock.patch.object(tf.io.gfile, "rename", side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        config_lib.save(config)
    self.assertEqual((self.model_dir / "config.flags").read_text(), old)
    config_lib.save(config)
    self.assertEqual(self.reopened().epsilon, 0.5)
    self.assertEqual(os.listdir(self.model_dir), ["config.flags"])

  def test_a_directory_that_cannot_be_made(self):
    file = self.folder / "file"
    file.touch()
    for path in (file, file / "below"):
      with self.assertRaisesRegex(UserError, f"--model_dir={path} cannot be written"):
        config_lib.save(parse(model_dir=path))


class SameOnAllWorkersTest(ConfigCase):
  def check(self, *workers):
    config_lib.check_same([config_lib.to_text(parse(**values)) for values in workers])

  def test_the_same_flags_pass(self):
    self.check({"seed": 1}, {"seed": 1}, {"seed": 1})
    self.check({})

  def test_a_directory_may_have_another_name_on_each_worker(self):
    self.check({"model_dir": "a"}, {"model_dir": "b"})
    local = {"data_is_local": True}
    self.check({**local, "train_data": "c"}, {**local, "train_data": "d"})
    self.check({**local, "unlabeled_data": "c"}, {**local, "unlabeled_data": "d"})

  @parameterized.parameters(
    ({}, {"seed": 4}, "--seed=4", "--seed=0"),
    ({"step_size": 0.1}, {}, "--step_size=", "--step_size=0.1"),
    ({}, {"train_data": "d"}, "--train_data=d", "--train_data=a-"),
    (
      {"mode": "export", "test_data": None},
      {"mode": "export"},
      "=b-",
      "no --test_data",
    ),
  )
  def test_another_flag_is_named_with_its_worker(self, first, other, theirs, ours):
    with self.assertRaises(UserError) as caught:
      self.check(first, first, other)
    message = str(caught.exception)
    self.assertEqual(len(message.splitlines()), 1)
    self.assertIn("Worker 2", message)
    self.assertLess(message.index(theirs), message.index(ours))
