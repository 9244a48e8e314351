"""The trainer's speed against a bare loop: what Keras, metrics and pipeline cost.

    python benchmarks/step_time.py --json=docs/results/step_time.json

Both train with PGD-10, clean weight 1 and LAMB, in one process, in turns; both attack
the network with batch-norm folded. benchmarks/loops.py says what they are.

A round times each for the same number of steps, without the first, which fills the
pipeline. The ratio is the median over the rounds of bare time / trainer time.

JSON keys:
  trainer_over_bare        images/s of the trainer over the bare loop's,
                           PreActResNet-18, 32 x 32 x 3, batch 32
  trainer_over_bare_small  the same for the small CNN, 28 x 28 x 1, batch 128
  lowest_ratio*, highest_ratio*   of the rounds: how noisy the machine was
  *_images_per_second             medians, trainer and bare
"""

from __future__ import annotations

import contextlib
import os
import tempfile

import numpy as np
import tqdm
from absl import flags

from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow  # noqa: F401

  from dat_tf.program.run import opened
  from dat_tf.workers.cluster import Cluster

import common
import loops

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each.", lower_bound=1)

CASES = {
  # by the suffix of the JSON key
  "": loops.Case("preact_resnet18", (32, 32, 3), 32, 3),
  "_small": loops.Case("small_cnn", (28, 28, 1), 128, 20),
}


def main(argv: list[str]) -> None:
  del argv
  rows, figures = [], {}
  for suffix, case in CASES.items():
    images, labels = case.data()
    with contextlib.ExitStack() as stack:
      directory = stack.enter_context(tempfile.TemporaryDirectory())
      loops.write_data(images, labels, directory)
      config = loops.settings_of_trainer(case, directory)
      both = {
        "trainer": loops.trainer_loop(stack.enter_context(opened(config, Cluster()))),
        "bare": loops.bare_loop(case, images, labels),
      }
      for loop in both.values():
        loop(1)  # builds the graph
      speeds: dict[str, list[float]] = {name: [] for name in both}
      for turn in tqdm.trange(_ROUNDS.value, desc=case.model):
        # Who comes first changes, in case that matters.
        for name in sorted(both, reverse=bool(turn % 2)):
          speeds[name].append(case.batch * case.steps / both[name](case.steps))
    ratios = np.array(speeds["trainer"]) / np.array(speeds["bare"])
    figures[f"trainer_over_bare{suffix}"] = float(np.median(ratios))
    figures[f"lowest_ratio{suffix}"] = float(ratios.min())
    figures[f"highest_ratio{suffix}"] = float(ratios.max())
    for name, values in speeds.items():
      figures[f"{name}{suffix}_images_per_second"] = float(np.median(values))
    rows.append(
      {
        "network": case.model,
        "batch": case.batch,
        "trainer, images/s": np.median(speeds["trainer"]),
        "bare, images/s": np.median(speeds["bare"]),
        "trainer / bare": np.median(ratios),
        "lowest": ratios.min(),
        "highest": ratios.max(),
      }
    )
  common.report(rows, figures)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  run_script(main)
