"""Converts images of any source to TFRecord files: on all cores, and resumably.

A converter lists its images as `Item`s, for which it looks at headers and folders only,
and says how one item becomes a record:

    items = [Item("a.tar", 512, 104_321, 7, "n01440764/n01440764_10026.JPEG"), ...]
    print(convert(items, encoded_record, "data", "train", num_shards=1024))

The images are shuffled by a seed and dealt to files. A file gets its name when it is
complete; a run that follows an interruption writes the files that are missing, and the
result is bit for bit what one unbroken run writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import tensorflow as tf
import tqdm

from dat_tf.base import files
from dat_tf.base.errors import UserError
from dat_tf.conversion.encoded import BadImage, check_image
from dat_tf.conversion.items import Item, read_items
from dat_tf.data import writing
from dat_tf.workers.cluster import num_cores

# How many of the images that cannot be read are named.
_NAMED = 10


class BadImages(UserError):
  """Images that cannot be read; its text names the first of them.

  Attributes:
    found: What each is called, and why it cannot be read.
  """

  def __init__(self, found: Sequence[str]):
    more = len(found) - _NAMED
    super().__init__(
      (f"{len(found)} images cannot be read: " if len(found) > 1 else "")
      + "; ".join(sorted(found)[:_NAMED])
      + (f"; and {more} more" if more > 0 else "")
      + ": put whole copies in their place, take them out, or set `skip_bad_images`."
    )
    self.found = list(found)


class Written(NamedTuple):
  """How many images were encoded anew, and how many were left out."""

  reencoded: int = 0
  left_out: int = 0


class Record(NamedTuple):
  """A serialized `tf.train.Example`, and whether its image was encoded anew."""

  serialized: bytes
  reencoded: bool = False


MakeRecord = Callable[[Item, bytes], Record]


def encoded_record(
  item: Item,
  content: bytes,
  *,
  class_names: Sequence[str] = (),
  class_feature: str = "image/class/text",
  rgb_jpeg: bool = False,
) -> Record:
  """A record in the canonical ImageNet form, its image checked by decoding it.

  Args:
    item: The image.
    content: Its bytes.
    class_names: What to write beside a label, by label.
    class_feature: The name of the feature for that.
    rgb_jpeg: As for `check_image`.
  """
  image = check_image(content, item.name, rgb_jpeg=rgb_jpeg)
  named = {} if item.label is None else {class_feature: class_names[item.label]}
  serialized = writing.encoded_example(
    image, os.path.basename(item.member), item.label, named
  )
  return Record(serialized, image.reencoded)


def array_record(images: np.ndarray, item: Item, content: bytes) -> Record:
  """A record in our own form, of an image in memory.

  Args:
    images: uint8 [count, height, width, channels].
    item: Its `offset` is the image's index.
    content: Not used.
  """
  del content
  return Record(writing.image_example(images[item.offset], item.label))


def pixels_record(shape: tuple[int, ...], item: Item, content: bytes) -> Record:
  """A record in our own form, of bare pixels (uint8) in a file.

  Args:
    shape: (height, width, channels).
    item: The image.
    content: Its pixels, row by row.
  """
  image = np.frombuffer(content, np.uint8).reshape(shape)
  return Record(writing.image_example(image, item.label))


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be written.

  Attributes:
    items: All images.
    order: A permutation of their indices, int [len(items)].
    make_record: Makes an item and its bytes a record.
    paths: All files.
    missing: The numbers of those that are to be written.
    skip_bad_images: Whether images that cannot be read are left out.
  """

  items: Sequence[Item]
  order: np.ndarray
  make_record: MakeRecord
  paths: Sequence[str]
  missing: Sequence[int]
  skip_bad_images: bool = False

  def items_of(self, shard: int) -> list[Item]:
    """The images of a file, in the order in which it holds them."""
    return [self.items[n] for n in self.order[shard :: len(self.paths)].tolist()]


def write_shard(
  path: str,
  items: Sequence[Item],
  make_record: MakeRecord,
  *,
  step: Callable[[], None] = lambda: None,
  skip_bad_images: bool = False,
) -> Written:
  """Writes one file; it is there under its name only when it is complete.

  Its records are held in memory until all are made, since the images are read in the
  order in which they lie in their archive, and not in that of the file.

  Args:
    path: The file.
    items: Its images, in its order.
    make_record: Makes an item and its bytes a record.
    step: Called after each image.
    skip_bad_images: Whether images that cannot be read are left out, a line on stderr
      for each.

  Raises:
    BadImages: Images cannot be read; all of them are named.
    UserError: A source cannot be read, or the file cannot be written.
  """
  order = sorted(range(len(items)), key=lambda n: (items[n].path, items[n].offset))
  records: list[Optional[Record]] = [None] * len(items)
  bad = []
  for number, content in zip(order, read_items(items[n] for n in order)):
    try:
      records[number] = make_record(items[number], content)
    except BadImage as error:
      bad.append(str(error))
    step()
  if bad and not skip_bad_images:
    raise BadImages(bad)
  for line in bad:
    print(f"Left out: {line}", file=sys.stderr, flush=True)
  made = [record for record in records if record is not None]
  with writing.explain_failed_writing(path), files.complete_file(path) as temporary:
    with tf.io.TFRecordWriter(temporary) as writer:
      for record in made:
        writer.write(record.serialized)
  return Written(sum(record.reencoded for record in made), len(bad))


class _Stopped(Exception):
  """Ends a thread after another one has failed."""


def write_in_threads(plan: Plan) -> Written:
  """Writes the missing files, as many at once as there are cores, with a progress bar.

  Threads are enough: TensorFlow reads, decodes and writes without Python's lock.

  Raises:
    BadImages: As for `write_shard`, of all files; those without bad images are there.
    UserError: As for `write_shard`. The files that were complete stay.
  """
  # GPUs are of no use here, and TensorFlow would take all of their memory.
  with contextlib.suppress(RuntimeError):  # They are in use in this process already.
    tf.config.set_visible_devices([], "GPU")
  stop = threading.Event()
  lock = threading.Lock()
  sizes = [len(plan.order[k :: len(plan.paths)]) for k in plan.missing]
  done = len(plan.items) - sum(sizes)

  def step() -> None:
    if stop.is_set():
      raise _Stopped
    with lock:
      bar.update()

  def write(shard: int) -> Written:
    return write_shard(
      plan.paths[shard],
      plan.items_of(shard),
      plan.make_record,
      step=step,
      skip_bad_images=plan.skip_bad_images,
    )

  progress = tqdm.tqdm(total=len(plan.items), initial=done, unit=" images")
  with progress as bar, futures.ThreadPoolExecutor(num_cores()) as pool:
    try:
      running = [pool.submit(write, shard) for shard in plan.missing]
      written, bad = [Written()], []
      for future in futures.as_completed(running):
        try:
          written.append(future.result())
        except BadImages as error:
          bad += error.found
    except BaseException:
      stop.set()
      pool.shutdown(cancel_futures=True)
      raise
  if bad:
    raise BadImages(bad)
  return Written(*map(sum, zip(*written)))


def has_begun(directory: str, name: str) -> bool:
  """Whether a set's conversion was begun before, and is to be resumed."""
  return tf.io.gfile.exists(_manifest(directory, name))


def convert(
  items: Sequence[Item],
  make_record: MakeRecord,
  directory: str,
  name: str,
  *,
  num_shards: int,
  seed: int = 0,
  settings: Optional[Mapping[str, Any]] = None,
  write: Callable[[Plan], Written] = write_in_threads,
  skip_bad_images: bool = False,
) -> str:
  """Writes images to DIRECTORY/NAME-00000-of-00004 and so on, shuffled by a seed.

  DIRECTORY/NAME.json tells what is being written, so that a run that follows an
  interruption goes on with the same images or not at all.

  Args:
    items: The images, in the same order each time.
    make_record: Makes an item and its bytes a record.
    directory: Where the files go; made if need be.
    name: The first part of the file names, for example "train".
    num_shards: The number of files.
    seed: Of the shuffling, at least 0.
    settings: What else the records depend on, as JSON can hold it.
    write: Writes the files that are missing, in threads or by Apache Beam.
    skip_bad_images: Whether images that cannot be read are left out.

  Returns:
    A line that says what was done.

  Raises:
    UserError: There are fewer images than files, an image cannot be read, the disc is
      full, or the directory holds files of another set by that name.
  """
  pattern = os.path.join(directory, f"{name}-*")
  if len(items) < max(1, num_shards):
    raise UserError(
      f"{len(items)} images cannot fill {num_shards} files {pattern}: write at most "
      f"{max(len(items), 1)}."
    )
  paths = writing.shard_paths(directory, name, num_shards)
  _begin(directory, name, _describe(items, num_shards, seed, settings or {}))
  present = set(writing.present_shards(directory, name))
  missing = [number for number, path in enumerate(paths) if path not in present]
  if not missing:
    return f"{pattern}: all {len(items):,} images were there already"
  order = np.random.default_rng(seed).permutation(len(items))
  plan = Plan(items, order, make_record, paths, missing, skip_bad_images)
  reencoded, left_out = write(plan)
  writing.remove_leftovers(directory, name)
  resumed = len(paths) - len(missing)
  return (
    f"{pattern}: {len(items) - left_out:,} images"
    + (f", {left_out:,} bad ones were left out" if left_out else "")
    + (f", of which {reencoded:,} were encoded anew" if reencoded else "")
    + (f" ({resumed:,} files were there already)" if resumed else "")
  )


def _manifest(directory: str, name: str) -> str:
  return os.path.join(directory, f"{name}.json")


def _describe(
  items: Sequence[Item], num_shards: int, seed: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
  """What the files depend on; the archives' place is no part of it."""
  digest = hashlib.sha256()
  for item in items:
    line = f"{item.offset} {item.size} {item.label} {item.member}\n"
    digest.update(os.fsencode(line))
  return {
    "images": len(items),
    "files": num_shards,
    "seed": seed,
    **settings,
    "sha256_of_list": digest.hexdigest(),
  }


def _begin(directory: str, name: str, description: dict[str, Any]) -> None:
  """Writes the manifest, or makes sure that the one there says the same."""
  path = _manifest(directory, name)
  with writing.explain_failed_writing(directory):
    content = files.read_text(path)
    if content is None:
      if present := sorted(writing.present_shards(directory, name)):
        raise UserError(
          f"{present[0]} is there already, and no {path} to tell what it holds: "
          f"remove {name}-* or write to another directory."
        )
      files.write_text(path, json.dumps(description, indent=1))
      return
  try:
    found = json.loads(content)
  except ValueError:
    found = None
  if not isinstance(found, dict):
    found = {}
  if found != json.loads(json.dumps(description)):
    other = sorted(
      key
      for key in found.keys() | description.keys()
      if found.get(key) != description.get(key)
    )
    raise UserError(
      f"{path} is of other images or settings ({', '.join(other)}): remove {name}.json "
      f"and {name}-* there, or write to another directory."
    )
