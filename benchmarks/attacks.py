"""The attacks of evaluation against independent implementations of them.

    python benchmarks/attacks.py --peer_python=PYTHON --json=docs/results/attacks.json

PYTHON is that of an environment of its own with TensorFlow 2.15,
adversarial-robustness-toolbox, foolbox and cleverhans. All attack the same images and
the same trained Keras model with the same budgets: l-infinity 0.1 and, where the attack
is of that norm, l2 1.5.

Time: APGD-CE, APGD-T and Square, each on the images that those before it left, as
AutoAttack runs them, on the first images: ours, the peer's and ours again, of which
the mean counts; compilation included. Accuracy: each attack alone, on the images that
follow. In color: Square in l2 and l1 beside APGD-CE, ours alone, which needs no
--peer_python, on a small network that is trained here, by PGD in l2, on the images in
color: each has one random color for its object and one for its ground. Each part may be
left out (--timed_images=0, --images=0, --color_images=0); its figures then stay in
--json as they are.

Ours and the official APGD tell of the best point that they met, the peers' APGD and
PGD of the last; ART's targeted APGD climbs the untargeted DLR with the target for its
label, its Square stretches the official schedule of windows over all queries.

JSON keys:
  ATTACK_minus_peer_points       robust accuracy of ours less the peer's, in points, for
                                 apgd_ce, apgd_dlr, apgd_t, square, pgd_foolbox,
                                 pgd_cleverhans, and at the l2 radius for ddn, deepfool
  ATTACK_median_norm_over_peer   of the norms found by ddn, deepfool: ours over peer's
  autoattack_minus_peer_points   the same, of images that withstand apgd_ce, apgd_t and
                                 square
  autoattack_speedup             peer's seconds over ours
  autoattack_seconds, autoattack_peer_seconds    ours, the peer's
  square_NORM_minus_apgd_points  in color, for l2 and l1: robust accuracy under Square
                                 less that under APGD-CE, at least 0 where the gradient
                                 tells more than random search
  color_clean_accuracy           of that network, in percent, on the same images
  square_NORM_color, apgd_ce_NORM_color   robust accuracy there, in percent
  images, timed_images, color_images    how many
  machine, timed_on, color_on   where accuracy, time and color were measured
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import flags

from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf.adversarial_model import AdversarialModel
  from dat_tf.attacks import L1, L2, PGD, LInfinity, make_attacks
  from dat_tf.base.errors import UserError
  from dat_tf.evaluation import Evaluator
  from dat_tf.models import make_model
  from dat_tf.optimizers import LAMB, WarmupDecay

import common

_PEER = flags.DEFINE_string("peer_python", None, "Python that has the peers.")
_MODEL = flags.DEFINE_string(
  "model", "runs/fashion_mnist_dat_pgd/export", "A trained Keras model: logits out."
)
_DATA = flags.DEFINE_string(
  "data", "data/fashion_mnist/test-*", "TFRecords of its test images, bare pixels."
)
_TRAIN_DATA = flags.DEFINE_string(
  "train_data",
  "data/fashion_mnist/train-*",
  "What the network in color is trained on.",
)
_IMAGES = flags.DEFINE_integer("images", 1000, "For accuracy.", lower_bound=0)
_TIMED = flags.DEFINE_integer("timed_images", 200, "For time.", lower_bound=0)
_COLOR = flags.DEFINE_integer("color_images", 200, "In color.", lower_bound=0)

LINF, SQUARED = 0.1, 1.5
# In color: radii for images of three channels, and images of training.
COLOR_BALLS, COLOR_TRAINED = {"l2": L2(0.5), "l1": L1(8.0)}, 20_000
# Our name and norm of what the peers' script calls so.
ATTACKS = {
  "apgd_ce": ("apgd-ce", LInfinity(LINF)),
  "apgd_dlr": ("apgd-dlr", LInfinity(LINF)),
  "apgd_t": ("apgd-t", LInfinity(LINF)),
  "square": ("square", LInfinity(LINF)),
  "pgd_foolbox": ("pgd-40", LInfinity(LINF)),
  "pgd_cleverhans": ("pgd-40", LInfinity(LINF)),
  "ddn": ("ddn", L2(SQUARED)),
  "deepfool": ("deepfool", L2(SQUARED)),
}
TIMED = ("apgd_ce", "apgd_t", "square")


def run_peers(
  part: str, names: Iterable[str], images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
  """Results of benchmarks/attack_peers.py, as its head describes them."""
  script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "attack_peers.py")
  with tempfile.TemporaryDirectory() as directory:
    data, out = os.path.join(directory, "in.npz"), os.path.join(directory, "out.json")
    np.savez(data, images=images, labels=labels)
    subprocess.run(
      [_PEER.value, script, part, os.path.abspath(_MODEL.value), data, out]
      + [str(LINF), str(SQUARED), *names],
      check=True,
    )
    with open(out, encoding="utf-8") as file:
      return json.load(file)


class Attacks:
  """Our side: attacks on one model."""

  def __init__(self, path: str):
    model = tf.keras.models.load_model(path, compile=False)
    self.classifier = tf.function(lambda x: model(x, training=False))

  def norms(self, keys: Sequence[str], images: Any, labels: Any) -> np.ndarray:
    """Norms of the smallest perturbations that the attacks found together; [N]."""
    chain = [attack for key in keys for attack in make_attacks(*ATTACKS[key]).values()]
    evaluator = Evaluator(self.classifier, {"chain": chain})
    _, outcomes = evaluator(images, labels, np.arange(len(images)))
    return outcomes["chain"].norm


def measure_time(ours: Attacks, images: Any, labels: Any) -> dict[str, Any]:
  """The figures of time."""

  def run() -> float:
    started = time.perf_counter()
    ours.norms(TIMED, images, labels)
    return time.perf_counter() - started

  before = run()
  peer = run_peers("time", TIMED, images, labels)["seconds"]
  seconds = (before + run()) / 2.0
  return {
    "timed_images": len(images),
    "timed_on": common.machine(),
    "autoattack_speedup": peer / seconds,
    "autoattack_seconds": seconds,
    "autoattack_peer_seconds": peer,
  }


def measure_accuracy(
  ours: Attacks, images: Any, labels: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The table's rows and the figures of accuracy."""
  peers = run_peers("accuracy", ATTACKS, images, labels)
  rows: list[dict[str, Any]] = []
  figures: dict[str, Any] = {"images": len(images), "machine": common.machine()}
  found: dict[str, np.ndarray] = {}
  for key, (name, ball) in ATTACKS.items():
    mine, theirs = ours.norms([key], images, labels), np.array(peers["norms"][key])
    found[key] = np.stack([mine, theirs])
    rows.append(_row(name, mine, theirs, ball.epsilon) | {"peer": peers["names"][key]})
    figures[f"{key}_minus_peer_points"] = rows[-1]["points"]
    if isinstance(ball, L2):
      ratio = float(np.median(mine[mine > 0]) / np.median(theirs[theirs > 0]))
      figures[f"{key}_median_norm_over_peer"] = rows[-1]["norm ratio"] = ratio
  smallest = np.min([found[key] for key in TIMED], axis=0)
  row = _row(" + ".join(ATTACKS[key][0] for key in TIMED), *smallest, LINF)
  rows.append(row | {"peer": peers["names"]["apgd_t"]})
  figures["autoattack_minus_peer_points"] = row["points"]
  return rows, figures


def in_color(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Grey images [N, H, W, 1] as [N, H, W, 3]: a color for the dark, one for the light.

  The two differ by at least a half in some channel.
  """
  dark, light = rng.uniform(size=(2, len(images), 1, 1, 3)).astype(np.float32)
  close = np.abs(light - dark).max(axis=-1, keepdims=True) < 0.5
  light = np.where(close, (dark + 0.5) % 1.0, light)
  return dark + images * (light - dark)


def color_network(rng: np.random.Generator) -> tf.keras.Model:
  """A small network, trained by PGD in l2 on images in color."""
  images, labels = common.read_records(_TRAIN_DATA.value, COLOR_TRAINED)
  model = AdversarialModel(
    make_model("small_cnn", (*images.shape[1:3], 3), 10),
    PGD(COLOR_BALLS["l2"], 0.2, 5),
  )
  model.compile(optimizer=LAMB(WarmupDecay(0.02, 50, decay="cosine", total_steps=312)))
  data = tf.data.Dataset.from_tensor_slices((in_color(images, rng), labels))
  print("Training the network in color.", flush=True)
  batches = (
    data.shuffle(COLOR_TRAINED, seed=0).repeat(2).batch(128, drop_remainder=True)
  )
  model.fit(batches, verbose=2)
  return model.classifier


def measure_color(
  images: np.ndarray, labels: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The table's rows and the figures of Square on images of three channels."""
  rng = np.random.default_rng(0)
  tf.keras.utils.set_random_seed(0)
  network = color_network(rng)
  classifier, images = lambda x: network(x, training=False), in_color(images, rng)
  right = np.argmax(classifier(images), axis=1) == labels
  figures = {
    "color_images": len(images),
    "color_on": common.machine(),
    "color_clean_accuracy": 100.0 * float(right.mean()),
  }
  rows = []
  for norm, ball in COLOR_BALLS.items():
    names = "square", "apgd-ce"
    evaluator = Evaluator(
      classifier, {name: make_attacks(name, ball).values() for name in names}
    )
    _, outcomes = evaluator(images, labels, np.arange(len(images)))
    robust = {name: 100.0 * outcomes[name].robust_accuracy for name in names}
    figures[f"square_{norm}_minus_apgd_points"] = robust["square"] - robust["apgd-ce"]
    figures[f"square_{norm}_color"] = robust["square"]
    figures[f"apgd_ce_{norm}_color"] = robust["apgd-ce"]
    rows += [
      {"attack": f"{name}, {norm}, color", "robust, %": each}
      for name, each in robust.items()
    ]
  return rows, figures


def main(argv: list[str]) -> None:
  del argv
  with_peer = _IMAGES.value or _TIMED.value
  if with_peer and not _PEER.value:
    raise UserError(
      "--peer_python is required: what ours is compared with. Without it there is "
      "--images=0 --timed_images=0."
    )
  if not with_peer and not _COLOR.value:
    raise UserError("--images, --timed_images and --color_images are 0: give one.")
  count = max(_TIMED.value + _IMAGES.value, _COLOR.value)
  images, labels = common.read_records(_DATA.value, count)
  figures, rows = common.figures_there(), []
  ours = Attacks(_MODEL.value) if with_peer else None
  if _TIMED.value:
    part = slice(_TIMED.value)
    figures |= measure_time(ours, images[part], labels[part])
  if _IMAGES.value:
    part = slice(_TIMED.value, _TIMED.value + _IMAGES.value)
    rows, measured = measure_accuracy(ours, images[part], labels[part])
    figures |= measured
  if _COLOR.value:
    part = slice(_COLOR.value)
    more, measured = measure_color(images[part], labels[part])
    rows, figures = rows + more, figures | measured
  note = ""
  if "autoattack_speedup" in figures:
    note = f"{figures['autoattack_speedup']:.2f} times as fast as the peer"
  common.report(rows, figures, note)


def _row(
  name: str, ours: np.ndarray, theirs: np.ndarray, epsilon: float
) -> dict[str, Any]:
  ours_robust, peer_robust = (
    100.0 * float((norm > epsilon + 1e-5).mean()) for norm in (ours, theirs)
  )
  return {
    "attack": name,
    "robust, %": ours_robust,
    "peer's, %": peer_robust,
    "points": ours_robust - peer_robust,
  }


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  run_script(main)
