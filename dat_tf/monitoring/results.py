"""The results of a run that other programs read, and that it reads again itself."""

from __future__ import annotations

import json
import re
from typing import Any, Callable

from dat_tf.base import files
from dat_tf.base.errors import UserError

_MOST = 2**63


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and 0 <= value < _MOST


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < _MOST


def _is_share(value: Any) -> bool:
  return _is_number(value) and 0 <= value <= 1


def _are_accuracies(value: Any) -> bool:
  # They name files too.
  return isinstance(value, dict) and all(
    re.fullmatch(r"[\w.-]{1,99}", name) and _is_share(share)
    for name, share in value.items()
  )


def _are_texts(value: Any) -> bool:
  return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _are_warnings(value: Any) -> bool:
  return isinstance(value, list) and all(
    _are_texts(each) and each.keys() == {"check", "message"} for each in value
  )


# What each figure may be, if it is there; null too if it is not known yet.
_KINDS: dict[str, Callable[[Any], bool]] = {
  "standard_accuracy": _is_share,
  "certified_accuracy": _is_share,
  "robust_accuracy": _are_accuracies,
  "warnings": _are_warnings,
  "trained_with": _are_texts,
  "evaluated_with": _are_texts,
  "norm": lambda value: value in ("linf", "l2", "l1"),
  "fingerprint": lambda value: isinstance(value, str),
  "attack_precision": lambda value: value in ("float32", "bfloat16"),
  "epsilon": _is_number,
  "train_seconds": _is_number,
  "examples_per_second": _is_number,
  "bytes_sent_per_step": _is_number,
  "fp32_bytes_per_step": _is_number,
  "test_examples": _is_count,
  "probed_images": _is_count,
  "epochs": _is_count,
  "global_batch_size": _is_count,
  "num_workers": _is_count,
  "parameters": _is_count,
}


def read_results(path: str) -> dict[str, Any]:
  """The results of a file; none if there is no file.

  Raises:
    UserError: it is damaged.
  """
  try:
    results = json.loads(files.read_text(path) or "{}")
    if not isinstance(results, dict):
      raise ValueError("it is no JSON object")
    for name, value in results.items():
      is_right = _KINDS.get(name, lambda value: True)
      may_be_unknown = name not in ("robust_accuracy", "warnings")
      if not (is_right(value) or (value is None and may_be_unknown)):
        raise ValueError(f"{name} is {str(value)[:60]}")
  except (ValueError, RecursionError) as error:  # JSON that does not parse, or no UTF-8
    raise UserError(
      f"{path} cannot be read ({error}): remove it and evaluate again."
    ) from None
  return results


def update_results(path: str, results: dict[str, Any]) -> None:
  """Puts results into a JSON file, beside those that are there, in one move.

  Raises:
    UserError: what is there is damaged.
  """
  there = read_results(path)
  files.write_text(path, json.dumps({**there, **results}, indent=2) + "\n")
