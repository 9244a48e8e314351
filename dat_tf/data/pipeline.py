"""From TFRecord files to batches: shard, shuffle, decode, augment, batch.

    shard = shard_files(match_files("DIR/train-*"), worker=0, num_workers=2)
    dataset = training_dataset(
        shard,
        Reading(
            detect_form(shard.slices[0].path),
            image_shape=(28, 28, 1),
            num_classes=10,
            augmentation=PadCropFlip(padding=2),
            seed=1,
        ),
        batch_size=64,
        batches_per_epoch=batches_per_epoch(shard.num_examples, 64),
        first_epoch=0,
        last_epoch=5,
        shuffle_buffer=10_000,
    )

Each worker reads its own shard, and in an epoch every example once. Workers must take
the same number of steps, or their collectives wait for each other for ever. So where
shards differ in size, every worker is given the number of batches that the largest
needs, and fills its own up with examples of weight 0, which losses, gradients and
metrics leave out. The fillers are real images, the first of the worker's own, because
batch-norm statistics know of no weights: black images would spoil them.

Every element of a dataset is a dictionary of batched tensors:

    image       float32 [batch, height, width, channels], in [0, 1]
    label       int64   [batch], in [0, num_classes); -1 for none, where that may be;
                or, of a soft form, float32 [batch, num_classes], zeros for none
    weight      float32 [batch], 1, or 0 for a filler
    example_id  int64   [batch], file_number * 2**32 + the record's number in its file
    epoch       int64   [batch], 0 in evaluation

All randomness hangs on (seed, epoch) and (seed, epoch, example_id), none on the past.
So the same seed gives the same stream, bit for bit, and a run that starts again at some
batch reads what the unbroken run would have read. What comes before that batch in its
epoch is read and shuffled, but not decoded.

What it holds in memory: the shuffle buffer's images as they are stored (10,000 JPEGs
of 110 kB are 1.1 GB), a quarter of a megabyte and a few records of each of the 16
files that are read in turns, some 32 examples more, and a few batches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Optional

import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.base.errors import UserError
from dat_tf.data import framing, service
from dat_tf.data.augment import Augmentation, in_unit_range
from dat_tf.data.records import RecordForm, StoredImage
from dat_tf.data.shards import Shard
from dat_tf.workers.cluster import num_cores

# An example on its way from its record to its batch, by the names of its parts.
Example = dict[str, tf.Tensor]

_RECORDS_PER_FILE = 2**32
_OPEN_FILES = 16
_BATCHES_AHEAD = 2
# The examples of which the augmentation is drawn at a time, and which a data service
# sends at a time; fewer cost more calls.
_EXAMPLES_A_CALL = 32


@dataclasses.dataclass(frozen=True)
class Reading:
  """How records become examples.

  Attributes:
    form: The form of the records.
    image_shape: [height, width, channels] of the images in the batches: of every image
      in the files, unless `augmentation` brings them to a size.
    num_classes: Labels must lie in [0, num_classes).
    first_label: The label of the first class in the files; None is the form's own.
    augmentation: How each image is read; None decodes it, no more.
    seed: The run's seed, in [0, 2**31).

  Raises:
    UserError: The form's soft labels are for another number of classes.
  """

  form: RecordForm
  image_shape: Sequence[int]
  num_classes: int
  first_label: Optional[int] = None
  augmentation: Optional[Augmentation] = None
  seed: int = 0

  def __post_init__(self) -> None:
    if self.form.soft_classes not in (0, self.num_classes):
      raise UserError(
        f"The records' soft labels are for {self.form.soft_classes} classes, and "
        f"`num_classes={self.num_classes}`: set it, or label the images for as many."
      )

  def parse(self, example_id: tf.Tensor, serialized: tf.Tensor) -> Example:
    """Reads a record but for its pixels."""
    stored, label = self.form.parse(serialized, self.image_shape[-1], self.first_label)
    example = {"example_id": example_id, "label": label, "stored": stored.data}
    if stored.shape is not None:
      example["shape"] = stored.shape
    if self.augmentation is not None:
      example["size"] = stored.size()
    return example

  def draw(self, examples: Example, common: tuple[tf.Tensor, tf.Tensor]) -> Example:
    """Checks the labels of many examples, and says how their images are read.

    Args:
      examples: Many of `parse`.
      common: Their epochs and weights.
    """
    epoch, weight = common
    ids = examples["example_id"]
    wrong = ~self.form.is_right(examples["label"], self.num_classes)
    wrong_id = tf.boolean_mask(ids, wrong)
    tf.debugging.Assert(
      ~tf.reduce_any(wrong),
      [
        f"Labels outside [0, {self.num_classes}), their files' and records' numbers:",
        tf.boolean_mask(examples["label"], wrong),
        wrong_id // _RECORDS_PER_FILE,
        wrong_id % _RECORDS_PER_FILE,
      ],
    )
    drawn = {**examples, "epoch": epoch, "weight": weight}
    if self.augmentation is not None:
      keys = hashing.stream_keys(self.seed, epoch, ids)
      drawn["choice"] = self.augmentation.draw(drawn.pop("size"), keys)
    return drawn

  def decode(self, example: Example) -> Example:
    """Puts the image in the place of what `parse` and `draw` tell of it."""
    rest = dict(example)
    stored = StoredImage(
      rest.pop("stored"), rest.pop("shape", None), self.image_shape[-1]
    )
    if self.augmentation is None:
      image = stored.decode()
    else:
      image = self.augmentation.apply(stored, rest.pop("choice"))
    return _scaled({**rest, "image": tf.ensure_shape(image, self.image_shape)})


def batches_per_epoch(num_examples: int, batch_size: int) -> int:
  """How many batches hold all examples, the last one filled up."""
  return -(-num_examples // batch_size)


def training_dataset(
  shard: Shard,
  reading: Reading,
  *,
  batch_size: int,
  batches_per_epoch: int,
  first_epoch: int,
  last_epoch: int,
  shuffle_buffer: int,
  first_batch: int = 0,
  data_service: Optional[str] = None,
) -> tf.data.Dataset:
  """Augmented batches of a shard, in a new order each epoch, one epoch upon another.

  The order comes from reading the files in a random order, up to 16 of them in turns,
  and from a shuffle buffer. The next epoch's first batches are made while the last of
  this one are in use, so that nothing stalls in between.

  With a data service, its workers read, decode and augment; they must find the files
  under the same paths, and each has a shuffle buffer of its own. The elements are the
  same, every example once an epoch; but their order is whatever the service's workers
  make of it, and pixels of resized images are rounded to bytes on their way.

  Args:
    shard: What this worker reads.
    reading: How it is read.
    batch_size: Images in a batch of this worker.
    batches_per_epoch: At least `batches_per_epoch(shard.num_examples, batch_size)`, and
      the same on all workers.
    first_epoch: The epoch to start at, from 0.
    last_epoch: The epoch before which to stop.
    shuffle_buffer: Records in the shuffle buffer; 0 reads the files in order instead.
    first_batch: The batch of the first epoch to start at, from 0. With a data service,
      whose order is never the same, as many batches are left out, but not the same.
    data_service: HOST:PORT of the dispatcher of a tf.data service, as `service` starts
      it; None does all work here.

  Returns:
    (last_epoch - first_epoch) * batches_per_epoch - first_batch batches, as the module
    describes.

  Raises:
    UserError: The data service does not answer.
    records.DATA_ERRORS: While it is read, for a bad record;
      `records.explain_data_error` then tells which.
  """
  total = batches_per_epoch * batch_size

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    examples = _shuffled(shard, reading, shuffle_buffer, epoch)
    return _filled_up(examples, _in_file_order(shard, reading), epoch, total)

  def one_epoch_by_service(epoch: int) -> tf.data.Dataset:
    def sent(examples: tf.data.Dataset, weight: float) -> tf.data.Dataset:
      weighted = _weighted(examples, tf.constant(epoch, tf.int64), weight)
      # The service's workers may have any number of cores.
      decoded = _decoded(weighted, reading, tf.data.AUTOTUNE)
      return decoded.map(_to_bytes).batch(_EXAMPLES_A_CALL)

    assert data_service is not None
    theirs = shard.with_absolute_paths()
    examples = sent(_shuffled(theirs, reading, shuffle_buffer, epoch), 1.0)
    fillers = sent(_in_file_order(theirs, reading).repeat(), 0.0)
    served = service.distribute(examples, data_service).concatenate(fillers)
    return served.map(_scaled, tf.data.AUTOTUNE).unbatch().take(total)

  num_batches = (last_epoch - first_epoch) * batches_per_epoch - first_batch
  done = first_batch * batch_size
  if data_service is None:
    epochs = tf.data.Dataset.range(first_epoch, last_epoch)
    stream = _decoded(epochs.flat_map(one_epoch).skip(done), reading)
    return _batches(stream, batch_size, num_batches)
  stream = functools.reduce(
    tf.data.Dataset.concatenate,
    map(one_epoch_by_service, range(first_epoch, last_epoch)),
  )
  return _batches(stream.skip(done), batch_size, num_batches, is_served=True)


def continuous_dataset(
  shard: Shard,
  reading: Reading,
  *,
  batch_size: int,
  batches_per_epoch: int,
  first_epoch: int,
  last_epoch: int,
  shuffle_buffer: int,
  first_batch: int = 0,
) -> tf.data.Dataset:
  """Augmented batches of a shard whose size has nothing to do with an epoch's.

  The shard is gone through again and again, each time every example once and in a new
  order; an epoch goes on where the one before it ended. All weights are 1. Arguments,
  result and errors are otherwise those of `training_dataset`.
  """
  total = batches_per_epoch * batch_size
  start, end = first_epoch * total + first_batch * batch_size, last_epoch * total
  first_pass, done = divmod(start, shard.num_examples)
  last_pass = end // shard.num_examples

  def one_pass(number: tf.Tensor) -> tf.data.Dataset:
    return _shuffled(shard, reading, shuffle_buffer, number)

  examples = tf.data.Dataset.range(first_pass, last_pass + 1).flat_map(one_pass)
  places = tf.data.Dataset.range(start, end).map(lambda place: (place // total, 1.0))
  stream = _decoded(tf.data.Dataset.zip((examples.skip(done), places)), reading)
  return _batches(stream, batch_size, (end - start) // batch_size)


def evaluation_dataset(
  shard: Shard, reading: Reading, *, batch_size: int, batches_per_epoch: int
) -> tf.data.Dataset:
  """Batches of a shard as it lies in its files, once, file after file.

  Arguments, result and errors are those of `training_dataset`.
  """
  examples = _in_file_order(shard, reading)
  epoch = tf.constant(0, tf.int64)
  filled = _filled_up(examples, examples, epoch, batches_per_epoch * batch_size)
  return _batches(_decoded(filled, reading), batch_size, batches_per_epoch)


def _slices(shard: Shard) -> tf.data.Dataset:
  """What `_read` takes, for each segment of each slice."""
  rows = [
    (piece.path, piece.file_number, piece.first, piece.stride, *segment)
    for piece in shard.slices
    for segment in piece.segments
  ]
  # Columns, not rows: TensorFlow's graph optimiser crashes on a stride unstacked from
  # a row.
  paths, *numbers = map(list, zip(*rows))
  return tf.data.Dataset.from_tensor_slices(
    (paths, *(tf.constant(column, tf.int64) for column in numbers))
  )


def _read(  # noqa: PLR0917, tf.data calls it so
  path: tf.Tensor,
  file_number: tf.Tensor,
  first: tf.Tensor,
  stride: tf.Tensor,
  offset: tf.Tensor,
  number: tf.Tensor,
  count: tf.Tensor,
) -> tf.data.Dataset:
  """One segment of a slice as elements (example_id, serialized)."""
  first_id = file_number * _RECORDS_PER_FILE + number
  example_ids = tf.data.Dataset.range(first_id, first_id + count)
  records = framing.read(path, offset, count)
  examples = tf.data.Dataset.zip((example_ids, records))
  return examples.shard(stride, (first - number) % stride)


def _in_file_order(shard: Shard, reading: Reading) -> tf.data.Dataset:
  return _slices(shard).flat_map(_read).map(reading.parse, tf.data.AUTOTUNE)


def _shuffled(
  shard: Shard, reading: Reading, shuffle_buffer: int, epoch: Any
) -> tf.data.Dataset:
  """The shard's examples, as `Reading.parse` makes them, in an epoch's order."""
  if not shuffle_buffer:
    return _in_file_order(shard, reading)
  # Dataset.shuffle would mix in the global seed, on which nothing here may depend; in
  # the graph of a function, this sets the seed of that graph only.
  if not tf.executing_eagerly():
    tf.compat.v1.set_random_seed(1)
  slices = _slices(shard)
  order_seed, buffer_seed = tf.unstack(
    tf.random.stateless_uniform([2], [reading.seed, epoch], 0, 2**31 - 1, tf.int64)
  )
  return (
    slices.shuffle(slices.cardinality(), order_seed, reshuffle_each_iteration=False)
    .interleave(
      lambda *segment: _read(*segment).map(reading.parse),
      _OPEN_FILES,
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    .shuffle(shuffle_buffer, buffer_seed, reshuffle_each_iteration=False)
  )


def _weighted(
  examples: tf.data.Dataset, epoch: tf.Tensor, weight: float
) -> tf.data.Dataset:
  common = tf.data.Dataset.from_tensors((epoch, weight)).repeat()
  return tf.data.Dataset.zip((examples, common))


def _filled_up(
  examples: tf.data.Dataset, fillers: tf.data.Dataset, epoch: tf.Tensor, total: int
) -> tf.data.Dataset:
  """`total` elements (example, (epoch, weight)): `examples`, then fillers."""
  filled = _weighted(examples, epoch, 1.0)
  return filled.concatenate(_weighted(fillers.repeat(), epoch, 0.0)).take(total)


def _decoded(
  examples: tf.data.Dataset, reading: Reading, calls: Optional[int] = None
) -> tf.data.Dataset:
  """Elements of the result, of elements (example, (epoch, weight)).

  Args:
    examples: As `Reading.parse` makes them, with their epochs and weights.
    reading: How they are read.
    calls: Images that are worked on at a time; None is two a core, but at least as
      many as are drawn at a time. More than cores, so that none waits while an image
      before which others may not go is made by another, or while a batch is copied.
  """
  # What works on many examples costs less than what works on each of them.
  drawn = examples.batch(_EXAMPLES_A_CALL).map(reading.draw).unbatch()
  return drawn.map(reading.decode, calls or max(_EXAMPLES_A_CALL, 2 * num_cores()))


def _scaled(examples: Example) -> Example:
  return {**examples, "image": in_unit_range(examples["image"])}


def _to_bytes(examples: Example) -> Example:
  # A quarter of what floats would send over the network.
  return {**examples, "image": tf.cast(tf.round(examples["image"] * 255.0), tf.uint8)}


def _batches(
  stream: tf.data.Dataset, batch_size: int, num_batches: int, *, is_served: bool = False
) -> tf.data.Dataset:
  """Batches decoded elements, of a data service's or our own."""
  options = tf.data.Options()
  options.deterministic = True
  # Every stage's parallelism is best left at its default, one call a core; measuring it
  # while training costs time, and a warning when a bad record ends the run. But what a
  # data service sends is measured all the same, or TensorFlow warns once a second.
  options.autotune.enabled = is_served
  # Threads of its own, so that decoding and the training step do not wait for a turn
  # in one another's queue.
  options.threading.private_threadpool_size = num_cores()
  # The shard is this worker's own already: tf.distribute is not to divide it again.
  options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.OFF
  )
  return (
    stream.batch(batch_size, drop_remainder=True)
    .apply(tf.data.experimental.assert_cardinality(num_batches))
    .prefetch(_BATCHES_AHEAD)
    .with_options(options)
  )
