"""What a run does, where it writes, and what it shows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dat_tf.base import files
from dat_tf.config.declaring import (
  Option,
  choice,
  integer,
  integer_range,
  number,
  options,
  switch,
  text,
  texts,
)
from dat_tf.config.refusals import Refusals

if TYPE_CHECKING:
  from dat_tf.config.settings import Settings

EXPORT_FORMATS = options(
  Option("keras", "one file"),
  Option("serving", "a SavedModel with a signature"),
  Option("tflite"),
  Option("onnx"),
)
_MODES = options(
  Option("train"),
  Option("evaluate"),
  Option("train_and_evaluate"),
  Option("pseudo_label", "labels unlabelled images"),
  Option("export", "writes the network in other forms"),
  Option("report", "writes report.html from what lies there"),
  Option("status", "tells how far the run in model_dir is"),
)


@dataclasses.dataclass(frozen=True)
class ProgramSettings:
  """What is done, where, and for how long."""

  ROOM = "program"

  mode: str = choice("train_and_evaluate", _MODES, "What to do.", may_change=True)
  model_dir: str = text(
    None, "Directory of everything that the run writes. Required.", may_change=True
  )
  overwrite: bool = switch(
    "Clear what an earlier run wrote in model_dir, and begin anew.",
    may_change=True,
  )
  epochs: int = integer(10, "Passes over the training data.", lower=1, may_change=True)
  seed: int = integer(0, "Seed of weights, shuffling, augmentation and random starts.")
  evaluate_every: int = integer(
    0,
    "Epochs between evaluations while training, on validation_data or, without them, "
    "the test data; 0 is none.",
    may_change=True,
  )
  early_stopping: int = integer(
    0,
    "Number of evaluations on validation_data without a better robust accuracy after "
    "which training ends. The best weights are what is evaluated and exported. 0 never "
    "ends it early.",
    may_change=True,
  )
  accumulation: int = integer(
    1,
    "Number of parts of a replica's batch that are trained on one after the other, to "
    "save memory.",
    lower=1,
  )
  jit_compile: bool = switch(
    "Compile attack and gradient with XLA, which drops the check that images stay in "
    "the ball.",
  )
  precision: str = choice(
    "float32",
    ("float32", "mixed_bfloat16"),
    "Precision in which layers compute; weights and losses are float32.",
  )
  export_formats: tuple[str, ...] = texts(
    "Forms in which --mode=export writes the network beside export/, which is a Keras "
    "model: keras (one file), serving (a SavedModel with a signature), tflite, onnx.",
    may_change=True,
  )
  initialize_from: str = text(
    None,
    "What the weights are before the first step: the model_dir of another run, an "
    "exported model, or imagenet (Keras' own, for networks of tf.keras.applications). "
    "With another number of classes the last layer starts anew.",
  )
  unsafe_model: bool = switch(
    "Let a model of model_path, source_model_path or initialize_from run code of its "
    "own, which can do all that you can; only for models whose makers you trust.",
    may_change=True,
  )
  checkpoints_to_keep: int = integer(
    2, "Number of newest checkpoints that are kept.", lower=1, may_change=True
  )
  checkpoint_steps: int = integer(
    0,
    "Steps between two checkpoints within an epoch; 0 saves at each epoch's end alone.",
    may_change=True,
  )
  checkpoint_minutes: float = number(
    0,
    "Minutes between two checkpoints within an epoch, instead of checkpoint_steps; 0 "
    "saves at each epoch's end alone.",
    may_change=True,
  )
  verify_every: int = integer(
    0,
    "Steps between two comparisons of all weights over the workers, by a checksum; 0 "
    "compares them at the end of each epoch alone.",
    may_change=True,
  )
  log_every: int = integer(
    20, "Steps between two points in TensorBoard.", lower=1, may_change=True
  )
  pictures: int = integer(
    8,
    "Images in each epoch's picture grid in TensorBoard; 0 is none.",
    upper=64,
    may_change=True,
  )


@dataclasses.dataclass(frozen=True)
class LabelingSettings:
  """How --mode=pseudo_label labels images."""

  ROOM = "program"

  pseudo_label_dir: str = text(
    None,
    "Directory that --mode=pseudo_label writes to: a file for each that it reads.",
    may_change=True,
  )
  pseudo_labels: str = choice(
    "hard",
    options(
      Option("hard", "the likeliest class"),
      Option("soft", "the probabilities of all classes"),
    ),
    "What --mode=pseudo_label writes for each image.",
    may_change=True,
  )
  confidence_threshold: float = number(
    0,
    "Smallest probability of the likeliest class for which a pseudo-label is given.",
    upper=1,
    may_change=True,
  )


@dataclasses.dataclass(frozen=True)
class ReportSettings:
  """What is shown of a run."""

  ROOM = "reporting"

  runs: tuple[str, ...] = texts(
    "model_dirs of other runs that the report shows beside this one; --mode=report "
    "takes one without a run too.",
    may_change=True,
  )
  profile_steps: tuple[int, ...] = integer_range(
    "FIRST,LAST: steps of this start, from 1 on, that the chief records for "
    "TensorBoard's profiler.",
    may_change=True,
  )


def contradictions(settings: Settings) -> Refusals:
  """What does not go together, see `refusals`."""
  evaluating = settings.mode in ("evaluate", "train_and_evaluate")
  yield not settings.model_dir, "--model_dir is required: where the run writes."
  yield (
    settings.overwrite and not settings.trains,
    "--overwrite goes with --mode=train or train_and_evaluate: it begins anew.",
  )
  yield (
    settings.overwrite and settings.initialize_from == settings.model_dir,
    f"--overwrite clears {settings.model_dir}, and --initialize_from needs it: choose "
    "another --model_dir.",
  )
  yield (
    settings.trains and not settings.train_data,
    f"--train_data is required by --mode={settings.mode}: TFRecords to train on.",
  )
  yield (
    not settings.test_data
    and (
      evaluating
      or (settings.trains and settings.evaluate_every and not settings.validation_data)
    ),
    "--test_data is required: TFRecords to evaluate on.",
  )
  yield (
    settings.mode == "pseudo_label"
    and not (settings.unlabeled_data and settings.pseudo_label_dir),
    "--mode=pseudo_label needs --unlabeled_data, TFRecords to label, and "
    "--pseudo_label_dir, where the labelled ones go.",
  )
  yield (
    settings.early_stopping
    and not (settings.evaluate_every and settings.validation_data),
    "--early_stopping needs --evaluate_every and --validation_data: weights chosen by "
    "the test data would look better there than they are.",
  )
  yield (
    unknown := ", ".join(sorted({*settings.export_formats} - {*EXPORT_FORMATS})),
    f"--export_formats: there is no {unknown}; choose of {', '.join(EXPORT_FORMATS)}.",
  )
  yield (
    settings.checkpoint_steps and settings.checkpoint_minutes,
    "--checkpoint_steps and --checkpoint_minutes do not go together: choose one.",
  )
  yield (
    settings.export_formats and settings.mode != "export",
    "--export_formats goes with --mode=export.",
  )
  files.check_name(settings.model_dir, "model_dir")
  # What is written there is read by a pattern, and patterns are parted by commas.
  files.check_name(settings.pseudo_label_dir or "", "pseudo_label_dir", "[]*?\\\n,")
