"""What the arrays of a run must be like to be shown: they may be anybody's."""

from __future__ import annotations

import numpy as np

# More classes would make a table of all pairs larger than the memory.
_MOST_CLASSES = 2**15
_COLUMNS = ("example_id", "label", "prediction", "adversarial_prediction")
# Arrays of probes.npz that must have as many entries, and how many dimensions.
_TOGETHER = (
  {"epsilons": 1, "epsilon_accuracy": 1, "noise_accuracy": 1},
  {"steps": 1, "steps_accuracy": 1, "steps_loss": 1},
  {"surface_gradient": 1, "surface_random": 1, "surface": 2},
  {
    "gallery_image": 4,
    "gallery_adversarial": 4,
    "gallery_label": 1,
    "gallery_prediction": 1,
    "gallery_adversarial_prediction": 1,
  },
)
_LARGEST = 1e30  # beyond which matplotlib computes in vain


def check_outcomes(arrays: dict[str, np.ndarray]) -> None:
  """Raises ValueError if they are not what `evaluation.outcomes` writes."""
  _need(arrays, "fingerprint", *_COLUMNS)
  length = arrays["example_id"].shape[:1]
  for name in _COLUMNS:
    column = arrays[name]
    if column.dtype.kind not in "iu" or column.shape != length or not column.size:
      raise ValueError(f"{name} is {column.dtype} {column.shape}")
    if name != "example_id" and not 0 <= column.min() <= column.max() < _MOST_CLASSES:
      raise ValueError(f"{name} lies outside [0, {_MOST_CLASSES})")


def check_probes(arrays: dict[str, np.ndarray]) -> None:
  """Raises ValueError if they are not what `evaluation.probes` writes."""
  _need(arrays, "fingerprint")
  for group in _TOGETHER:
    there = {name: arrays[name] for name in group if name in arrays}
    if not there:
      continue
    _need(arrays, *(set(group) - {"noise_accuracy"}))
    length = next(iter(there.values())).shape[:1]
    for name, array in there.items():
      if (
        array.ndim != group[name]
        or array.dtype.kind not in "iuf"
        or array.shape[:1] != length
        or not array.size
      ):
        raise ValueError(f"{name} is {array.dtype} {array.shape}")
      # The surface is left out where it is not finite.
      finite = array[np.isfinite(array)] if name == "surface" else array
      if not np.all(np.abs(finite.astype(np.float64)) < _LARGEST):
        raise ValueError(f"{name} is not finite")
  surface = arrays.get("surface", np.zeros([1, 1]))
  if surface.shape[0] != surface.shape[1]:
    raise ValueError(f"surface is {surface.shape}")
  images = [arrays.get(f"gallery_{x}") for x in ("image", "adversarial")]
  if images[0] is not None and images[1] is not None:
    if images[0].shape != images[1].shape or images[0].shape[3] not in (1, 3):
      raise ValueError(f"gallery_image is {images[0].shape}")
  for name, array in arrays.items():
    if name.endswith("confidence") and (
      array.dtype.kind != "f"
      or array.shape != arrays["gallery_label"].shape
      or not np.all((array >= 0) & (array <= 1.001))
    ):
      raise ValueError(f"{name} is {array.dtype} {array.shape}")
  if "example_id" in arrays and arrays["example_id"].ndim != 1:
    raise ValueError(f"example_id is {arrays['example_id'].shape}")


def _need(arrays: dict[str, np.ndarray], *names: str) -> None:
  missing = sorted(set(names) - arrays.keys())
  if missing:
    raise ValueError(f"{missing[0]} is missing")
