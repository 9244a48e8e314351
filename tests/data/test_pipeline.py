"""Shards and batches, against the records that were written."""

import collections
import dataclasses
import os

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.data import augment, pipeline, records, shards, writing
from record_files import example, flip_byte, gradient_image, read, write

SHAPE = (4, 5, 1)
CLASSES = 10


def image_of(file: int, record: int) -> np.ndarray:
  """An image by which its record can be told."""
  image = np.random.default_rng([file, record]).integers(0, 256, SHAPE, np.uint8)
  image[0, :2, 0] = file, record
  return image


def example_id(file: int, record: int) -> int:
  return file * 2**32 + record


def all_ids(sizes) -> list:
  return [example_id(f, r) for f, size in enumerate(sizes) for r in range(size)]


def reading(settings: dict) -> pipeline.Reading:
  """Takes out of `settings` what there is for it."""
  given = {
    field.name: settings.pop(field.name)
    for field in dataclasses.fields(pipeline.Reading)
    if field.name in settings
  }
  defaults = dict(form=records.DAT, image_shape=SHAPE, num_classes=CLASSES, seed=3)
  return pipeline.Reading(**{**defaults, **given})


def collect(dataset) -> dict:
  """The whole stream, batches joined, as arrays."""
  batches = list(dataset.as_numpy_iterator())
  return {
    name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]
  }


class PipelineTest(tf.test.TestCase, parameterized.TestCase):
  def write(self, sizes) -> list:
    """Files with so many records each; labels are (file + record) mod 10."""
    directory = self.get_temp_dir()
    for file, size in enumerate(sizes):
      with tf.io.TFRecordWriter(os.path.join(directory, f"part-{file}")) as writer:
        for record in range(size):
          label = (file + record) % CLASSES
          writer.write(writing.image_example(image_of(file, record), label))
    return records.match_files(f"{directory}/part-*")

  def training(self, shard, epochs=(0, 1), batches=None, batch_size=4, **kwargs):
    how = reading(kwargs)
    settings = dict(
      batch_size=batch_size,
      batches_per_epoch=batches
      or pipeline.batches_per_epoch(shard.num_examples, batch_size),
      first_epoch=epochs[0],
      last_epoch=epochs[1],
      shuffle_buffer=7,
    )
    return pipeline.training_dataset(shard, how, **{**settings, **kwargs})

  def evaluation(self, shard, batches=None, batch_size=4, **kwargs):
    batches = batches or pipeline.batches_per_epoch(shard.num_examples, batch_size)
    return pipeline.evaluation_dataset(
      shard, reading(kwargs), batch_size=batch_size, batches_per_epoch=batches, **kwargs
    )

  # More files than workers, fewer, and one, dealt whole and in parts.
  @parameterized.parameters(
    ((7, 3, 9, 4, 6), 1),
    ((7, 3, 9, 4, 6), 2),
    ((7, 3, 9, 4, 6), 5),
    ((11, 6), 3),
    ((11, 6), 5),
    ((13,), 2),
    ((13,), 3),
  )
  def test_every_example_is_on_exactly_one_worker_once_an_epoch(
    self, sizes, num_workers
  ):
    paths = self.write(sizes)
    parts = [
      shards.shard_files(paths, worker, num_workers) for worker in range(num_workers)
    ]
    self.assertEqual(sum(shard.num_examples for shard in parts), sum(sizes))
    batches = max(-(-shard.num_examples // 4) for shard in parts)
    seen = {"evaluation": [], 0: [], 1: []}
    for shard in parts:
      training = collect(self.training(shard, (0, 2), batches))
      evaluation = collect(self.evaluation(shard, batches))
      self.assertLen(evaluation["label"], batches * 4)
      self.assertLen(training["label"], batches * 4 * 2)
      real = evaluation["weight"] == 1
      self.assertEqual(real.sum(), shard.num_examples)
      seen["evaluation"] += list(evaluation["example_id"][real])
      for epoch in (0, 1):
        kept = (training["epoch"] == epoch) & (training["weight"] == 1)
        seen[epoch] += list(training["example_id"][kept])
    for ids in seen.values():
      self.assertCountEqual(ids, all_ids(sizes))

  @parameterized.parameters((5, 2, 2, 1), (6, 3, 2, 0), (2, 3, 0, 2), (3, 1, 3, 0))
  def test_files_are_dealt_whole_while_they_go_round(
    self, num_files, num_workers, num_whole, num_strided
  ):
    paths = self.write([6] * num_files)
    readers = collections.Counter()
    for worker in range(num_workers):
      slices = shards.shard_files(paths, worker, num_workers).slices
      whole = [piece for piece in slices if piece.stride == 1]
      self.assertLen(whole, num_whole)
      self.assertEqual(
        [(s.first, s.stride) for s in slices if s.stride != 1],
        [(worker, num_workers)] * num_strided,
      )
      self.assertTrue(all(piece.num_examples == 6 for piece in whole))
      readers.update(piece.file_number for piece in whole)
    self.assertEqual(readers, collections.Counter(range(num_whole * num_workers)))

  def test_an_element_is_the_record_that_its_id_names(self):
    shard = shards.shard_files(self.write((7, 6)), 0, 1)
    for dataset in (self.training(shard), self.evaluation(shard)):
      stream = collect(dataset)
      for name, dtype in dict(
        image=np.float32,
        label=np.int64,
        weight=np.float32,
        example_id=np.int64,
        epoch=np.int64,
      ).items():
        self.assertEqual(stream[name].dtype, dtype)
      files, numbers = np.divmod(stream["example_id"], 2**32)
      images = np.stack([image_of(f, r) for f, r in zip(files, numbers)])
      self.assertAllClose(stream["image"], images / 255, rtol=1e-6)
      self.assertAllEqual(stream["label"], (files + numbers) % CLASSES)

  def test_batches_have_static_shapes_and_a_known_number(self):
    shard = shards.shard_files(self.write((7, 6)), 0, 1)
    for dataset, batches in (
      (self.training(shard, (2, 5)), 12),
      (self.evaluation(shard), 4),
    ):
      self.assertEqual(dataset.element_spec["image"].shape, (4, *SHAPE))
      self.assertEqual(dataset.element_spec["label"].shape, (4,))
      self.assertEqual(dataset.cardinality(), batches)
      self.assertLen(list(dataset), batches)

  def test_fillers_are_the_first_examples_at_weight_0(self):
    shard = shards.shard_files(self.write((2, 3)), 0, 1)
    for dataset in (self.training(shard, batches=3), self.evaluation(shard, batches=3)):
      stream = collect(dataset)
      self.assertAllEqual(stream["weight"], [1] * 5 + [0] * 7)
      ids = all_ids((2, 3))
      self.assertAllEqual(stream["example_id"][5:], ids + ids[:2])

  def test_evaluation_reads_file_after_file(self):
    shard = shards.shard_files(self.write((5, 0, 7)), 0, 1)
    stream = collect(self.evaluation(shard))
    self.assertAllEqual(stream["example_id"], all_ids((5, 0, 7)))
    self.assertAllEqual(stream["epoch"], [0] * 12)

  def test_no_shuffle_buffer_keeps_the_order_of_the_files(self):
    shard = shards.shard_files(self.write((5, 7)), 0, 1)
    stream = collect(self.training(shard, (0, 2), shuffle_buffer=0))
    self.assertAllEqual(stream["example_id"], 2 * all_ids((5, 7)))
    self.assertAllEqual(stream["epoch"], [0] * 12 + [1] * 12)

  def test_the_same_seed_gives_the_same_stream_whatever_the_global_seed(self):
    shard = shards.shard_files(self.write((9, 8, 7)), 0, 1)
    settings = dict(epochs=(0, 3), augmentation=augment.PadCropFlip(2))
    tf.random.set_seed(0)
    first = collect(self.training(shard, **settings))
    tf.random.set_seed(1)
    second = collect(self.training(shard, **settings))
    for name, values in first.items():
      self.assertAllEqual(values, second[name])
    other = collect(self.training(shard, seed=4, **settings))
    self.assertNotAllEqual(first["example_id"], other["example_id"])

  def test_a_restart_at_an_epoch_gives_the_rest_of_the_stream(self):
    shard = shards.shard_files(self.write((9, 8, 6)), 0, 1)
    settings = dict(batches=7, augmentation=augment.PadCropFlip(2))
    unbroken = collect(self.training(shard, (0, 4), **settings))
    restarted = collect(self.training(shard, (2, 4), **settings))
    for name, values in unbroken.items():
      self.assertAllEqual(values[2 * 7 * 4 :], restarted[name])

  def test_a_restart_within_an_epoch_gives_the_rest_of_the_stream(self):
    shard = shards.shard_files(self.write((7, 6)), 0, 1)
    augmentation = augment.PadCropFlip(padding=1)
    whole = collect(self.training(shard, (0, 3), augmentation=augmentation))
    for epoch, batch in ((0, 1), (1, 3)):  # the fourth batch is filled up
      rest = self.training(
        shard, (epoch, 3), first_batch=batch, augmentation=augmentation
      )
      self.assertEqual(rest.cardinality(), 4 * (3 - epoch) - batch)
      for name, values in collect(rest).items():
        self.assertAllEqual(values, whole[name][16 * epoch + 4 * batch :])

  def test_order_of_records_changes_with_the_epoch(self):
    shard = shards.shard_files(self.write((40,)), 0, 1)
    stream = collect(self.training(shard, (0, 3), shuffle_buffer=40))
    epochs = stream["example_id"].reshape(3, 40)
    for one, other in ((0, 1), (0, 2), (1, 2)):
      # Of 40 examples one keeps its place on average by chance.
      self.assertLess(np.sum(epochs[one] == epochs[other]), 8)
    self.assertGreater(np.abs(np.diff(epochs[0])).mean(), 5)

  def test_order_of_files_changes_with_the_epoch(self):
    shard = shards.shard_files(self.write([1] * 12), 0, 1)
    stream = collect(self.training(shard, (0, 3), shuffle_buffer=1))
    orders = {tuple(order) for order in stream["example_id"].reshape(3, 12)}
    self.assertLen(orders, 3)

  def test_a_continuous_stream_goes_round_and_epochs_cut_it(self):
    shard = shards.shard_files(self.write((7, 6)), 0, 1)

    def stream(first_epoch, first_batch=0):
      dataset = pipeline.continuous_dataset(
        shard,
        reading({}),
        batch_size=4,
        batches_per_epoch=2,
        first_epoch=first_epoch,
        last_epoch=6,
        shuffle_buffer=7,
        first_batch=first_batch,
      )
      self.assertEqual(dataset.cardinality(), 2 * (6 - first_epoch) - first_batch)
      return collect(dataset)

    whole = stream(0)
    self.assertAllEqual(whole["weight"], np.ones(48))
    self.assertAllEqual(whole["epoch"], np.repeat(range(6), 8))
    rounds = [whole["example_id"][start : start + 13] for start in (0, 13, 26)]
    for ids in rounds:
      self.assertCountEqual(ids, all_ids((7, 6)))
    self.assertNotEqual(list(rounds[0]), list(rounds[1]))
    for start in ((1, 0), (3, 0), (0, 1), (3, 1)):
      for name, values in stream(*start).items():
        self.assertAllEqual(values, whole[name][8 * start[0] + 4 * start[1] :])

  def test_augmentation_does_not_depend_on_the_number_of_workers(self):
    paths = self.write((6, 5, 5, 4))

    def augmented(num_workers) -> dict:
      images = {}
      for worker in range(num_workers):
        shard = shards.shard_files(paths, worker, num_workers)
        stream = collect(
          self.training(shard, (0, 2), augmentation=augment.PadCropFlip(2))
        )
        for epoch, number, image in zip(
          stream["epoch"], stream["example_id"], stream["image"]
        ):
          images[epoch, number] = image
      return images

    alone, together = augmented(1), augmented(3)
    self.assertLen(alone, 2 * 20)
    self.assertCountEqual(alone, together)
    for key, image in alone.items():
      self.assertAllEqual(image, together[key])
    ids = all_ids((6, 5, 5, 4))
    changed = [not np.array_equal(alone[0, i], alone[1, i]) for i in ids]
    self.assertGreater(np.mean(changed), 0.8)

  def test_local_data_is_all_read_under_ids_of_its_own(self):
    shard = shards.shard_files(self.write((3, 5)), 2, 4, data_is_local=True)
    self.assertEqual(shard.num_examples, 8)
    stream = collect(self.evaluation(shard))
    first = example_id(2 * 2**20, 0)
    self.assertAllEqual(stream["example_id"] - first, all_ids((3, 5)))

  def test_empty_shard(self):
    paths = self.write((2,))
    with self.assertRaisesRegex(UserError, r"Worker 2 \(counted from 0\) of 3 has no"):
      shards.shard_files(paths, 2, 3)

  def test_one_based_jpegs(self):
    path = os.path.join(self.get_temp_dir(), "jpegs")
    with tf.io.TFRecordWriter(path) as writer:
      for label in (1, CLASSES):
        jpeg = tf.io.encode_jpeg(np.full((8, 8, 3), 60 + label, np.uint8)).numpy()
        feature = {
          "image/encoded": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[jpeg])
          ),
          "image/class/label": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label])
          ),
        }
        features = tf.train.Features(feature=feature)
        writer.write(tf.train.Example(features=features).SerializeToString())
    shard = shards.shard_files([path], 0, 1)
    settings = dict(form=records.detect_form(path), image_shape=(8, 8, 3))
    stream = collect(self.evaluation(shard, batch_size=2, **settings))
    self.assertAllEqual(stream["label"], [0, CLASSES - 1])
    self.assertAllClose(stream["image"][1], np.full((8, 8, 3), 70 / 255), atol=2 / 255)
    with self.assertRaises(tf.errors.InvalidArgumentError):
      collect(self.evaluation(shard, batch_size=2, first_label=0, **settings))

  def test_unlabeled_reading(self):
    path = os.path.join(self.get_temp_dir(), "some")
    image = gradient_image(*SHAPE)
    common = {"image/raw": image.tobytes(), "image/shape": image.shape}
    write(path, [example(**common, label=3), example(**common)])
    shard = shards.shard_files([path], 0, 1)
    form = records.detect_form(path, needs_label=False)
    for make in (self.training, self.evaluation):
      stream = collect(make(shard, form=form, batch_size=2))
      self.assertEqual(stream["label"].dtype, np.int64)
      self.assertCountEqual(stream["label"], [3, -1])
      with self.assertRaises(tf.errors.InvalidArgumentError):
        collect(make(shard, form=form, batch_size=2, num_classes=3))
      with self.assertRaises(tf.errors.InvalidArgumentError):
        collect(make(shard, batch_size=2))

  def test_soft_labels(self):
    path = os.path.join(self.get_temp_dir(), "soft")
    image = gradient_image(*SHAPE)
    common = {"image/raw": image.tobytes(), "image/shape": image.shape}
    soft = np.float32([0.5, 0.25, 0.25])
    write(path, [example(**common, label__soft=soft), example(**common)])
    shard = shards.shard_files([path], 0, 1)
    settings = dict(form=records.detect_form(path, needs_label=False), batch_size=2)
    dataset = self.evaluation(shard, num_classes=3, **settings)
    self.assertEqual(dataset.element_spec["label"].shape, (2, 3))
    stream = collect(dataset)
    self.assertEqual(stream["label"].dtype, np.float32)
    self.assertAllEqual(stream["label"], [soft, [0, 0, 0]])
    with self.assertRaisesRegex(UserError, "for 3 classes, and `num_classes=10`"):
      self.evaluation(shard, **settings)
    write(path, [example(**common, label__soft=2 * soft), example(**common)])
    shard = shards.shard_files([path], 0, 1)
    with self.assertRaises(tf.errors.InvalidArgumentError):
      collect(self.evaluation(shard, num_classes=3, **settings))

  def test_images_of_any_size_are_cropped_to_one(self):
    path = os.path.join(self.get_temp_dir(), "sizes")
    shapes = [(9, 12, 3), (30, 20, 3), (8, 8, 3)]
    images = [gradient_image(*shape) for shape in shapes]
    encoders = [tf.io.encode_jpeg, tf.io.encode_png, tf.io.encode_jpeg]
    encoded = [encode(image).numpy() for encode, image in zip(encoders, images)]
    write(path, [example(image=image, label=0) for image in encoded])
    shard = shards.shard_files([path], 0, 1)
    settings = dict(form=records.TFDS, image_shape=(8, 8, 3), batch_size=3)
    crop = augment.CenterCrop(8, fraction=1.0)
    stream = collect(self.evaluation(shard, augmentation=crop, **settings))
    stored = [records.StoredImage(tf.constant(image), None, 3) for image in encoded]
    choices = crop.draw(tf.stack([image.size() for image in stored]), None)
    expected = [crop.apply(*each) for each in zip(stored, choices)]
    self.assertAllClose(stream["image"], expected, rtol=1e-6)
    crop = augment.RandomResizedCrop(8)
    first, second = (
      collect(self.training(shard, (0, 2), augmentation=crop, **settings))
      for _ in range(2)
    )
    self.assertEqual(first["image"].shape, (6, 8, 8, 3))
    self.assertAllEqual(first["image"], second["image"])
    with self.assertRaises(tf.errors.InvalidArgumentError):
      collect(self.evaluation(shard, **settings))

  @parameterized.parameters(1, 2, 3)
  def test_bad_records_are_left_out_and_no_others(self, num_workers):
    sizes = (6, 5, 7)
    paths = self.write(sizes)
    frame = 16 + len(read(paths[0])[0])
    flip_byte(paths[0], 2 * frame + 40)  # Data.
    flip_byte(paths[2], 1)  # A length.
    flip_byte(paths[2], 4 * frame + 40)
    with self.assertRaisesRegex(UserError, "`skip_bad_records`"):
      shards.shard_files([paths[2]], 0, 1)
    bad = [example_id(*each) for each in ((0, 2), (2, 0), (2, 4))]
    left = sorted(set(all_ids(sizes)) - set(bad))
    parts = [
      shards.shard_files(paths, worker, num_workers, skip_bad_records=True)
      for worker in range(num_workers)
    ]
    seen = {"training": [], "evaluation": []}
    for shard in parts:
      for kind, make in (("training", self.training), ("evaluation", self.evaluation)):
        stream = collect(make(shard))
        real = stream["weight"] == 1
        self.assertEqual(np.sum(real), shard.num_examples)
        files, numbers = np.divmod(stream["example_id"], 2**32)
        images = np.stack([image_of(f, r) for f, r in zip(files, numbers)])
        self.assertAllClose(stream["image"], images / 255, rtol=1e-6)
        seen[kind] += list(stream["example_id"][real])
    for ids in seen.values():
      self.assertCountEqual(ids, left)
    lines = [line for shard in parts for line in shard.bad_records]
    self.assertLen(lines, 3)
    for path, number in ((paths[0], 2), (paths[2], 0), (paths[2], 4)):
      start = f"{path}: record {number} (counted from 0) "
      self.assertLen([line for line in lines if line.startswith(start)], 1)
    shards.check_bad_records(lines, 3)
    with self.assertRaisesRegex(UserError, r"^3 records are bad.*=2`: ") as caught:
      shards.check_bad_records(lines, 2)
    for line in lines:
      self.assertIn(line, str(caught.exception))

  def test_a_label_out_of_range_stops_the_stream_and_is_located(self):
    shard = shards.shard_files(self.write((6, 9)), 0, 1)
    for dataset in (
      self.training(shard, num_classes=9),
      self.evaluation(shard, num_classes=9),
    ):
      # The label 9 is that of record 8 of file 1.
      with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError, r"\[0, 9\).*\[9\] \[1\] \[8\]"
      ):
        collect(dataset)

  def test_an_image_of_another_shape_stops_the_stream(self):
    shard = shards.shard_files(self.write((6,)), 0, 1)
    with self.assertRaises(tf.errors.InvalidArgumentError):
      collect(self.training(shard, image_shape=(5, 4, 1)))

  def test_a_corrupt_record_stops_the_stream(self):
    paths = self.write((6,))
    with open(paths[0], "r+b") as file:
      file.seek(30)
      file.write(b"\xff\xff")
    shard = shards.shard_files(paths, 0, 1)
    with self.assertRaises(tf.errors.DataLossError):
      collect(self.training(shard))

  @parameterized.parameters((0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2))
  def test_batches_per_epoch(self, num_examples, batch_size, expected):
    self.assertEqual(pipeline.batches_per_epoch(num_examples, batch_size), expected)


if __name__ == "__main__":
  tf.test.main()
