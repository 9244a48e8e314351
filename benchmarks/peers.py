"""Training and evaluation against other libraries, at the same work on one machine.

    python benchmarks/peers.py --python=python3.11 --data=data/fashion_mnist
        --json=docs/results/peers.json

Makes the peers' environment with that Python, in .venv-peers, unless it is there: the
packages are named in benchmarks/peer_processes.py. Each peer is a process of its own
that takes its turns with ours. One that fails is named, and has no figures. Ours and
theirs have two threads.

--parts says what is measured:

step: a whole training step, of PGD-10 from a random start in inference mode (epsilon
0.1, step 0.025) and one pass over clean and adversarial images, with SGD; on the same
random images. Ours is what run_dat.py runs, with its pipeline, figures and checks.
The `torch` ones are loops by hand over batches in memory, channels_last; with bfloat16
the attack alone is in it (in torch: autocast), with mixed the pass too. The libraries
make the attack in a loop by hand, but for ART, whose AdversarialTrainer attacks half of
two batches. `tensorflow` is a loop by hand as well, and no peer. Who comes first
alternates. An entrant whose best of two turns takes twice the time of the worst of its
side's fastest has no more of them. Where the processor has no bfloat16, ours in it are
left out.

JSON keys; N is small (small CNN, 28 x 28 x 1, batch 128) or resnet (PreActResNet-18,
32 x 32 x 3, batch 32):
  step_over_best_peer_N        images/s of our fastest entrant over those of the fastest
                               peer: median of the turns' ratios
  step_over_best_peer_N_fp32   the same of entrants in float32 alone
  step_over_tensorflow_N, step_over_tensorflow_N_fp32   over the loop in TensorFlow
  lowest_step_*, highest_step_*   of the turns
  step_best_*, step_best_peer_*   which entrants these are
  step_ENTRANT_N_images_per_second   medians: ours, ours_bfloat16, ours_mixed,
                               tensorflow, torch, torch_compiled, torch_bfloat16,
                               torch_mixed, torchattacks, foolbox, cleverhans, art
  step_turns                   turns of each

autoattack: the standard suite, with the official budgets, on the first test images of
Fashion-MNIST, epsilon 0.1, and on one small CNN that flags/fashion_mnist_dat_pgd.flags
trains once, in runs/peers_autoattack. The peers have its weights in PyTorch, and its
logits to 1e-4. The seconds have no start of a process in them, but whatever is compiled
for the images. torchattacks' standard suite takes 10 steps where the official one takes
100: it takes 100 here. ART has no FAB, and does that much less.

JSON keys; P is ours, torchattacks or art:
  autoattack_over_best_peer    seconds of the fastest peer over ours
  autoattack_P_seconds         ours: mean of a run before the peers' and one behind
  autoattack_P_robust_accuracy   0 to 1
  autoattack_images            how many

judged: the same network under the same suite on the first images (--judged_images),
as run_dat.py evaluates a model, and plainly: the Keras model in float32, each attack
with all its rounds in batches that stay together, the random numbers the same.

JSON keys:
  judged_more_robust           images that evaluation calls robust and the plain one not
  judged_less_robust           the other way round
  judged_robust_accuracy, judged_plain_robust_accuracy   0 to 1
  judged_images                how many

train: seconds until 70 % (--target) of Fashion-MNIST's test images withstand PGD-20
(epsilon 0.1, step 0.0125, its last point). Ours is the command that trains with
--experiment, whole. The peer is a loop by hand in PyTorch, channels_last: SGD with
momentum on adversarial images alone, PGD-7 in the faster of float32 and bfloat16, batch
128, a constant rate of 0.05; it is looked at each quarter of an epoch. Its seconds are
those of the process's start and of training. No evaluation counts on either side. The
two recipes differ, not the programs alone.

JSON keys:
  seconds_to_70, peer_seconds_to_70    only where it was reached
  ours_robust_accuracy, peer_robust_accuracy   at that time, 0 to 1
  peer_epochs, peer_form       the peer's epochs and arithmetic
  train_flagfile, train_workers        ours

Of each part P, P_machine says where it was.
"""

from __future__ import annotations

import os
import re
from typing import Any

from absl import flags

from dat_tf.base.errors import UserError
from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

import common
import peer_processes
import peer_steps
import peer_suites
import peer_training

_PARTS = flags.DEFINE_list(
  "parts", ["step", "autoattack", "judged", "train"], "What is measured."
)
_PYTHON = flags.DEFINE_string("python", "python3.11", "Makes the peers' environment.")
_DATA = flags.DEFINE_string(
  "data", "data/fashion_mnist", "TFRecords of tfrecords/build_fashion_mnist.py."
)
_TURNS = flags.DEFINE_integer("turns", 5, "step: turns of each.", lower_bound=1)
_STEPS = flags.DEFINE_integer(
  "steps", None, "step: steps of a turn, instead of 10 (small) and 2.", lower_bound=1
)
_NETWORKS = flags.DEFINE_list("networks", ["small", "resnet"], "step: on which.")
_IMAGES = flags.DEFINE_integer("images", 200, "autoattack: test images.", lower_bound=1)
_JUDGED = flags.DEFINE_integer(
  "judged_images", 1000, "judged: test images.", lower_bound=1
)
_MODEL = flags.DEFINE_string(
  "model",
  None,
  "autoattack, judged: a small_cnn as Keras model, instead of training one.",
)
_EPOCHS = flags.DEFINE_integer("epochs", 5, "autoattack: of training.", lower_bound=1)
_EXPERIMENT = flags.DEFINE_string(
  "experiment", "fashion_mnist_fastest", "train: name of our file in flags/."
)
_WORKERS = flags.DEFINE_integer("num_workers", 1, "train: ours.", lower_bound=1)
_TARGET = flags.DEFINE_integer(
  "target", 70, "train: robust accuracy, in percent.", lower_bound=1, upper_bound=99
)

MEASURES = {
  "step": lambda python: peer_steps.measure(
    python, _NETWORKS.value, _TURNS.value, _STEPS.value
  ),
  "autoattack": lambda python: peer_suites.measure(
    python, _DATA.value, _MODEL.value, _IMAGES.value, _EPOCHS.value
  ),
  "judged": lambda _: peer_suites.measure_judgement(
    _DATA.value, _MODEL.value, _JUDGED.value, _EPOCHS.value
  ),
  "train": lambda python: peer_training.measure(
    python, _DATA.value, _EXPERIMENT.value, _WORKERS.value, _TARGET.value
  ),
}


def others(part: str) -> dict[str, Any]:
  """The figures in --json that this run of a part does not measure anew."""
  own = {
    "step": rf".*step_.*_({'|'.join(_NETWORKS.value)})(_|$)",
    "train": "train_|(peer_)?seconds_to_|(ours|peer)_(robust|epochs|form)",
  }.get(part, f"{part}_")
  there = common.figures_there()
  return {name: there[name] for name in there if not re.match(own, name)}


def main(argv: list[str]) -> None:
  del argv
  for name, choices in (("parts", MEASURES), ("networks", peer_steps.CASES)):
    unknown = set(flags.FLAGS[name].value) - set(choices)
    if unknown:
      raise UserError(f"--{name}={','.join(unknown)}: choose of {', '.join(choices)}.")
  tf.config.threading.set_intra_op_parallelism_threads(peer_processes.THREADS)
  python = peer_processes.environment(_PYTHON.value)
  for part in _PARTS.value:
    rows: list[dict[str, Any]]
    rows, figures = MEASURES[part](python)
    figures[f"{part}_machine"] = figures["machine"] = common.machine()
    # After each part, so that a later one that fails takes nothing along.
    common.report(rows, others(part) | figures)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  run_script(main)
