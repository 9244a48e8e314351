"""Our side of AutoAttack: the parts `autoattack` and `judged` of peers.py."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from typing import Any, Callable, Optional

import common
import numpy as np
import peer_processes
import tensorflow as tf
import tqdm

from dat_tf.attacks import LInfinity, make_attacks
from dat_tf.attacks.iterative import OneShot
from dat_tf.base import hashing
from dat_tf.evaluation import Evaluator, UserModel
from dat_tf.evaluation.robustness import Outcome

EPSILON = 0.1
PEERS = ("torchattacks", "art")
_BATCH = 250  # the peers', that of the official suite
_PLAIN_BATCH = 50
_RUN = os.path.join(common.ROOT, "runs", "peers_autoattack")


def trained(data: str, epochs: int) -> str:
  """Where the network is that is attacked; it is trained once."""
  path = os.path.join(_RUN, "export")
  if not os.path.exists(path):
    settings = [f"--model_dir={_RUN}", f"--epochs={epochs}", "--mode=train"]
    flagfile = "--flagfile=flags/fashion_mnist_dat_pgd.flags"
    common.python("run_dat.py", flagfile, *settings, *common.records(data))
  return path


def weights(network: tf.keras.Model) -> dict[str, np.ndarray]:
  """Its arrays by LAYER/VARIABLE."""
  return {
    f"{layer.name}/{weight.name.split('/')[-1].partition(':')[0]}": weight.numpy()
    for layer in network.layers
    for weight in layer.weights
  }


def evaluated(path: str, x: np.ndarray, y: np.ndarray) -> Outcome:
  """AutoAttack as run_dat.py evaluates a model."""
  suite = make_attacks("autoattack", LInfinity(EPSILON))
  evaluator = Evaluator(UserModel(path), {"autoattack": suite})
  return evaluator(x, y, np.arange(len(x)))[1]["autoattack"]


def measure(
  python: str, data: str, model: Optional[str], images: int, epochs: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The table's rows and the figures.

  Args:
    python: the peers'.
    data: directory of the records.
    model: a small_cnn as Keras model, instead of one that is trained here.
    images: how many are attacked, from the first test image on.
    epochs: of training.
  """
  path = model or trained(data, epochs)
  network = tf.keras.models.load_model(path, compile=False)
  x, y = common.read_records(os.path.join(data, "test-*"), images)

  def ours() -> list[float]:
    started = time.perf_counter()
    robust = evaluated(path, x, y).robust_accuracy
    return [time.perf_counter() - started, robust]

  def theirs(name: str, directory: str) -> list[float]:
    arrays = os.path.join(directory, "data.npz")
    logits = network(x, training=False).numpy()
    np.savez(arrays, images=x, labels=y, logits=logits, **weights(network))
    spec = {
      "part": "autoattack",
      "entrant": name,
      "network": "small_cnn",
      "shape": x.shape[1:],
      "batch": _BATCH,
      "epsilon": EPSILON,
      "threads": peer_processes.THREADS,
      "data": arrays,
    }
    peer = peer_processes.Peer(python, spec)
    try:
      return peer(1)
    finally:
      peer.close()

  # Ours before and after the peers, in case the machine changes; the mean counts.
  found = {"ours": ours()}
  for name in PEERS:
    with peer_processes.surviving(name), tempfile.TemporaryDirectory() as directory:
      found[name] = theirs(name, directory)
  found["ours"][0] = (found["ours"][0] + ours()[0]) / 2.0
  figures: dict[str, Any] = {"autoattack_images": len(x)}
  rows = []
  for name, (seconds, robust) in found.items():
    figures[f"autoattack_{name}_seconds"] = seconds
    figures[f"autoattack_{name}_robust_accuracy"] = robust
    rows.append({"AutoAttack of": name, "seconds": seconds, "robust": f"{robust:.1%}"})
  peers = [found[name][0] for name in PEERS if name in found]
  if peers:
    figures["autoattack_over_best_peer"] = min(peers) / found["ours"][0]
  return rows, figures


def plainly_robust(
  classifier: Callable[[tf.Tensor], tf.Tensor], x: np.ndarray, y: np.ndarray
) -> np.ndarray:
  """Which images AutoAttack leaves right, with nothing done to make it fast; bool [N].

  Each attack of the suite takes all its rounds, in batches that stay together; the
  random numbers are those of `Evaluator`.
  """
  ball = LInfinity(EPSILON)
  classify = tf.function(classifier)
  attacks = [
    tf.function(functools.partial(OneShot(attack), classify))
    for attack in make_attacks("autoattack", ball).values()
  ]
  keys = hashing.stream_keys(0, np.arange(len(x))).numpy()
  robust = np.argmax(classify(tf.constant(x)), axis=1) == y
  for attack in tqdm.tqdm(attacks, desc="plain AutoAttack"):
    left = np.flatnonzero(robust)
    for start in range(0, len(left), _PLAIN_BATCH):
      # Batches are of one size, so that each attack has one graph.
      part = np.resize(left[start : start + _PLAIN_BATCH], _PLAIN_BATCH)
      moved = attack(
        tf.constant(x[part]), tf.constant(y[part], tf.int32), tf.constant(keys[part])
      )
      inside = ball.norm(moved - x[part]).numpy() <= EPSILON + 1e-5
      fooled = np.argmax(classify(moved), axis=1) != y[part]
      robust[part[inside & fooled]] = False
  return robust


def measure_judgement(
  data: str, model: Optional[str], images: int, epochs: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The table's rows and the figures of evaluation beside a plain one."""
  path = model or trained(data, epochs)
  network = tf.keras.models.load_model(path, compile=False)
  x, y = common.read_records(os.path.join(data, "test-*"), images)
  ours = ~evaluated(path, x, y).broken
  plain = plainly_robust(lambda batch: network(batch, training=False), x, y)
  figures = {
    "judged_images": len(x),
    "judged_more_robust": int((ours & ~plain).sum()),
    "judged_less_robust": int((~ours & plain).sum()),
    "judged_robust_accuracy": float(ours.mean()),
    "judged_plain_robust_accuracy": float(plain.mean()),
  }
  return [{"figure": name, "value": value} for name, value in figures.items()], figures
