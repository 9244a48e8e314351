"""The stack under this package: a Python, a TensorFlow and a Keras that go together.

Two stacks are tested; the Python decides which of them `pip install .` takes:

    Python 3.9 to 3.11    TensorFlow 2.15 and TensorFlow Addons 0.23
    Python 3.12, 3.13     TensorFlow 2.19 to 2.21 and tf_keras of the same minor version

On both, `tf.keras` is Keras 2. From 2.16 on TensorFlow takes Keras 3 for `tf.keras`,
which does not work under MultiWorkerMirroredStrategy, unless TF_USE_LEGACY_KERAS is set
when `tf.keras` is first used.

What is here reads the versions of installed packages and does not import them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from types import TracebackType
from typing import Optional

from dat_tf.base.errors import UserError

PYTHONS = ((3, 9), (3, 13))  # the first and the last that serve
CLASSIC = (2, 15)  # the TensorFlow that TensorFlow Addons goes with
MODERN = ((2, 18), (2, 21))  # the first and the last TensorFlow that is tested
_LAST_WITH_FIRST_MODERN = (3, 11)  # Pythons that tf_keras 2.18 runs on

# The names under which a TensorFlow, and a Keras 2 for it, may be installed.
_TENSORFLOWS = (
  "tensorflow",
  "tensorflow-cpu",
  "tf-nightly",
  "tf-nightly-cpu",
  "tensorflow-macos",
  "tensorflow-rocm",
  "intel-tensorflow",
  "tensorflow-intel",
)
_LEGACY_KERAS = ("tf_keras", "tf_keras-nightly")
# What all workers of a run must have alike, and what it is called.
_SHARED = {
  "dat_tf": "DAT-TF",
  "code": "DAT-TF's code",
  "tensorflow": "TensorFlow",
  "keras": "Keras",
}
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


class UnsuitableStack(ImportError):
  """This Python, TensorFlow or Keras cannot run the package.

  Its text is one line that says what is wrong and what to do about it. Where nothing
  catches it the program prints that line alone and ends with exit code 2.
  """

  def __init__(self, message: str):
    super().__init__(message)
    sys.excepthook = _print_one_line


def prepare(version_info: tuple[int, ...] = sys.version_info[:3]) -> None:
  """Checks the stack, and sets what TensorFlow reads when it is imported.

  In the environment it sets TF_USE_LEGACY_KERAS, where TensorFlow would take Keras 3,
  TF_CPP_MIN_LOG_LEVEL, TF_ENABLE_ONEDNN_OPTS and TF_FORCE_GPU_ALLOW_GROWTH; a value
  that is there stays. Beside TensorFlow 2.15 it unsets TF_USE_LEGACY_KERAS.

  Raises:
    UnsuitableStack: versions that do not go together, or are too old or too new.
  """
  first, last = PYTHONS
  if not first <= tuple(version_info[:2]) <= last:
    raise UnsuitableStack(
      f"DAT-TF needs Python {_text(first)} to {_text(last)}, which TensorFlow serves; "
      f"this is Python {_text(version_info)}: install one of those, or name it: "
      f"make PYTHON=/path/to/python{_text(last)}."
    )
  tensorflow = _installed(_TENSORFLOWS)
  # None: it is built from source under a name of its own, or missing.
  minor = _minor(tensorflow) if tensorflow else CLASSIC
  # TensorFlow uses oneDNN's kernels by itself on some processors only (those with
  # AVX-512 VNNI or AMX); those with AVX2 gain by them too.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
  # A process would take all memory of a GPU at its start, and leave none to the trial
  # of bfloat16, which is a process of its own.
  os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
  # Level 1 hides TensorFlow's start-up chatter, and level 2 its warnings too: from 2.16
  # on each error is preceded by one for every operation that it passed through.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if minor == CLASSIC else "2")
  if minor == CLASSIC:
    # It has Keras 2 already, and would look for tf_keras in vain.
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    return
  if minor < MODERN[0]:
    raise UnsuitableStack(
      f"TensorFlow {tensorflow} is none that DAT-TF serves, which are "
      f"{_text(CLASSIC)} and {_text(MODERN[0])} to {_text(MODERN[1])}: pip install ."
    )
  addons = _installed(("tensorflow-addons",))
  if addons:
    raise UnsuitableStack(
      f"TensorFlow Addons {addons} does not work beside TensorFlow {tensorflow}, only "
      f"beside {_text(CLASSIC)}: pip uninstall tensorflow-addons."
    )
  keras = _installed(_LEGACY_KERAS)
  if keras is None or _minor(keras) != minor:
    raise UnsuitableStack(
      f"TensorFlow {tensorflow} needs tf_keras of the same version, and "
      f"{'there is none' if keras is None else f'here is {keras}'}: "
      f'pip install "tf_keras=={_text(minor)}.*".'
    )
  if minor == MODERN[0] and tuple(version_info[:2]) > _LAST_WITH_FIRST_MODERN:
    # It hands a float to random.randint once a seed is set.
    raise UnsuitableStack(
      f"tf_keras {keras} does not run on Python {_text(version_info)}: pip install "
      '"tensorflow>=2.19,<2.22" "tf_keras>=2.19,<2.22".'
    )
  os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")


def versions() -> dict[str, str]:
  """The versions of what a run is made of, by name; "none" for what is not there."""
  tensorflow = _installed(_TENSORFLOWS)
  is_classic = tensorflow is not None and _minor(tensorflow) == CLASSIC
  return {
    "dat_tf": _own_version(),
    "commit": _commit(),
    "python": platform.python_version(),
    "tensorflow": tensorflow or "none",
    "keras": _installed(("keras",) if is_classic else _LEGACY_KERAS) or "none",
  }


def describe(versions: Mapping[str, str]) -> str:
  """One line of `versions()`."""
  return (
    f"DAT-TF {versions['dat_tf']} (commit {versions['commit']}), Python "
    f"{versions['python']}, TensorFlow {versions['tensorflow']}, Keras "
    f"{versions['keras']}"
  )


def to_text() -> str:
  """The versions that all workers of a run must share, for `check_same`."""
  # Another commit may differ in documents only.
  there = {**versions(), "code": _code()}
  return json.dumps({name: there[name] for name in _SHARED})


def check_same(texts: Sequence[str]) -> None:
  """Compares the versions of all workers, each `to_text`, by index.

  Raises:
    UserError: a worker runs on other versions than worker 0.
  """
  first, *others = map(json.loads, texts)
  for index, other in enumerate(others, start=1):
    for name, title in _SHARED.items():
      here, there = (texts.get(name, "none") for texts in (other, first))
      if here != there:
        raise UserError(
          f"Worker {index} runs on {title} {here}, worker 0 on {title} {there}: "
          "install the same on all."
        )


def _own_version() -> str:
  from dat_tf import __version__

  return __version__


def _code() -> str:
  """A hash of the package's files, whatever its version says."""
  digest = hashlib.sha256()
  for path in sorted(_PACKAGE.rglob("*.py")):
    digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0")
    digest.update(path.read_bytes() + b"\0")
  return digest.hexdigest()[:12]


def _commit() -> str:
  """The commit of the clone that this is, or that this was built from; or "unknown"."""
  built_from = _PACKAGE / "COMMIT"  # setup.py writes it into a wheel
  if built_from.exists():
    return built_from.read_text(encoding="utf-8").strip()
  if (_PACKAGE.parent / ".git").exists():
    command = ["git", "-C", str(_PACKAGE.parent), "describe", "--always", "--dirty"]
    try:
      return subprocess.check_output(
        [*command, "--exclude=*", "--abbrev=12"],
        stderr=subprocess.DEVNULL,
        text=True,
      ).strip()
    except (OSError, subprocess.CalledProcessError):
      pass
  return "unknown"


def _installed(names: tuple[str, ...]) -> Optional[str]:
  """The version of the first of these packages that is installed."""
  for name in names:
    try:
      return metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return None


def _minor(version: str) -> tuple[int, int]:
  major, minor = version.split(".")[:2]
  return int(major), int(minor)


def _text(version: tuple[int, ...]) -> str:
  return ".".join(map(str, version))


def _print_one_line(
  kind: type[BaseException],
  error: BaseException,
  traceback: Optional[TracebackType],
) -> None:
  """A `sys.excepthook` that shows an `UnsuitableStack` as any mistake of the user."""
  if not issubclass(kind, UnsuitableStack):
    sys.__excepthook__(kind, error, traceback)
    return
  print(error, file=sys.stderr)
  if not hasattr(sys, "ps1"):  # an interactive session goes on
    raise SystemExit(2)
