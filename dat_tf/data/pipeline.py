"""From TFRecord files to batches: shard, shuffle, decode, augment, batch.

    shard = shard_files(match_files("DIR/train-*"), worker=0, num_workers=2)
    dataset = training_dataset(
        shard,
        form=detect_form(shard.slices[0].path),
        image_shape=(28, 28, 1),
        num_classes=10,
        batch_size=64,
        batches_per_epoch=batches_per_epoch(shard.num_examples, 64),
        first_epoch=0,
        last_epoch=5,
        seed=1,
        shuffle_buffer=10_000,
        augmentation=PadCropFlip(padding=2),
    )

Each worker reads its own shard, and in an epoch every example once. Workers must take
the same number of steps, or their collectives wait for each other for ever. So where
shards differ in size, every worker is given the number of batches that the largest
needs, and fills its own up with examples of weight 0, which losses, gradients and
metrics leave out. The fillers are real images, the first of the worker's own, because
batch-norm statistics know of no weights: black images would spoil them.

Every element of a dataset is a dictionary of batched tensors:

    image       float32 [batch, height, width, channels], in [0, 1]
    label       int64   [batch], in [0, num_classes)
    weight      float32 [batch], 1, or 0 for a filler
    example_id  int64   [batch], file_number * 2**32 + the record's number in its file
    epoch       int64   [batch], 0 in evaluation

All randomness hangs on (seed, epoch) and (seed, epoch, example_id), none on the past.
So the same seed gives the same stream, bit for bit, and a run that starts again at some
epoch reads what the unbroken run would have read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable, Optional

import tensorflow as tf

from dat_tf.data.framing import count_records
from dat_tf.data.records import RecordForm
from dat_tf.errors import UserError

Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_RECORDS_PER_FILE = 2**32
_LOCAL_FILES_PER_WORKER = 2**20
_OPEN_FILES = 16


@dataclasses.dataclass(frozen=True)
class Slice:
  """The records first, first + stride, first + 2 * stride, ... of one file.

  Attributes:
    path: The file.
    file_number: Its number among all files of all workers.
    first: The number of the first record, in [0, stride).
    stride: 1 for a whole file.
    num_examples: How many records the slice has.
  """

  path: str
  file_number: int
  first: int
  stride: int
  num_examples: int


@dataclasses.dataclass(frozen=True)
class Shard:
  """What one worker reads."""

  slices: tuple[Slice, ...]

  @property
  def num_examples(self) -> int:
    return sum(piece.num_examples for piece in self.slices)


def shard_files(
  paths: Sequence[str], worker: int, num_workers: int, data_is_local: bool = False
) -> Shard:
  """Deals files out to workers, so that every example is on exactly one.

  Whole files go round robin for as long as every worker gets the same number of them.
  The few files left over, or all if there are fewer files than workers, are read by
  every worker, each of which keeps every `num_workers`-th record.

  Args:
    paths: All files, in the same order on every worker.
    worker: This worker's number, in [0, num_workers).
    num_workers: At least 1.
    data_is_local: `paths` are this worker's own and no other reads them; the shard is
      then all of them. Their file numbers start at worker * 2**20, to be unlike those
      of other workers.

  Raises:
    UserError: The shard is empty, or a file's framing is damaged.
  """
  base = worker * _LOCAL_FILES_PER_WORKER if data_is_local else 0
  reader, num_readers = (0, 1) if data_is_local else (worker, num_workers)
  num_whole = len(paths) - len(paths) % num_readers
  slices = []
  for index, path in enumerate(paths):
    if index < num_whole and index % num_readers != reader:
      continue
    first, stride = (0, 1) if index < num_whole else (reader, num_readers)
    num_examples = len(range(first, count_records(path), stride))
    slices.append(Slice(path, base + index, first, stride, num_examples))
  shard = Shard(tuple(slices))
  if not shard.num_examples:
    raise UserError(
      f"Worker {worker} (counted from 0) of {num_workers} has no example in the "
      f"{len(paths)} file(s) from {paths[0]} on: give it more data, or use fewer "
      "workers."
    )
  return shard


def batches_per_epoch(num_examples: int, batch_size: int) -> int:
  """How many batches hold all examples, the last one filled up."""
  return -(-num_examples // batch_size)


def training_dataset(
  shard: Shard,
  *,
  form: RecordForm,
  image_shape: Sequence[int],
  num_classes: int,
  batch_size: int,
  batches_per_epoch: int,
  first_epoch: int,
  last_epoch: int,
  seed: int,
  shuffle_buffer: int,
  augmentation: Optional[Augmentation] = None,
  first_label: Optional[int] = None,
) -> tf.data.Dataset:
  """Augmented batches of a shard, in a new order each epoch, one epoch upon another.

  The order comes from reading the files in a random order, up to 16 of them in turns,
  and from a shuffle buffer. The next epoch's first batches are made while the last of
  this one are in use, so that nothing stalls in between.

  Args:
    shard: What this worker reads.
    form: The form of its records.
    image_shape: [height, width, channels], which every image must have.
    num_classes: Labels must lie in [0, num_classes).
    batch_size: Images in a batch of this worker.
    batches_per_epoch: At least `batches_per_epoch(shard.num_examples, batch_size)`, and
      the same on all workers.
    first_epoch: The epoch to start at, from 0.
    last_epoch: The epoch before which to stop.
    seed: The run's seed, in [0, 2**31).
    shuffle_buffer: Records in the shuffle buffer; 0 reads the files in order instead.
    augmentation: What to do with each image: (uint8 [height, width, channels], seed
      int64 [2]) -> an image of the same shape and dtype. None for nothing.
    first_label: The label of the first class in the files; None is the form's own.

  Returns:
    (last_epoch - first_epoch) * batches_per_epoch batches, as the module describes.

  Raises:
    records.DATA_ERRORS: While it is read, for a bad record;
      `records.explain_data_error` then tells which.
  """

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    examples = _in_file_order(shard)
    if shuffle_buffer:
      # Dataset.shuffle would mix in the global seed, on which nothing here may depend;
      # this sets the seed of the graph of this function only.
      tf.compat.v1.set_random_seed(1)
      order_seed, buffer_seed = tf.unstack(
        tf.random.stateless_uniform([2], [seed, epoch], 0, 2**31 - 1, tf.int64)
      )
      examples = (
        _slices(shard)
        .shuffle(len(shard.slices), order_seed, reshuffle_each_iteration=False)
        .interleave(
          _read,
          _OPEN_FILES,
          num_parallel_calls=tf.data.AUTOTUNE,
          deterministic=True,
        )
        .shuffle(shuffle_buffer, buffer_seed, reshuffle_each_iteration=False)
      )
    return _filled_up(shard, examples, epoch, batches_per_epoch * batch_size)

  def augment(image: tf.Tensor, example_id: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
    if augmentation is None:
      return image
    return augmentation(image, tf.stack([seed * 2**32 + epoch, example_id]))

  return _batches(
    tf.data.Dataset.range(first_epoch, last_epoch).flat_map(one_epoch),
    form=form,
    image_shape=image_shape,
    num_classes=num_classes,
    batch_size=batch_size,
    num_batches=(last_epoch - first_epoch) * batches_per_epoch,
    first_label=first_label,
    augment=augment,
  )


def evaluation_dataset(
  shard: Shard,
  *,
  form: RecordForm,
  image_shape: Sequence[int],
  num_classes: int,
  batch_size: int,
  batches_per_epoch: int,
  first_label: Optional[int] = None,
) -> tf.data.Dataset:
  """Batches of a shard as it lies in its files, once, file after file.

  Arguments, result and errors are those of `training_dataset`.
  """
  return _batches(
    _filled_up(
      shard,
      _in_file_order(shard),
      tf.constant(0, tf.int64),
      batches_per_epoch * batch_size,
    ),
    form=form,
    image_shape=image_shape,
    num_classes=num_classes,
    batch_size=batch_size,
    num_batches=batches_per_epoch,
    first_label=first_label,
  )


def _slices(shard: Shard) -> tf.data.Dataset:
  """The shard's slices as elements (path, file_number, first, stride)."""
  return tf.data.Dataset.from_tensor_slices(
    (
      [piece.path for piece in shard.slices],
      tf.constant([piece.file_number for piece in shard.slices], tf.int64),
      tf.constant([piece.first for piece in shard.slices], tf.int64),
      tf.constant([piece.stride for piece in shard.slices], tf.int64),
    )
  )


def _read(
  path: tf.Tensor, file_number: tf.Tensor, first: tf.Tensor, stride: tf.Tensor
) -> tf.data.Dataset:
  """One slice's records as elements (example_id, serialized)."""
  first_id = file_number * _RECORDS_PER_FILE
  example_ids = tf.data.Dataset.range(first_id, first_id + _RECORDS_PER_FILE)
  records = tf.data.TFRecordDataset(path)
  return tf.data.Dataset.zip((example_ids, records)).shard(stride, first)


def _in_file_order(shard: Shard) -> tf.data.Dataset:
  return _slices(shard).flat_map(_read)


def _filled_up(
  shard: Shard, examples: tf.data.Dataset, epoch: tf.Tensor, total: int
) -> tf.data.Dataset:
  """`total` elements (example, (epoch, weight)): `examples`, then fillers."""

  def weighted(dataset: tf.data.Dataset, weight: float) -> tf.data.Dataset:
    common = tf.data.Dataset.from_tensors((epoch, weight)).repeat()
    return tf.data.Dataset.zip((dataset, common))

  fillers = _in_file_order(shard).repeat().take(total - shard.num_examples)
  return weighted(examples, 1.0).concatenate(weighted(fillers, 0.0))


def _batches(
  stream: tf.data.Dataset,
  *,
  form: RecordForm,
  image_shape: Sequence[int],
  num_classes: int,
  batch_size: int,
  num_batches: int,
  first_label: Optional[int],
  augment: Callable[..., tf.Tensor] = lambda image, example_id, epoch: image,
) -> tf.data.Dataset:
  """Decodes, augments and batches the elements that `_filled_up` makes."""

  def decode(
    example: tuple[tf.Tensor, tf.Tensor], common: tuple[tf.Tensor, tf.Tensor]
  ) -> dict[str, tf.Tensor]:
    (example_id, serialized), (epoch, weight) = example, common
    image, label = form.parse(serialized, image_shape[-1], first_label)
    image = augment(tf.ensure_shape(image, image_shape), example_id, epoch)
    return {
      "image": image,
      "label": label,
      "weight": weight,
      "example_id": example_id,
      "epoch": epoch,
    }

  def finish(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    # What works on whole batches costs less than what works on each image.
    wrong = (batch["label"] < 0) | (batch["label"] >= num_classes)
    wrong_id = tf.boolean_mask(batch["example_id"], wrong)
    tf.debugging.Assert(
      ~tf.reduce_any(wrong),
      [
        f"Labels outside [0, {num_classes}), their files' and records' numbers:",
        tf.boolean_mask(batch["label"], wrong),
        wrong_id // _RECORDS_PER_FILE,
        wrong_id % _RECORDS_PER_FILE,
      ],
    )
    return {**batch, "image": tf.cast(batch["image"], tf.float32) / 255.0}

  options = tf.data.Options()
  options.deterministic = True
  # Every stage's parallelism is best left at its default, one call a core; measuring it
  # while training costs time, and a warning when a bad record ends the run.
  options.autotune.enabled = False
  # The shard is this worker's own already: tf.distribute is not to divide it again.
  options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.OFF
  )
  return (
    stream.map(decode, tf.data.AUTOTUNE)
    .batch(batch_size, drop_remainder=True)
    .map(finish, tf.data.AUTOTUNE)
    .apply(tf.data.experimental.assert_cardinality(num_batches))
    .prefetch(tf.data.AUTOTUNE)
    .with_options(options)
  )
