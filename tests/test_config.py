"""Flags: ranges, contradictions, flagfiles, and what a later run may change."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl import flags
from absl.testing import parameterized

from dat_tf import config as config_lib
from dat_tf.config.definitions import define_flags
from dat_tf.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIRED = {"model_dir": "m", "train_data": "a-*", "test_data": "b-*"}

# Another value than the default, or than REQUIRED's, for each flag.
OTHER = {
  "mode": "evaluate",
  "model_dir": "elsewhere",
  "epochs": "11",
  "seed": "1",
  "evaluate_every": "2",
  "export_formats": "keras,onnx",
  "early_stopping": "3",
  "accumulation": "2",
  "jit_compile": "true",
  "precision": "mixed_bfloat16",
  "initialize_from": "another/run",
  "checkpoints_to_keep": "3",
  "log_every": "5",
  "pictures": "0",
  "train_data": "c-*,d e/f-*",
  "test_data": "g-*",
  "validation_data": "v-*",
  "num_classes": "1000",
  "first_label": "1",
  "global_batch_size": "256",
  "shuffle_buffer": "0",
  "augmentation": "random_resized_crop",
  "image_size": "160",
  "data_is_local": "true",
  "skip_bad_records": "3",
  "data_service": "host:5050",
  "unlabeled_data": "u-*",
  "unlabeled_fraction": "0.25",
  "model": "ResNet50",
  "weight_average": "stochastic",
  "average_decay": "0.9",
  "average_from_epoch": "1.5",
  "attack": "bim",
  "norm": "l2",
  "epsilon": "3/255",
  "step_size": "1/300",
  "attack_steps": "4",
  "inner_steps": "2",
  "convergence": "0.25",
  "wasserstein_penalty": "2",
  "steps_growing_epochs": "2",
  "epsilon_growing_epochs": "3.5",
  "evaluation_attack_steps": "50",
  "evaluation_step_size": "1e-3",
  "attack_in_training_mode": "true",
  "attacks": "pgd-50x10,autoattack",
  "evaluation_examples": "1000",
  "probe_images": "0",
  "model_path": "model.keras",
  "input_range": "-1,1",
  "probabilities": "true",
  "objective": "alp",
  "clean_weight": "1/3",
  "penalty_weight": "0.7",
  "attribution_points": "10",
  "gradient_alignment": "0.2",
  "weight_perturbation": "0.005",
  "label_smoothing": "0.1",
  "mixing": "mixup",
  "mixing_alpha": "0.2",
  "unlabeled_loss": "both",
  "unlabeled_weight": "0.5",
  "pseudo_label_smoothing": "0.1",
  "pseudo_label_dir": "labelled",
  "pseudo_labels": "soft",
  "confidence_threshold": "0.9",
  "optimizer": "lars",
  "learning_rate": "0.1",
  "reference_batch_size": "64",
  "learning_rate_scaling": "sqrt",
  "layer_decay": "0",
  "clip_norm": "1",
  "warmup_epochs": "2.5",
  "decay": "constant",
  "decay_epochs": "75,90.5",
  "weight_decay": "5e-4",
  "momentum": "0.95",
  "beta_1": "0.8",
  "beta_2": "0.99",
  "min_weight_norm": "0.01",
  "max_weight_norm": "9",
  "communication": "ring",
  "all_reduce": "two_sided",
  "bits": "4",
  "bucket_size": "512",
  "quantization_scale": "l2_norm",
  "error_feedback": "true",
  "full_precision_below": "100",
  "full_precision_names": "logits|hidden/.*",
  "bytes_per_pack": "1048576",
  "collective_timeout": "30",
  "runs": "runs/a,runs/b",
  "profile_steps": "10,20",
}
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
  "log_every",
  "pictures",
  "checkpoints_to_keep",
  "communication",
  "export_formats",
  "bytes_per_pack",
  "collective_timeout",
  "skip_bad_records",
  "data_service",
  "pseudo_label_dir",
  "pseudo_labels",
  "confidence_threshold",
  "runs",
  "profile_steps",
}


def parse(*arguments, **values):
  """Parses the required flags, then `arguments`, then --name=value."""
  given = {**REQUIRED, **values}
  written = [f"--{name}={value}" for name, value in given.items() if value is not None]
  return config_lib.parse(["run_dat.py", *arguments, *written])


def flag_values(config):
  return {name: config[name].value for name in OTHER}


class ConfigTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.folder = pathlib.Path(directory.name)
    self.model_dir = self.folder / "run"

  def assert_refused(self, *arguments, names, **values):
    with self.assertRaises(UserError) as caught:
      parse(*arguments, **values)
    message = str(caught.exception)
    self.assertEqual(len(message.splitlines()), 1, message)
    for name in names:
      self.assertIn(name, message)


class RangesTest(ConfigTest):
  @parameterized.parameters(
    *[(name, "0") for name in ("epochs", "checkpoints_to_keep", "log_every")],
    *[(name, "0") for name in ("attack_steps", "evaluation_attack_steps")],
    *[(name, "0") for name in ("global_batch_size", "reference_batch_size")],
    *[(name, "-1") for name in ("seed", "evaluate_every", "pictures")],
    *[(name, "-1") for name in ("shuffle_buffer", "bytes_per_pack")],
    *[(name, "2.5") for name in ("epochs", "seed", "pictures", "attack_steps")],
    *[(name, "0") for name in ("epsilon", "step_size", "evaluation_step_size")],
    *[(name, "0") for name in ("learning_rate", "collective_timeout")],
    *[(name, "-0.1") for name in ("clean_weight", "weight_decay", "warmup_epochs")],
    *[(name, "-0.1") for name in ("momentum", "beta_1", "min_weight_norm")],
    *[(name, "1") for name in ("beta_1", "beta_2")],
    *[(name, "much") for name in ("epochs", "epsilon", "attack", "norm", "mode")],
    *[(name, "much") for name in ("optimizer", "decay", "communication")],
    *[(name, "much") for name in ("augmentation", "learning_rate_scaling")],
    *[(name, value) for name in ("epsilon",) for value in ("nan", "inf", "1/0", "")],
    ("learning_rate", "1e400"),
    ("data_is_local", "perhaps"),
    ("num_classes", "1"),
    ("first_label", "2"),
    ("pictures", "65"),
    ("seed", "2147483648"),
    ("momentum", "1.01"),
    ("max_weight_norm", "-1"),
    ("bits", "3"),
    ("bits", "16"),
    ("bucket_size", "0"),
    ("full_precision_below", "-1"),
    ("all_reduce", "much"),
    *[("unlabeled_fraction", value) for value in ("0", "1")],
    *[("pseudo_label_smoothing", value) for value in ("-0.1", "1")],
    *[("confidence_threshold", value) for value in ("-0.1", "1.1")],
    *[(name, "-1") for name in ("unlabeled_weight", "skip_bad_records")],
    *[(name, "much") for name in ("unlabeled_loss", "pseudo_labels")],
    ("image_size", "0"),
    *[(name, "-1") for name in ("evaluation_examples", "probe_images")],
    *[("input_range", value) for value in ("1,0", "0", "0,1,2", "0,x", "0,inf", "")],
    *[("profile_steps", value) for value in ("5", "0,5", "6,5", "1,2,3", "a,b")],
  )
  def test_a_value_out_of_range_names_its_flag(self, name, value):
    self.assert_refused(names=[f"--{name}"], **{name: value})

  @parameterized.parameters(
    ("seed", 2**31 - 1),
    ("pictures", 64),
    ("momentum", 1.0),
    ("beta_1", 0.0),
    ("epsilon", 1.0),
    ("num_classes", 2),
    ("clean_weight", 0.0),
    ("warmup_epochs", 10.0),  # as long as the run
    ("min_weight_norm", 10.0),  # as large as max_weight_norm
    ("bucket_size", 32),  # at 8 bits
  )
  def test_the_ends_of_ranges_are_taken(self, name, value):
    self.assertEqual(parse(**{name: value})[name].value, value)

  @parameterized.parameters(
    ("8/255", 8 / 255),
    (" 8 / 255 ", 8 / 255),
    ("1e-3", 1e-3),
    ("0.1", 0.1),
    (".5", 0.5),
  )
  def test_numbers_may_be_fractions(self, text, value):
    self.assertEqual(parse(epsilon=text).epsilon, value)
    self.assertIsInstance(parse(epsilon=text).epsilon, float)

  @parameterized.parameters(
    (["--model_dir"], {"model_dir": None}),
    (["--model_dir"], {"model_dir": ""}),
    (["--train_data", "train_and_evaluate"], {"train_data": None}),
    (["--train_data", "--mode=train"], {"train_data": None, "mode": "train"}),
    (["--test_data"], {"test_data": None}),
    (["--test_data"], {"test_data": None, "mode": "evaluate"}),
    (["--test_data"], {"test_data": None, "mode": "train", "evaluate_every": 1}),
    (["--epsilon=8", "linf"], {"epsilon": 8}),
    (["--early_stopping", "--validation_data"], {"early_stopping": 1}),
    (
      ["--early_stopping", "--evaluate_every"],
      {"early_stopping": 1, "validation_data": "v"},
    ),
    (["--average_from_epoch", "--weight_average"], {"average_from_epoch": 1}),
    (
      ["--average_from_epoch=10", "10 epochs"],
      {"average_from_epoch": 10, "weight_average": "stochastic"},
    ),
    (["--warmup_epochs=3", "--epochs=2"], {"warmup_epochs": 3, "epochs": 2}),
    (["--decay_epochs"], {"decay": "step"}),
    (["--decay_epochs"], {"decay": "cosine", "decay_epochs": "5"}),
    (["--min_weight_norm", "--max_weight_norm"], {"min_weight_norm": 11}),
    (["--bucket_size=64", "--bits=2", "128"], {"bucket_size": 64, "bits": 2}),
    (["--error_feedback", "--all_reduce=fp32"], {"error_feedback": 1}),
    (["--error_feedback", "auto"], {"error_feedback": 1, "all_reduce": "auto"}),
    (
      ["--error_feedback", "--quantization_scale=largest"],
      {
        "error_feedback": 1,
        "all_reduce": "two_sided",
        "quantization_scale": "l2_norm",
      },
    ),
    (["--full_precision_names=(", "regular"], {"full_precision_names": "("}),
    (["--model_path", "--attacks"], {"model_path": "m", "mode": "evaluate"}),
    (["--model_path", "--mode=evaluate"], {"model_path": "m", "attacks": "fgsm"}),
    (["--probabilities", "--model_path"], {"probabilities": 1}),
    (["--input_range", "--model_path"], {"input_range": "0,255"}),
    (["--unlabeled_data", "--pseudo_label_dir"], {"mode": "pseudo_label"}),
    (["--pseudo_label_dir"], {"mode": "pseudo_label", "unlabeled_data": "u"}),
    (["--image_size"], {"augmentation": "random_resized_crop"}),
    (["--image_size"], {"augmentation": "pad_crop_flip", "image_size": 32}),
    *[
      (["--decay_epochs"], {"decay": "step", "decay_epochs": epochs})
      for epochs in ("9,5", "5,5", "5,x", "-5,5", "0,5", "nan", "5,inf", "5,,6")
    ],
  )
  def test_contradictions(self, names, values):
    self.assert_refused(names=names, **values)

  def test_what_a_mode_does_not_need_may_be_missing(self):
    parse(mode="train", test_data=None)
    parse(mode="evaluate", train_data=None)
    parse(mode="export", train_data=None, test_data=None)
    parse(mode="train", test_data=None, evaluate_every=1, validation_data="v")
    parse(norm="l2", epsilon=3)
    parse(norm="l1", epsilon=12)
    parse(mode="evaluate", train_data=None, model_path="m", attacks="fgsm")

  def test_unknown_flags_and_stray_words(self):
    self.assert_refused("--epsilom=0.1", names=["epsilom"])
    self.assert_refused("epsilon=0.1", names=["epsilon=0.1", "--name=value"])

  def test_defaults_that_depend_on_other_flags(self):
    pgd = parse(epsilon=0.2, attack_steps=5, global_batch_size=96)
    self.assertAlmostEqual(pgd.step_size, 2.5 * 0.2 / 5, places=12)
    self.assertAlmostEqual(pgd.evaluation_step_size, 2.5 * 0.2 / 20, places=12)
    self.assertEqual(pgd.reference_batch_size, 96)
    self.assertEqual(parse().attack_steps, 10)
    fgsm = parse(epsilon=0.2, attack="fgsm")
    self.assertEqual(fgsm.attack_steps, 1)
    self.assertAlmostEqual(fgsm.step_size, 1.25 * 0.2, places=12)
    self.assertEqual(parse(step_size=0.3).step_size, 0.3)

  def test_input_range_is_two_numbers(self):
    self.assertEqual(config_lib.input_range(parse()), (0.0, 1.0))
    values = {"mode": "evaluate", "model_path": "m", "attacks": "fgsm"}
    config = parse(input_range="-1, 1.5", **values)
    self.assertEqual(config_lib.input_range(config), (-1.0, 1.5))

  def test_profile_steps_are_the_first_and_the_last(self):
    self.assertIsNone(config_lib.profile_steps(parse()))
    config = parse(profile_steps="10,20")
    self.assertEqual(config_lib.profile_steps(config), (10, 20))

  def test_decay_epochs_are_numbers(self):
    config = parse(decay="step", decay_epochs="75,90.5")
    self.assertEqual(config_lib.decay_epochs(config), [75.0, 90.5])


class FlagfileTest(ConfigTest):
  def write(self, name, *lines):
    path = self.folder / name
    path.write_text("\n".join(lines) + "\n")
    return path

  def test_flagfiles_nest_and_later_flags_win(self):
    inner = self.write("inner.flags", "--epsilon=0.1", "--epochs=3", "--seed=4")
    outer = self.write(
      "outer.flags", "# A comment.", "", f"--flagfile={inner}", "--epochs=5"
    )
    config = parse(f"--flagfile={outer}", "--seed=6")
    self.assertEqual((config.epsilon, config.epochs, config.seed), (0.1, 5, 6))

  def test_a_missing_or_wrong_flagfile(self):
    missing = self.folder / "missing.flags"
    self.assert_refused(f"--flagfile={missing}", names=[str(missing)])
    outer = self.write("outer.flags", f"--flagfile={missing}")
    self.assert_refused(f"--flagfile={outer}", names=[str(missing)])
    wrong = self.write("wrong.flags", "--epsilon=-1")
    self.assert_refused(f"--flagfile={wrong}", names=["--epsilon"])

  def test_the_repositorys_flagfiles_parse(self):
    paths = sorted((ROOT / "flags").rglob("*.flags"))
    self.assertNotEmpty(paths)
    for path in paths:
      # One of them is a common part of others, without a directory.
      config_lib.parse(["run_dat.py", f"--flagfile={path}", "--model_dir=m"])


class SavedTest(ConfigTest):
  def save(self, **values):
    config = parse(**{**values, "model_dir": self.model_dir})
    config_lib.save(config)
    return config

  def reopened(self):
    flagfile = self.model_dir / "config.flags"
    return config_lib.parse(["run_dat.py", f"--flagfile={flagfile}"])

  def test_the_tables_name_every_flag(self):
    values = flags.FlagValues()
    define_flags(values)
    rooms = values.flags_by_module_dict().values()
    self.assertCountEqual(OTHER, [flag.name for room in rooms for flag in room])
    self.assertEqual(config_lib.MAY_CHANGE, MAY_CHANGE)

  def test_the_saved_flagfile_reproduces_every_value(self):
    # The second time with every flag changed, but for what contradicts another.
    fitting = {
      "export_formats": "",
      "decay": "step",
      "quantization_scale": "largest",
      "weight_perturbation": 0,
    }
    for values in ({}, {**OTHER, **fitting}):
      saved = self.save(**values)
      self.assertEqual(flag_values(self.reopened()), flag_values(saved))

  def test_numbers_survive_to_the_last_bit(self):
    thirds = {"epsilon": "1/3", "step_size": "1/30000000", "clean_weight": "1e20"}
    self.save(**thirds)
    values = [self.reopened()[name].value for name in thirds]
    self.assertEqual(values, [1 / 3, 1 / 30000000, 1e20])

  @parameterized.parameters(*OTHER)
  def test_only_what_may_change_may_change(self, name):
    common = {}
    if name in ("penalty_weight", "clean_weight"):
      common.update(objective="alp")
    if name == "export_formats":
      common.update(mode="export")
    if name in ("model_path", "input_range", "probabilities"):
      common.update(model_path="m", mode="evaluate", attacks="fgsm")
    if name == "early_stopping":
      common.update(evaluate_every=1, validation_data="v")
    if name == "average_from_epoch":
      common.update(weight_average="stochastic")
    if name == "decay_epochs":
      common.update(decay="step", decay_epochs="2,3")
    if name == "augmentation":
      common.update(image_size=160)
    if name == "error_feedback":
      common.update(all_reduce="one_sided")
    self.save(**common)
    config_lib.check_against_saved(parse(model_dir=self.model_dir, **common))
    changed = parse(**{**common, "model_dir": self.model_dir, name: OTHER[name]})
    if name == "model_dir":
      # Moved as a whole: the flagfile inside still has the old name.
      os.rename(self.model_dir, self.folder / OTHER[name])
      changed.model_dir = str(self.folder / OTHER[name])
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

  def test_what_is_labelled_now_was_not_trained_on(self):
    self.save()
    config = parse(model_dir=self.model_dir, unlabeled_data="u-*")
    with self.assertRaisesRegex(UserError, "--unlabeled_data=u-"):
      config_lib.check_against_saved(config)
    config.mode = "pseudo_label"
    config_lib.check_against_saved(config)

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

  def test_a_save_that_fails_leaves_the_old_file(self):
    self.save()
    old = (self.model_dir / "config.flags").read_text()
    config = parse(model_dir=self.model_dir, epsilon=0.5)
    broken = config["seed"]
    with mock.patch.object(type(broken), "serialize", side_effect=KeyboardInterrupt):
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


class SameOnAllWorkersTest(ConfigTest):
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
    ({}, {"bits": 4}, "--bits=4", "--bits=8"),
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


class HelpTest(ConfigTest):
  def test_every_flag_explains_itself_in_its_room(self):
    values = flags.FlagValues()
    define_flags(values)
    packages = {path.name for path in (ROOT / "dat_tf").iterdir() if path.is_dir()}
    modules = {path.stem for path in (ROOT / "dat_tf").glob("*.py")}
    for room, defined in values.flags_by_module_dict().items():
      package, name = room.split(".")
      self.assertEqual(package, "dat_tf")
      self.assertIn(name, packages | modules)
      for flag in defined:
        self.assertGreater(len(flag.help), 10, flag.name)
        for sentence in flag.help.split(" Range "):
          self.assertEndsWith(sentence, ".", flag.name)
        self.assertNotIn("  ", flag.help, flag.name)
        if flag.flag_type() in ("number", "int"):
          self.assertRegex(
            flag.help + flag.parser.syntactic_help,
            r"[\[(][-\d.inf]+, [-\d.inf]+[\])]|positive|non-negative|>=",
            flag.name,
          )

  def test_help_needs_nothing_else_and_no_tensorflow(self):
    code = (
      "import sys; from dat_tf import config\n"
      "try: config.parse(['run_dat.py', '--help'])\n"
      "except SystemExit as end: assert end.code == 0\n"
      "config.parse(['', '--model_dir=m', '--mode=export'])\n"
      "assert 'tensorflow' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    self.assertEqual((done.returncode, done.stderr), (0, ""))
    for name in OTHER:
      self.assertRegex(done.stdout, rf"--(\[no\])?{name}:\s")
    self.assertIn("dat_tf.attacks:", done.stdout)
