"""The settings of a run: parsed, checked, kept and compared."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from typing import Any, Optional

from absl import flags

from dat_tf import files, flagfiles, stack
from dat_tf.config import methods
from dat_tf.config.definitions import EXPORT_FORMATS, define_flags
from dat_tf.errors import UserError

# What a later run in the same model_dir may change. The number of workers is no flag:
# it may change too, since batches are stated for all workers together.
# fmt: off
MAY_CHANGE = frozenset({
    "mode", "model_dir", "epochs", "evaluate_every", "early_stopping",
    "test_data", "evaluation_attack_steps", "evaluation_step_size",
    "attacks", "evaluation_examples", "probe_images", "logits",
    "source_model_path", "source_input_range", "source_probabilities",
    "export_formats", "log_every", "pictures", "checkpoints_to_keep",
    "runs", "profile_steps", "overwrite", "unsafe_model",
    "communication", "bytes_per_pack", "collective_timeout", "start_timeout",
    "skip_bad_records", "data_service", "channels",
    "pseudo_label_dir", "pseudo_labels", "confidence_threshold",
})
# fmt: on

_OWN_DATA = {"train_data", "unlabeled_data"}


def parse(argv: Sequence[str]) -> flags.FlagValues:
  """The settings that a command line stands for.

  Args:
    argv: the program's name and its arguments, as in sys.argv. What stands there beats
      what stands in the flagfiles (`flagfiles.arguments`). `--help` prints all flags,
      `--version` the versions of the software; both end the program.

  Returns:
    An object with an attribute for each flag.

  Raises:
    UserError: an unknown flag, a value out of range, a flagfile that is not there,
      words that are no flags, or settings that contradict each other.
  """
  values = flags.FlagValues()
  define_flags(values)
  if "--help" in argv:
    print(values.get_help())
    raise SystemExit(0)
  if "--version" in argv:
    print(stack.describe(stack.versions()))
    raise SystemExit(0)
  try:
    words = values([argv[0], *flagfiles.arguments(argv[1:])])[1:]
  except flags.Error as error:
    raise UserError(str(error).removeprefix("ERROR:: ")) from None
  if words:
    raise UserError(
      f"Unexpected argument {words[0]!r}: flags are written --name=value."
    )
  _check(values)
  _resolve(values)
  return values


def _resolve(config: Any) -> None:
  """Fills in the defaults that depend on other flags."""
  methods.resolve(config)
  if config.evaluation_step_size is None:
    config.evaluation_step_size = 2.5 * config.epsilon / config.evaluation_attack_steps
  if config.reference_batch_size is None:
    config.reference_batch_size = config.global_batch_size


def _check(config: Any) -> None:
  """Raises UserError where settings contradict each other."""
  training = config.mode in ("train", "train_and_evaluate")
  evaluating = config.mode in ("evaluate", "train_and_evaluate")
  contradictions: list[tuple[Any, str]] = [
    (not config.model_dir, "--model_dir is required: where the run writes."),
    (
      config.overwrite and not training,
      "--overwrite goes with --mode=train or train_and_evaluate: it begins anew.",
    ),
    (
      config.overwrite and config.initialize_from == config.model_dir,
      f"--overwrite clears {config.model_dir}, and --initialize_from needs it: choose "
      "another --model_dir.",
    ),
    (
      training and config.train_data is None,
      f"--train_data is required by --mode={config.mode}: TFRecords to train on.",
    ),
    (
      config.test_data is None
      and (
        evaluating
        or (training and config.evaluate_every and not config.validation_data)
      ),
      "--test_data is required: TFRecords to evaluate on.",
    ),
    (
      config.mode == "pseudo_label"
      and not (config.unlabeled_data and config.pseudo_label_dir),
      "--mode=pseudo_label needs --unlabeled_data, TFRecords to label, and "
      "--pseudo_label_dir, where the labelled ones go.",
    ),
    (
      config.model_path and (config.mode != "evaluate" or not config.attacks),
      "--model_path needs --mode=evaluate and --attacks, such as --attacks=autoattack.",
    ),
    (
      (
        input_range(config) != (0, 1)
        or config.logits is not None
        or config.probabilities
      )
      and not config.model_path,
      "--logits, --probabilities and --input_range are of the model of --model_path: "
      "name it.",
    ),
    (
      config.logits == config.probabilities,
      "The model of --model_path gives --logits or --probabilities: choose one.",
    ),
    (
      (
        input_range(config, "source_input_range") != (0, 1)
        or config.source_probabilities
      )
      and not config.source_model_path,
      "--source_probabilities and --source_input_range are of the model of "
      "--source_model_path: name it.",
    ),
    (
      config.augmentation == "random_resized_crop" and config.image_size is None,
      "--augmentation=random_resized_crop needs --image_size, such as 224.",
    ),
    (
      config.augmentation == "pad_crop_flip" and config.image_size is not None,
      "--augmentation=pad_crop_flip is for images of one size, --image_size for those "
      "of many: choose random_resized_crop, or drop --image_size.",
    ),
    (
      config.norm == "linf" and config.epsilon > 1,
      f"--epsilon={config.epsilon:g}: pixels lie in [0, 1], so that --norm=linf takes "
      "at most 1 (8 of 255 is written 8/255).",
    ),
    *methods.contradictions(config),
    (
      config.early_stopping and not (config.evaluate_every and config.validation_data),
      "--early_stopping needs --evaluate_every and --validation_data: weights chosen by"
      " the test data would look better there than they are.",
    ),
    (
      unknown := ", ".join(sorted(set(config.export_formats) - set(EXPORT_FORMATS))),
      f"--export_formats: there is no {unknown}; choose of "
      f"{', '.join(EXPORT_FORMATS)}.",
    ),
    (
      config.export_formats and config.mode != "export",
      "--export_formats goes with --mode=export.",
    ),
    (
      config.weight_average == "none" and config.average_from_epoch,
      "--average_from_epoch goes with --weight_average=exponential or stochastic.",
    ),
    (
      config.weight_average == "exponential"
      and config.average_from_epoch >= config.epochs
      or config.weight_average == "stochastic"
      and config.average_from_epoch > config.epochs - 1,
      f"--average_from_epoch={config.average_from_epoch:g} leaves nothing of the "
      f"{config.epochs} epochs to average over: choose a smaller one.",
    ),
    (
      config.warmup_epochs > config.epochs,
      f"--warmup_epochs={config.warmup_epochs:g} exceeds --epochs={config.epochs}: "
      "lower it too.",
    ),
    (
      bool(config.decay_epochs) != (config.decay == "step"),
      "--decay_epochs goes with --decay=step, and only with it.",
    ),
    (
      config.min_weight_norm > config.max_weight_norm,
      "--min_weight_norm exceeds --max_weight_norm.",
    ),
    (
      bool(config.bucket_size % (256 // int(config.bits))),
      f"--bucket_size={config.bucket_size}: at --bits={config.bits} choose a multiple "
      f"of {256 // int(config.bits)}, which are packed together.",
    ),
    (
      config.error_feedback and config.all_reduce not in ("one_sided", "two_sided"),
      f"--error_feedback goes with quantization, not with --all_reduce="
      f"{config.all_reduce}: choose two_sided or one_sided.",
    ),
    (
      config.error_feedback and config.quantization_scale != "largest",
      "--error_feedback takes --quantization_scale=largest: beside the norm most values"
      " round to 0, and what is lost would grow without end.",
    ),
  ]
  for wrong, message in contradictions:
    if wrong:
      raise UserError(message)
  files.check_name(config.model_dir, "model_dir")
  # What is written there is read by a pattern, and patterns are parted by commas.
  files.check_name(config.pseudo_label_dir or "", "pseudo_label_dir", "[]*?\\\n,")
  try:
    re.compile(config.full_precision_names)
  except re.error as error:
    raise UserError(
      f"--full_precision_names={config.full_precision_names} is no regular expression: "
      f"{error}."
    ) from None
  epochs = decay_epochs(config)
  if not all(a < b < math.inf for a, b in zip([0.0, *epochs], epochs)):
    raise UserError("--decay_epochs must rise from above 0, as in 75,90,95.")
  profile_steps(config)


def decay_epochs(config: Any) -> list[float]:
  """The epochs of --decay_epochs, as numbers."""
  try:
    return [float(epoch) for epoch in config.decay_epochs]
  except ValueError:
    raise UserError("--decay_epochs takes numbers, as in 75,90,95.") from None


def profile_steps(config: Any) -> Optional[tuple[int, int]]:
  """The first and last step of --profile_steps; None without it."""
  if not config.profile_steps:
    return None
  try:
    first, last = map(int, config.profile_steps)
    if 1 <= first <= last:
      return first, last
  except ValueError:
    pass
  raise UserError("--profile_steps takes the first step and the last, as in 10,20.")


def input_range(config: Any, name: str = "input_range") -> tuple[float, float]:
  """The numbers of --input_range, or of --source_input_range."""
  try:
    low, high = map(float, config[name].value)
    if -math.inf < low < high < math.inf:
      return low, high
  except ValueError:
    pass
  raise UserError(f"--{name} takes black and white, as in 0,255 or -1,1.")


def check_against_saved(config: Any) -> bool:
  """Compares the settings with those of the run that wrote model_dir, if one did.

  Returns:
    Whether its settings are there.

  Raises:
    UserError: they differ in a flag outside `MAY_CHANGE`, or those kept are damaged.
  """
  saved = load(config.model_dir)
  if saved is None:
    return False
  free = set(MAY_CHANGE)
  if config.data_is_local:  # another pattern on each worker
    free |= _OWN_DATA
  if not config.mode.startswith("train"):  # what is labelled now is not trained on
    free |= {"unlabeled_data"}
  for name in sorted(_names(config) - free):
    if saved[name].value != config[name].value:
      was, now = (v[name].serialize() or f"no --{name}" for v in (saved, config))
      way = f"start from --flagfile={config.model_dir}/config.flags, or choose another"
      if config.mode == "evaluate" and name in ("norm", "epsilon"):
        way = f"give --model_path={config.model_dir}/export and another"
      raise UserError(
        f"{config.model_dir} was written with {was}, this run has {now}: {way} "
        "--model_dir."
      )
  return True


def to_text(config: Any) -> str:
  """The settings that all workers must share, for `check_same`."""
  own = {"model_dir"} | (_OWN_DATA if config.data_is_local else set())
  names = sorted(_names(config) - own)
  return json.dumps({name: config[name].serialize() for name in names})


def check_same(texts: Sequence[str]) -> None:
  """Compares the settings of all workers, each `to_text`, by index.

  Raises:
    UserError: a worker was started with others than worker 0.
  """
  first, *others = map(json.loads, texts)
  for index, other in enumerate(others, start=1):
    for name in sorted(first.keys() | other.keys()):
      if first.get(name) != other.get(name):
        here, there = (x.get(name) or f"no --{name}" for x in (other, first))
        raise UserError(
          f"Worker {index} was started with {here}, worker 0 with {there}: start all "
          "with the same flags."
        )


def save(config: Any) -> None:
  """Writes model_dir/config.flags, a flagfile that reproduces the run.

  Raises:
    UserError: model_dir cannot be made or written.
  """
  # A flagfile that is used again is not to clear the directory again.
  names = sorted(_names(config) - {"overwrite"})
  written = [config[name].serialize() for name in names]
  # A flag without a value has no line.
  text = "".join(f"{flagfiles.to_line(flag)}\n" for flag in written if flag)
  with files.explained_writing(f"--model_dir={config.model_dir}"):
    files.write_text(_path(config.model_dir), text)


def load(model_dir: str) -> Optional[flags.FlagValues]:
  """The settings of the run that wrote model_dir; None if there are none.

  Raises:
    UserError: they are damaged.
  """
  path = _path(model_dir)
  values = flags.FlagValues()
  define_flags(values)
  try:
    text = files.read_text(path)
    if text is None:
      return None
    lines = flagfiles.flags_alone(text)
    if not lines:
      raise ValueError("it is empty")
    rest = values(["", *lines])[1:]
    if rest:
      raise ValueError(f"{rest[0][:60]!r} is no flag")
  except (flags.Error, UserError, ValueError) as error:
    raise UserError(
      f"{path} cannot be read ({error}): mend it or choose another --model_dir."
    ) from None
  return values


def _names(values: flags.FlagValues) -> set[str]:
  return {flag.name for room in values.flags_by_module_dict().values() for flag in room}


def _path(model_dir: str) -> str:
  return os.path.join(model_dir, "config.flags")
