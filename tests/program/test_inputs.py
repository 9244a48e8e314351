"""What a run makes of its files: their channels, and whether they fit together."""

from __future__ import annotations

import io
import os
import pathlib
import tempfile
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf
from absl.testing import parameterized
from config_case import parse

from dat_tf.base.errors import UserError
from dat_tf.data import comparison, records
from dat_tf.program.inputs import Inputs
from dat_tf.workers import joined
from dat_tf.workers.cluster import Cluster
from record_files import bare_pixels, example, write
from workers import run_workers

GREY, COLOR = np.full((6, 6, 1), 80, "u1"), np.full((6, 6, 3), [[200, 80, 20]], "u1")


def encoded(image, kind, label=1):
  buffer = io.BytesIO()
  PIL.Image.fromarray(image.squeeze()).save(buffer, kind, quality=100)
  content = buffer.getvalue()
  return example(image__encoded=content, image__class__label=label + 1)


def record(image, kind, label=1):
  return bare_pixels(label, image) if kind == "raw" else encoded(image, kind, label)


class InputsCase(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(tempfile.mkdtemp(dir=self.get_temp_dir()))

  def write(self, name, serialized):
    return write(str(self.folder / name), serialized)

  def inputs(self, **flags):
    workers = joined.Workers(Cluster(), tf.distribute.get_strategy())
    config = parse(
      **{"mode": "train", "global_batch_size": 4, "model_dir": "m", **flags}
    )
    return Inputs(config, workers)


class ChannelsTest(InputsCase):
  """Grey and color images in one set, in any order."""

  def images(self, **flags):
    """All training images, in the order of the file, as RGB or grey in [0, 255]."""
    inputs = self.inputs(shuffle_buffer=0, epochs=1, **flags)
    batches = list(inputs.training_batches(0))
    weights = np.concatenate([batch["weight"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])[weights > 0]
    return inputs, np.rint(images * 255).astype(int)

  @parameterized.product(kind=("raw", "PNG", "JPEG"), grey_first=(True, False))
  def test_grey_ones_become_rgb_whichever_is_first(self, kind, grey_first):
    images = [GREY, COLOR, GREY] if grey_first else [COLOR, GREY, GREY]
    path = self.write("train", [record(image, kind) for image in images])
    inputs, found = self.images(train_data=path, test_data=None)
    self.assertEqual(inputs.image_shape, (6, 6, 3))
    expected = np.stack([np.broadcast_to(image, (6, 6, 3)) for image in images])
    self.assertAllClose(found, expected, atol=0 if kind != "JPEG" else 3)

  @parameterized.parameters("raw", "PNG", "JPEG")
  def test_images_of_one_kind_stay_what_they_are(self, kind):
    for image in (GREY, COLOR):
      path = self.write("train", [record(image, kind)] * 3)
      _, found = self.images(train_data=path, test_data=None)
      self.assertAllClose(found, np.stack([image] * 3), atol=0 if kind != "JPEG" else 3)

  @parameterized.parameters("raw", "PNG", "JPEG")
  def test_test_data_of_the_other_kind(self, kind):
    grey = self.write("grey", [record(GREY, kind)] * 2)
    color = self.write("color", [record(COLOR, kind)] * 2)
    for train, test in ((grey, color), (color, grey)):
      inputs, found = self.images(train_data=train, test_data=test)
      self.assertEqual(found.shape, (2, 6, 6, 3))
      (batch,) = inputs.evaluation_batches(inputs.test)
      self.assertEqual(batch["image"].shape, (4, 6, 6, 3))

  @parameterized.parameters(("raw", None), ("PNG", 4), ("JPEG", 4))
  def test_color_that_comes_late_is_never_trained_on_in_grey(self, kind, image_size):
    path = self.write(
      "train", [*[record(GREY, kind)] * 250, record(COLOR, kind), record(GREY, kind)]
    )
    flags = {"train_data": path, "test_data": None, "image_size": image_size}
    inputs = self.inputs(**flags)
    with self.assertRaises(records.DATA_ERRORS):
      for _ in inputs.training_batches(0):
        pass
    message = inputs.explain()
    self.assertIn(f"{path}: record 250 ", message)
    self.assertIn("`channels=3`", message)
    _, found = self.images(channels="3", **flags)
    self.assertEqual(found.shape, (252, *(image_size or 6,) * 2, 3))
    is_grey = (found == found[..., :1]).all(axis=(1, 2, 3))
    self.assertEqual(np.flatnonzero(~is_grey).tolist(), [250])

  def test_damage_among_the_first_is_left_to_training(self):
    bad = example(image__encoded=b"\xff\xd8\xff no JPEG", image__class__label=1)
    path = self.write("train", [record(GREY, "JPEG"), bad, record(COLOR, "JPEG")])
    self.assertEqual(self.inputs(train_data=path, test_data=None).image_shape[-1], 1)


class FormsTest(InputsCase):
  """Files of other record forms in one set; the first file's is that of all."""

  @parameterized.parameters(("raw", "PNG"), ("PNG", "raw"))
  def test_files_of_another_form_are_told_before_they_are_trained_on(self, *kinds):
    paths = [
      self.write(str(number), [record(GREY, kind)] * 2)
      for number, kind in enumerate((kinds[0], *kinds))
    ]
    lacking = "image/raw" if kinds[0] == "raw" else "image/class/label"
    for flags in ({"train_data": ",".join(paths)}, {"test_data": ",".join(paths)}):
      with self.assertRaisesRegex(
        UserError, f"^{paths[2]}: record 0 .* lacks '{lacking}'"
      ):
        self.inputs(**{"train_data": paths[0], "test_data": paths[1], **flags})

  def test_damage_is_left_to_training(self):
    good = self.write("0", [record(GREY, "raw")] * 2)
    bad = self.write("1", [b"\xff\xff"])
    self.inputs(train_data=f"{good},{bad}", test_data=good)


class ComparisonTest(InputsCase):
  """Train and test data of 40 images each, and what makes a test doubtful."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.images = rng.integers(0, 256, (80, 6, 6, 1), "u1")

  def warning(self, train, test, train_labels=range(4), test_labels=range(4)):
    """Of sets of images, given by their numbers; labels go round."""
    paths = {}
    for name, numbers, labels in (
      ("train", train, train_labels),
      ("test", test, test_labels),
    ):
      serialized = [
        bare_pixels(labels[n % len(labels)], self.images[n]) for n in numbers
      ]
      for half in range(2):
        self.write(f"{name}-{half}", serialized[half::2])
      paths[f"{name}_data"] = str(self.folder / f"{name}-*")
    return self.inputs(**paths).warning()

  def test_sets_that_go_together(self):
    self.assertIsNone(self.warning(range(40), range(40, 80)))
    # One image that is in both is nothing rare.
    self.assertIsNone(self.warning(range(40), [0, *range(40, 80)]))
    self.assertIsNone(self.warning(range(40), range(40, 80), range(5), range(4)))

  def test_test_images_that_are_trained_on(self):
    warning = self.warning(range(40), range(20, 60))
    self.assertIn("20 of the first 40 test images are among the first 40", warning)
    # A test set has labels of its own there: what counts is the image.
    warning = self.warning(range(40), range(20, 60), test_labels=range(3))
    self.assertIn("20 of the first 40 test images", warning)

  def test_files_that_are_trained_on(self):
    self.warning(range(40), range(40, 80))
    paths = [str(self.folder / name) for name in ("train-0", "train-1", "test-0")]
    inputs = self.inputs(train_data=",".join(paths), test_data=paths[2])
    self.assertIn(f"{paths[2]} is both trained and tested on", inputs.warning())
    copy = self.folder / "copy"
    copy.write_bytes(pathlib.Path(paths[0]).read_bytes())
    inputs = self.inputs(train_data=paths[0], test_data=f"{copy},{paths[2]}")
    self.assertIn(f"{copy} is both trained and tested on (1 of 2", inputs.warning())

  def test_labels_that_are_shifted(self):
    for shift, expected in (
      (1, "0 to 3, those of the test 1 to 4"),
      (-1, "1 to 4, th"),
    ):
      first, second = range(4), range(1, 5)
      labels = (first, second) if shift > 0 else (second, first)
      warning = self.warning(range(40), range(40, 80), *labels)
      self.assertIn(f"the labels to train on are {expected}", warning)

  def test_classes_that_are_not_trained_on(self):
    warning = self.warning(range(40), range(40, 80), range(4), range(6))
    self.assertIn("2 classes of the test, such as label 4, are not among", warning)

  def test_of_large_sets_some_records_of_each_file_are_read(self):
    with mock.patch.object(comparison, "_SAMPLE", 10):
      self.warning(range(40), range(40, 80))
      paths = sorted(map(str, self.folder.glob("train-*")))
      found = comparison.sample(paths, records.DAT)
    self.assertFalse(found.is_whole)
    self.assertLen(found.images, 10)
    self.assertEqual(found.labels, {0, 1, 2, 3})
    self.assertTrue(comparison.sample(paths, records.DAT).is_whole)


def _open_own_files(folder):
  """Opens this worker's files, as many times as there are faults; what is said."""
  cluster = Cluster.from_environment()
  workers = joined.join(cluster, joined.communication_options("auto", 0, 0))
  said = {}
  for name in ("same", "missing", "shifted", "longer", "local"):
    flags = {
      "mode": "train",
      "global_batch_size": 2 * cluster.num_workers,
      "train_data": f"{folder}/{name}/worker-{cluster.index}/*",
      "test_data": f"{folder}/same/worker-0/*",
      "data_is_local": name == "local",
    }
    # The pattern is the same on all workers in truth, where each has its own disc.
    os.chdir(f"{folder}/{name}/worker-{cluster.index}")
    if name != "local":
      flags["train_data"] = "train-*"
    try:
      Inputs(parse(**flags), workers)
      said[name] = None
    except UserError as error:
      said[name] = str(error)
  return said


class WorkersTest(InputsCase):
  def test_workers_with_other_files_are_told_and_named(self):
    for name in ("same", "missing", "shifted", "longer", "local"):
      for worker in range(3):
        odd = worker == 2
        shift, count = int(odd and name == "shifted"), 9 + (odd and name == "longer")
        for part in range(3 if odd and name == "missing" else 4):
          path = self.folder / name / f"worker-{worker}" / f"train-{part}"
          path.parent.mkdir(parents=True, exist_ok=True)
          write(str(path), [bare_pixels(n % 3 + shift) for n in range(count)])
    for said in run_workers(_open_own_files, 3, str(self.folder)):
      self.assertIsNone(said["same"])
      self.assertIsNone(said["local"])
      for name, word in (
        ("missing", "only worker 0 has ./train-3"),
        ("shifted", "train-0 ends with another record there than on worker 0"),
        ("longer", "train-0 has "),
      ):
        self.assertStartsWith(said[name], "Worker 2 sees other files than worker 0")
        self.assertIn(word, said[name])
        self.assertIn("`data_is_local`", said[name])


if __name__ == "__main__":
  tf.test.main()
