r"""The input pipeline's speed and memory, on JPEGs of ImageNet's mean size.

    python benchmarks/input_pipeline.py --json=docs/results/input_pipeline.json \
      --torch_python=VENV/bin/python

Photographs of scikit-learn, and of scikit-image if that is installed, are cut and
resized to JPEGs of 500 x 375. From these three make batches of 64 images of 224 x 224
in [0, 1], by a random resized crop and a flip, in turns and on the same cores:

    ours   `training_dataset`, from TFRecord files in the canonical ImageNet form
    bare   tf.data over the JPEGs in memory, with windows that were drawn beforehand:
           decode-and-crop, resize, flip, batch
    torch  a DataLoader over the JPEGs as files, with a process a core: Pillow and
           torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor

A turn times so many batches without the first ones, which fill the pipeline. A ratio is
the median over the rounds. VENV has torch, torchvision and Pillow; without
--torch_python the third is left out.

JSON keys:
  over_bare_decode         images/s of ours over the bare map's
  over_torch_loader        images/s of ours over the DataLoader's
  lowest_*, highest_*      of the rounds: how noisy the machine was
  *_images_per_second      medians: ours, bare, torch
  rss_mb_start, rss_mb_end   the most memory, in MB, that was resident of this process
                           while a tenth of rss_images, and all of them, came out of
                           ours; by the tenth its shuffle buffer of 512 records should
                           be full, as it is with 10,000 images and more
  rss_images               how many those are
  jpeg_kb                  mean size of a JPEG, in kB
  processes                cores, and processes of the DataLoader
"""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Callable

import numpy as np
import PIL.Image
import tqdm
from absl import flags
from sklearn.datasets import load_sample_images

from dat_tf.base.errors import UserError
from dat_tf.compat import quiet
from dat_tf.program.startup import run_script

with quiet():
  import tensorflow as tf

  from dat_tf.data import augment, pipeline, records, shards

import common

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each.", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 20, "Batches a turn.", lower_bound=1)
_RSS_IMAGES = flags.DEFINE_integer(
  "rss_images", 50_000, "Images over which memory is watched.", lower_bound=640
)
_TORCH_PYTHON = flags.DEFINE_string(
  "torch_python", None, "The Python interpreter that has torch and torchvision."
)

IMAGES, FILES = 1024, 8
HEIGHT, WIDTH, SIZE, BATCH = 375, 500, 224, 64
# It makes the files as large as ImageNet's, 110 kB on average.
QUALITY = 98
# Batches that fill a pipeline before it is timed.
FILLING = 6
CORES = len(os.sched_getaffinity(0))

Turn = Callable[[int], float]


def photographs() -> list[np.ndarray]:
  """Real photographs, uint8 [height, width, 3]."""
  images = list(load_sample_images().images)
  try:
    import skimage.data
  except ImportError:
    return images
  return [
    *images,
    skimage.data.astronaut(),
    skimage.data.coffee(),
    skimage.data.chelsea(),
  ]


def jpegs(number: int) -> list[bytes]:
  """Cut-outs of photographs, each another one, as JPEGs of 500 x 375."""
  rng = np.random.default_rng(0)
  sources = photographs()
  encoded = []
  for _ in tqdm.trange(number, desc="JPEGs"):
    image = PIL.Image.fromarray(sources[rng.integers(len(sources))])
    scale = rng.uniform(0.8, 1.0) * min(image.width / WIDTH, image.height / HEIGHT)
    width, height = scale * WIDTH, scale * HEIGHT
    left = rng.uniform(0, image.width - width)
    top = rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    file = io.BytesIO()
    cut = image.resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC, box)
    cut.save(file, "jpeg", quality=QUALITY)
    encoded.append(file.getvalue())
  return encoded


def write_records(images: list[bytes], directory: str) -> None:
  """Writes the canonical ImageNet form."""

  def bytes_feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

  one = tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))
  for file in range(FILES):
    with tf.io.TFRecordWriter(f"{directory}/train-{file}") as writer:
      for image in images[file::FILES]:
        feature = {"image/encoded": bytes_feature(image), "image/class/label": one}
        features = tf.train.Features(feature=feature)
        writer.write(tf.train.Example(features=features).SerializeToString())


def our_dataset(directory: str) -> tf.data.Dataset:
  """Batches without end."""
  shard = shards.shard_files(records.match_files(f"{directory}/train-*"), 0, 1)
  return pipeline.training_dataset(
    shard,
    pipeline.Reading(
      records.IMAGENET,
      image_shape=(SIZE, SIZE, 3),
      num_classes=1000,
      augmentation=augment.RandomResizedCrop(SIZE),
    ),
    batch_size=BATCH,
    batches_per_epoch=pipeline.batches_per_epoch(shard.num_examples, BATCH),
    first_epoch=0,
    last_epoch=10**6,
    shuffle_buffer=IMAGES // 2,
  )


def draw_windows(number: int) -> np.ndarray:
  """int32 [number, 4]: windows as `RandomResizedCrop` has them."""
  rng = np.random.default_rng(1)
  drawn = []
  while len(drawn) < number:
    area = rng.uniform(0.08, 1.0) * HEIGHT * WIDTH
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    height, width = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
    if height <= HEIGHT and width <= WIDTH:
      top, left = rng.integers([HEIGHT - height + 1, WIDTH - width + 1])
      drawn.append((top, left, height, width))
  return np.array(drawn, np.int32)


def bare_dataset(images: list[bytes]) -> tf.data.Dataset:
  """Batches without end."""

  def decode(image: tf.Tensor, window: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    pixels = tf.io.decode_and_crop_jpeg(image, window, channels=3)
    pixels = tf.image.resize(pixels, [SIZE, SIZE]) / 255.0
    return tf.cond(flip, lambda: tf.reverse(pixels, [1]), lambda: pixels)

  # A number that shares no factor with that of the images.
  windows = draw_windows(4099)
  flips = np.random.default_rng(2).random(len(windows)) < 0.5
  sources = (
    tf.data.Dataset.from_tensor_slices(images).repeat(),
    tf.data.Dataset.from_tensor_slices(windows).repeat(),
    tf.data.Dataset.from_tensor_slices(flips).repeat(),
  )
  return (
    tf.data.Dataset.zip(sources)
    .map(decode, CORES)
    .batch(BATCH, drop_remainder=True)
    .prefetch(2)
  )


def turns_of(dataset: tf.data.Dataset) -> Turn:
  """What it returns takes so many batches and gives the seconds."""

  def run(batches: int) -> float:
    # A new iterator each time: one that is kept would work on in another's turn.
    iterator = iter(dataset)
    for _ in range(FILLING):
      next(iterator)
    started = time.perf_counter()
    for _ in range(batches):
      next(iterator)
    return time.perf_counter() - started

  return run


def torch_turns(python: str, images: list[bytes], directory: str) -> Iterator[Turn]:
  """Yields once, while the DataLoader's process lives; see `turns_of`."""
  os.makedirs(directory)
  for number, image in enumerate(images):
    with open(f"{directory}/{number:05d}.jpg", "wb") as file:
      file.write(image)
  script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_loader.py")
  arguments = [directory, *map(str, (SIZE, BATCH, CORES, FILLING))]
  try:
    process = subprocess.Popen(
      [python, script, *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
  except OSError as error:
    raise UserError(f"--torch_python={python}: {error.strerror}.") from None

  def run(batches: int) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{batches}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
      raise UserError("The DataLoader's process ended: see what it printed.")
    return float(answer)

  with process:
    try:
      yield run
    finally:
      process.kill()


def watch_memory(dataset: tf.data.Dataset) -> dict[str, float]:
  """The most resident memory, in MB, in a tenth of the images and in all."""

  def resident() -> float:
    with open("/proc/self/statm", encoding="utf-8") as file:
      return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

  batches = _RSS_IMAGES.value // BATCH
  iterator = iter(dataset)
  peak = 0.0
  for number in tqdm.trange(batches, desc="memory", unit="batch"):
    next(iterator)
    # Not at the end alone: a moment at which a batch was just freed would flatter.
    peak = max(peak, resident())
    if number == batches // 10:
      start = peak
  return {
    "rss_mb_start": start,
    "rss_mb_end": peak,
    "rss_images": float(batches * BATCH),
  }


def main(argv: list[str]) -> None:
  del argv
  images = jpegs(IMAGES)
  figures = {"jpeg_kb": float(np.mean([len(image) for image in images])) / 1e3}
  with tempfile.TemporaryDirectory() as directory:
    write_records(images, directory)
    ours = our_dataset(directory)
    figures |= watch_memory(ours)
    turns = {"ours": turns_of(ours), "bare": turns_of(bare_dataset(images))}
    if _TORCH_PYTHON.value:
      peer = torch_turns(_TORCH_PYTHON.value, images, f"{directory}/files")
      turns["torch"] = next(peer)
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in tqdm.trange(_ROUNDS.value, desc="rounds"):
      # Who comes first changes, in case that matters.
      for name in sorted(turns, reverse=bool(turn % 2)):
        speeds[name].append(BATCH * _BATCHES.value / turns[name](_BATCHES.value))
    if _TORCH_PYTHON.value:
      peer.close()
  rows = []
  keys = {"bare": "over_bare_decode", "torch": "over_torch_loader"}
  for name, values in speeds.items():
    median = float(np.median(values))
    figures[f"{name}_images_per_second"] = median
    row = {"pipeline": name, "images/s": median}
    if name in keys:
      ratios = np.array(speeds["ours"]) / np.array(values)
      figures[keys[name]] = row["ours over it"] = float(np.median(ratios))
      figures[f"lowest_{keys[name]}"] = row["lowest"] = float(ratios.min())
      figures[f"highest_{keys[name]}"] = row["highest"] = float(ratios.max())
    rows.append(row)
  figures["processes"] = CORES
  common.report(
    rows,
    figures,
    f"Memory: at most {figures['rss_mb_start']:.0f} MB in "
    f"{figures['rss_images'] / 10:.0f} images, {figures['rss_mb_end']:.0f} MB in "
    f"{figures['rss_images']:.0f}.",
  )


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  run_script(main)
