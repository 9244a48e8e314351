"""ResNet-50 at 224 x 224 on photographs: a few steps of the ImageNet experiment.

    python benchmarks/resnet50.py --json=docs/results/resnet50.json

Cut-outs of various sizes from scikit-learn's two photographs, a class each, go through
tfrecords/build_folder.py; then flags/imagenet_dat_pgd.flags (PGD-4, random resized
crop) trains on two local workers, 8 images a step, an epoch of 2 steps after another.
The point is that the whole path runs, that the loss falls, and how much memory that
takes.

JSON keys:
  first_loss, last_loss      the objective, mean of the first and of the last epoch
  seconds_per_step
  peak_memory_gb             10^9 bytes, of the larger worker
  steps, num_workers, global_batch_size
"""

from __future__ import annotations

import glob
import os
import resource
import tempfile

import common
import numpy as np
import PIL.Image
from absl import flags
from sklearn.datasets import load_sample_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from dat_tf.program.startup import run_script

IMAGES, BATCH, WORKERS = 16, 8, 2

_EPOCHS = flags.DEFINE_integer("epochs", 6, "Passes over the 16 images.", lower_bound=2)


def write_cut_outs(directory: str) -> None:
  """Writes CLASS/NUMBER.jpg, of 300 to 400 pixels a side."""
  rng = np.random.default_rng(0)
  for name, photograph in zip(("china", "flower"), load_sample_images().images):
    os.makedirs(os.path.join(directory, name))
    for number in range(IMAGES // 2):
      height, width = rng.integers(300, 400, size=2)
      top = rng.integers(photograph.shape[0] - height)
      left = rng.integers(photograph.shape[1] - width)
      cut = photograph[top : top + height, left : left + width]
      PIL.Image.fromarray(cut).save(f"{directory}/{name}/{number}.jpg", quality=95)


def losses(logs: str) -> list[float]:
  """The mean loss of each epoch."""
  (events,) = glob.glob(os.path.join(logs, "train", "events*"))
  accumulator = EventAccumulator(events, size_guidance={"tensors": 0})
  accumulator.Reload()
  tensors = accumulator.Tensors("loss")
  # It is the mean of the epoch so far, logged in every step.
  per_epoch = IMAGES // BATCH
  figures = [tensor_util.make_ndarray(x.tensor_proto).item() for x in tensors]
  return figures[per_epoch - 1 :: per_epoch]


def main(argv: list[str]) -> None:
  del argv
  with tempfile.TemporaryDirectory() as directory:
    write_cut_outs(f"{directory}/photographs")
    common.python(
      "tfrecords/build_folder.py",
      f"--source={directory}/photographs",
      f"--output_dir={directory}/records",
      "--num_shards=2",
      "--test_fraction=0",
    )
    results = common.train_and_evaluate(
      "imagenet_dat_pgd",
      f"{directory}/run",
      WORKERS,
      "--mode=train",
      f"--train_data={directory}/records/train-*",
      f"--test_data={directory}/records/train-*",
      f"--global_batch_size={BATCH}",
      f"--reference_batch_size={BATCH}",
      f"--epochs={_EPOCHS.value}",
      "--warmup_epochs=0",
      "--decay=constant",
      "--decay_epochs=",
      "--log_every=1",
      "--pictures=0",
      "--probe_images=0",
    )
    first, *_, last = losses(f"{directory}/run/logs")
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
  figures = {
    "first_loss": first,
    "last_loss": last,
    "seconds_per_step": BATCH / results["examples_per_second"],
    "peak_memory_gb": peak,
    "steps": _EPOCHS.value * IMAGES // BATCH,
    "num_workers": WORKERS,
    "global_batch_size": BATCH,
  }
  common.report([figures], figures)


if __name__ == "__main__":
  run_script(main)
