"""Flags: ranges, contradictions, flagfiles and help."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from absl import flags
from absl.testing import parameterized
from config_case import COMPANY, OTHER, ConfigCase, parse

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError
from dat_tf.config.declaring import define_flags

ROOT = pathlib.Path(__file__).resolve().parents[2]


class RangesTest(ConfigCase):
  @parameterized.parameters(
    *[(name, "0") for name in ("epochs", "checkpoints_to_keep", "log_every")],
    *[(name, "0") for name in ("attack_steps", "evaluation_attack_steps")],
    *[(name, "0") for name in ("global_batch_size", "reference_batch_size")],
    *[(name, "-1") for name in ("seed", "evaluate_every", "pictures", "verify_every")],
    *[(name, "-1") for name in ("shuffle_buffer", "bytes_per_pack")],
    *[(name, "-1") for name in ("checkpoint_steps", "checkpoint_minutes")],
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
    *[("epsilon", value) for value in ("1e99999999", "1/1e99999999", "1e-99999999")],
    *[("epsilon", value) for value in ("٠.١", "1/2/3", "9" * 99_999)],
    *[("epochs", value) for value in ("2147483648", "9" * 99_999, "1e99999999")],
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
    given = {**COMPANY.get(name, {}), name: value}
    self.assertEqual(getattr(parse(**given), name), value)

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
    (
      ["checkpoint_steps", "checkpoint_minutes", "choose one"],
      {"checkpoint_steps": "5", "checkpoint_minutes": "0.5"},
    ),
    (["no kears;", "keras"], {"mode": "export", "export_formats": "keras,kears"}),
    (["--early_stopping", "--validation_data"], {"early_stopping": 1}),
    (
      ["--early_stopping", "--evaluate_every"],
      {"early_stopping": 1, "validation_data": "v"},
    ),
    (["--average_from_epoch", "--weight_average"], {"average_from_epoch": 1}),
    (
      ["--average_from_epoch=10", "10 epochs"],
      {"average_from_epoch": 10, "weight_average": "exponential"},
    ),
    (
      ["--average_from_epoch=9.5", "10 epochs"],
      {"average_from_epoch": 9.5, "weight_average": "stochastic"},
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
    (["--logits", "--model_path"], {"logits": 1}),
    *[
      (["--logits", "--probabilities"], {"logits": both, "probabilities": both})
      for both in (0, 1)
    ],
    (["--input_range", "--model_path"], {"input_range": "0,255"}),
    (["--source_input_range", "--source_model_path"], {"source_input_range": "0,255"}),
    (["--source_probabilities", "--source_model_path"], {"source_probabilities": 1}),
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
    for own in ({}, {"logits": 1}, {"probabilities": 1}):
      parse(mode="evaluate", train_data=None, model_path="m", attacks="fgsm", **own)

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
    self.assertEqual(parse().input_range, (0.0, 1.0))
    values = {"mode": "evaluate", "model_path": "m", "attacks": "fgsm"}
    config = parse(input_range="-1, 1.5", **values)
    self.assertEqual(config.input_range, (-1.0, 1.5))
    config = parse(source_model_path="m", source_input_range="0,255")
    self.assertEqual(config.source_input_range, (0, 255))
    with self.assertRaisesRegex(
      UserError, "--source_input_range=255: must be like 0,255"
    ):
      parse(source_model_path="m", source_input_range="255")

  def test_profile_steps_are_the_first_and_the_last(self):
    self.assertEqual(parse().profile_steps, ())
    config = parse(profile_steps="10,20")
    self.assertEqual(config.profile_steps, (10, 20))

  def test_decay_epochs_are_numbers(self):
    config = parse(decay="step", decay_epochs="75,90.5")
    self.assertEqual(config.decay_epochs, (75.0, 90.5))


class FlagfileTest(ConfigCase):
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
    before = parse("--seed=6", f"--flagfile={outer}", "--epochs", "7")
    self.assertEqual((before.epsilon, before.epochs, before.seed), (0.1, 7, 6))

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


class HelpTest(ConfigCase):
  def test_every_flag_explains_itself_in_its_room(self):
    values = flags.FlagValues()
    define_flags(config_lib.Settings, values)
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
        if flag.flag_type() in ("number", "integer"):
          interval = r"Range: ([\[(][-\d.inf]+, [-\d.inf]+[\])]|\d+ or more)\.$"
          self.assertRegex(flag.help, interval, flag.name)
        self.assertNotRegex(flag.help, r"^(Of |So do|That |The source)|likewise")

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
