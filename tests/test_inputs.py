"""What a run makes of its files: their channels, and whether they fit together."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import tempfile

import numpy as np
import PIL.Image
import tensorflow as tf
from absl.testing import parameterized
from config_case import parse

from dat_tf.cluster import Cluster
from dat_tf.data import records
from dat_tf.errors import UserError
from dat_tf.inputs import Inputs
from record_files import bare_pixels, example, write

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
    strategy = tf.distribute.get_strategy()
    config = parse(
      **{"mode": "train", "global_batch_size": 4, "model_dir": "m", **flags}
    )
    return Inputs(config, Cluster(), strategy)


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
      self.assertAllClose(
        found, np.stack([image] * 3), atol=0 if kind != "JPEG" else 3
      )

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
    self.assertIn("--channels=3", message)
    _, found = self.images(channels="3", **flags)
    self.assertEqual(found.shape, (252, *(image_size or 6,) * 2, 3))
    is_grey = (found == found[..., :1]).all(axis=(1, 2, 3))
    self.assertEqual(np.flatnonzero(~is_grey).tolist(), [250])

  def test_damage_among_the_first_is_left_to_training(self):
    bad = example(image__encoded=b"\xff\xd8\xff no JPEG", image__class__label=1)
    path = self.write("train", [record(GREY, "JPEG"), bad, record(COLOR, "JPEG")])
    self.assertEqual(self.inputs(train_data=path, test_data=None).image_shape[-1], 1)


if __name__ == "__main__":
  tf.test.main()
