"""Makes directories like those that runs leave, for the report to read."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import tensorflow as tf

from dat_tf import config as config_lib

EPSILON = 0.1
CLASSES = 5


def write_run(
  directory,
  *,
  seed=0,
  flags=(),
  attacks=("apgd-ce", "square"),
  plots=True,
  **figures,
):
  """A whole run: settings, results, outcomes of attacks, probes and logs.

  Args:
    directory: where.
    seed: makes runs differ.
    flags: settings that are not the defaults.
    attacks: names, of which the first is the most harmful.
    plots: whether there is more than settings and results, of which there are plots.
    **figures: put into results.json.

  Returns:
    The outcomes: {attack: {name: array}}.
  """
  directory = pathlib.Path(directory)
  rng = np.random.default_rng(seed)
  config = config_lib.parse(
    [
      "",
      "--mode=train",
      "--train_data=none",
      f"--model_dir={directory}",
      f"--epsilon={EPSILON}",
      *flags,
    ]
  )
  config_lib.save(config)
  outcomes = {}
  example_id = np.arange(400)
  label = rng.integers(0, CLASSES, 400).astype(np.int32)
  wrong = lambda share: np.where(  # noqa: E731
    rng.random(400) < share * (1 + label) / CLASSES, (label + 1) % CLASSES, label
  ).astype(np.int32)
  prediction = wrong(0.2)
  for share, attack in zip((0.9, 0.5, 0.4), attacks):
    adversarial = np.where(prediction == label, wrong(share), prediction)
    outcomes[attack] = {
      "example_id": example_id,
      "label": label,
      "prediction": prediction,
      "norm": np.where(adversarial == label, np.inf, EPSILON).astype("f4"),
      "attack": np.where(adversarial == label, -1, 0).astype(np.int32),
      "adversarial_prediction": adversarial,
      "sequence": np.array([attack]),
      "epsilon": np.float32(EPSILON),
      "ball": np.array("linf"),
      "fingerprint": np.array("0"),
    }
  results = {
    "standard_accuracy": float(np.mean(prediction == label)),
    "robust_accuracy": {
      name: float(np.mean(o["adversarial_prediction"] == label))
      for name, o in outcomes.items()
    },
    "test_examples": 400,
    "norm": "linf",
    "epsilon": EPSILON,
    "fingerprint": "0",
    "warnings": [],
    "probed_images": 200,
    "epochs": 2,
    "global_batch_size": 128,
    "num_workers": 2,
    "parameters": 1000,
    "train_seconds": 12.5,
    "examples_per_second": 640.5,
    "bytes_sent_per_step": 1004,
    "fp32_bytes_per_step": 4000,
    **figures,
  }
  (directory / "results.json").write_text(json.dumps(results))
  if plots:
    (directory / "evaluation").mkdir()
    for name, arrays in {**outcomes, "probes": probes(rng)}.items():
      np.savez(directory / "evaluation" / f"{name}.npz", **arrays)
    write_logs(directory, rng)
  return outcomes


def probes(rng):
  """What the evaluation measures beside the attacks, of a network of two kernels."""
  epsilons = np.linspace(0, 4 * EPSILON, 9, dtype="f4")
  axis = np.linspace(-2, 2, 11, dtype="f4")
  images = rng.random((4, 6, 6, 1), "f4")
  lower = 0.1 * rng.random()
  return {
    "fingerprint": np.array("0"),
    "example_id": np.arange(200),
    "epsilons": epsilons,
    "epsilon_accuracy": np.exp(-((epsilons / (0.15 + lower)) ** 2)),
    "noise_accuracy": 1 - (lower + 0.3) * epsilons,
    "steps": np.array([0, 1, 2, 5, 10, 20, 50], np.int32),
    "steps_accuracy": np.array([0.9, 0.7, 0.6, 0.5, 0.47, 0.46, 0.46]) - lower,
    "steps_loss": np.array([0.3, 0.9, 1.1, 1.3, 1.36, 1.38, 1.39]) + lower,
    "surface_gradient": axis,
    "surface_random": axis,
    "surface": np.logaddexp(0, axis[:, None] + 0.2 * axis**2).astype("f4"),
    "gallery_image": images,
    "gallery_adversarial": np.clip(
      images + EPSILON * np.sign(rng.normal(size=images.shape)), 0, 1
    ).astype("f4"),
    "gallery_label": np.array([0, 1, 2, 3], np.int32),
    "gallery_prediction": np.array([0, 1, 2, 4], np.int32),
    "gallery_adversarial_prediction": np.array([0, 4, 3, 4], np.int32),
    "gallery_confidence": np.array([0.9, 0.8, 0.7, 0.6], "f4"),
    "gallery_adversarial_confidence": np.array([0.6, 0.5, 0.4, 0.7], "f4"),
  }


def write_logs(directory, rng):
  """TensorBoard's files, as a training of 20 steps leaves them."""
  for folder, steps in (("train", range(2, 21, 2)), ("test", (10, 20))):
    writer = tf.summary.create_file_writer(str(directory / "logs" / folder))
    with writer.as_default():
      for step in steps:
        for tag, value in (
          ("accuracy", 1 - 8 / (8 + step)),
          ("robust_accuracy", 0.8 - 8 / (10 + step)),
          ("loss", 2 / (1 + step) + 0.05 * rng.random()),
          ("gradient_norm", 1 + rng.random()),
          ("learning_rate", 0.1 * (1 - step / 21)),
          ("reduction_ms", 7 + rng.random()),
          ("encode_ms", 2 + rng.random()),
        ):
          tf.summary.scalar(tag, value, step)
    writer.close()
