"""All settings of a run: parsed, checked, kept and compared."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from absl import flags

from dat_tf.base import files, stack
from dat_tf.base.errors import UserError
from dat_tf.base.run_directory import RunDirectory
from dat_tf.config import (
  attacks,
  communication,
  data,
  evaluation,
  flagfiles,
  models,
  objectives,
  optimizers,
  program,
)
from dat_tf.config.declaring import (
  declarations,
  define_flags,
  idle,
  is_default,
  written,
)
from dat_tf.config.refusals import Refusals, refuse

_OWN_DATA = {"train_data", "unlabeled_data"}


@dataclasses.dataclass(frozen=True)
class Settings(
  program.ProgramSettings,
  data.DataSettings,
  models.ModelSettings,
  attacks.AttackSettings,
  objectives.ObjectiveSettings,
  optimizers.OptimizerSettings,
  communication.CommunicationSettings,
  evaluation.EvaluationSettings,
  program.LabelingSettings,
  program.ReportSettings,
):
  """Every setting of a run, an attribute for each flag; see `--help`."""

  @property
  def directory(self) -> RunDirectory:
    """Where the run keeps what it writes."""
    return RunDirectory(self.model_dir)

  @property
  def trains(self) -> bool:
    """Whether the run's mode trains."""
    return self.mode in ("train", "train_and_evaluate")

  @property
  def certifies(self) -> bool:
    """Whether what is trained can be certified."""
    return objectives.training_objective(self.objective).certified

  def words(self) -> dict[str, str]:
    """Each setting that has a value, as --name=value, by its name."""
    found = {
      name: written(name, getattr(self, name), declared)
      for name, declared in declarations(Settings).items()
    }
    return {name: word for name, word in found.items() if word is not None}


# What a later run in the same model_dir may change. The number of workers is no
# setting: it may change too, since batches are stated for all workers together.
MAY_CHANGE = frozenset(
  name for name, declared in declarations(Settings).items() if declared.may_change
)

FLAGS = frozenset(declarations(Settings))


def parse(argv: Sequence[str]) -> Settings:
  """The settings that a command line stands for.

  Args:
    argv: the program's name and its arguments, as in sys.argv. What stands there beats
      what stands in the flagfiles (`flagfiles.arguments`). `--help` prints all flags,
      `--version` the versions of the software; both end the program.

  Raises:
    UserError: an unknown flag, a value out of range, a flagfile that is not there,
      words that are no flags, or settings that contradict each other.
  """
  values = _flags()
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
  settings = _read(values)
  refuse(_contradictions(settings))
  names = idle(settings).names
  resolved = {n: value for n, value in _resolved(settings).items() if n not in names}
  return dataclasses.replace(settings, **resolved)


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()
  define_flags(Settings, values)
  return values


def _read(values: flags.FlagValues) -> Settings:
  given: dict[str, Any] = {n: values[n].value for n in declarations(Settings)}
  return Settings(**given)


def _resolved(settings: Settings) -> dict[str, Any]:
  """The settings that follow from others, where they were not given."""
  found: dict[str, Any] = {}
  for room in (objectives, attacks, optimizers, evaluation):
    # What the objective says goes before what the attack says.
    found = {**room.resolved(settings), **found}
  return found


def _contradictions(settings: Settings) -> Refusals:
  rooms = (program, evaluation, data, attacks, objectives, models, optimizers)
  yield from itertools.chain.from_iterable(
    room.contradictions(settings) for room in (*rooms, communication)
  )
  yield from ((True, line) for line in _idle_lines(settings))


def _idle_lines(settings: Settings) -> Iterator[str]:
  """A line for each setting that was given and plays no part."""
  found = idle(settings)
  given = [name for name in found.names if not is_default(settings, name)]
  if not given:
    return
  # What earlier versions kept has it written out, whether it plays a part or not.
  follow: dict[str, Any] = {
    n: None for n, d in declarations(Settings).items() if d.default is None
  }
  derived = _resolved(dataclasses.replace(settings, **follow))
  saved = load(settings.model_dir)
  objective = objectives.training_objective(settings.objective)
  fixed = {"--attack"} if objective.gain or not objective.attacked else set()
  for name in sorted(given):
    value = getattr(settings, name)
    if value != derived.get(name) and value != getattr(saved, name, None):
      yield found.explain(name, fixed)


def check_against_saved(settings: Settings) -> bool:
  """Compares the settings with those of the run that wrote model_dir, if one did.

  Returns:
    Whether its settings are there.

  Raises:
    UserError: they differ in one outside `MAY_CHANGE`, or those kept are damaged.
  """
  saved = load(settings.model_dir)
  if saved is None:
    return False
  free = set(MAY_CHANGE)
  if settings.data_is_local:  # another pattern on each worker
    free |= _OWN_DATA
  if not settings.trains:  # what is labelled now is not trained on
    free |= {"unlabeled_data"}
  free |= idle(settings).names & idle(saved).names
  for name in sorted(declarations(Settings).keys() - free):
    if getattr(saved, name) != getattr(settings, name):
      was, now = (s.words().get(name, f"no --{name}") for s in (saved, settings))
      way = (
        f"start from --flagfile={settings.model_dir}/config.flags, or choose another"
      )
      if settings.mode == "evaluate" and name in ("norm", "epsilon"):
        way = f"give --model_path={settings.directory.export} and another"
      raise UserError(
        f"{settings.model_dir} was written with {was}, this run has {now}: {way} "
        "--model_dir."
      )
  return True


def to_text(settings: Settings) -> str:
  """The settings that all workers must share, for `check_same`."""
  own = {"model_dir"} | (_OWN_DATA if settings.data_is_local else set())
  words = settings.words()
  return json.dumps({name: words[name] for name in sorted(words.keys() - own)})


def check_same(texts: Sequence[str]) -> None:
  """Compares the settings of all workers, each `to_text`, by index.

  Raises:
    UserError: a worker was started with others than worker 0.
  """
  first, *others = map(json.loads, texts)
  for index, other in enumerate(others, start=1):
    for name in sorted(first.keys() | other.keys()):
      if first.get(name) != other.get(name):
        here, there = (x.get(name, f"no --{name}") for x in (other, first))
        raise UserError(
          f"Worker {index} was started with {here}, worker 0 with {there}: start all "
          "with the same flags."
        )


def save(settings: Settings) -> None:
  """Writes model_dir/config.flags, a flagfile that reproduces the run.

  Raises:
    UserError: model_dir cannot be made or written.
  """
  words = settings.words()
  # A flagfile that is used again is not to clear the directory again.
  names = sorted(words.keys() - {"overwrite"} - idle(settings).names)
  text = "".join(f"{flagfiles.to_line(words[name])}\n" for name in names)
  with files.explained_writing(f"--model_dir={settings.model_dir}"):
    files.write_text(settings.directory.settings, text)


def load(model_dir: str) -> Optional[Settings]:
  """The settings of the run that wrote model_dir; None if there are none.

  Raises:
    UserError: they are damaged.
  """
  path = RunDirectory(model_dir).settings
  values = _flags()
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
  return _read(values)
