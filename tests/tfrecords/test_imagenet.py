"""ImageNet's converter, on small archives laid out as the originals are."""

import importlib.util
import io
import os
import tarfile
import unittest

import numpy as np
import scipy.io
import tensorflow as tf
from absl.testing import parameterized
from PIL import Image

from builders import call, encode, mean_difference, photograph, read_canonical
from dat_tf.base.errors import UserError

# As in the original: the tar's order, the kit's order and the alphabet's all differ.
IN_TAR = ["n03000001", "n01000003", "n02000002"]
BY_ID = {1: "n02000002", 2: "n03000001", 3: "n01000003", 4: "n00001740"}
ALPHABETICAL = ["n01000003", "n02000002", "n03000001"]
GROUND_TRUTH = [3, 1, 2, 2, 3, 1, 1]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
  info = tarfile.TarInfo(name)
  info.size = len(content)
  tar.addfile(info, io.BytesIO(content))


def tar_of(members) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
    for name, content in members:
      add(tar, name, content)
  return buffer.getvalue()


def meta_mat() -> bytes:
  """The kit's meta.mat: a column of structs, those with children at the end."""
  fields = [
    ("ILSVRC2012_ID", "O"),
    ("WNID", "O"),
    ("words", "O"),
    ("gloss", "O"),
    ("num_children", "O"),
    ("children", "O"),
    ("wordnet_height", "O"),
    ("num_train_images", "O"),
  ]
  synsets = np.zeros((len(BY_ID), 1), fields)
  for row, (number, wnid) in enumerate(BY_ID.items()):
    children = [1, 2, 3] if number == 4 else []
    synsets[row, 0] = (
      np.array([[number]], np.int16),
      wnid,
      f"thing, thing {number}",
      "what it is",
      np.array([[len(children)]], np.uint8),
      np.array([children], np.uint16),
      np.array([[0]], np.uint8),
      np.array([[5]], np.uint16),
    )
  buffer = io.BytesIO()
  scipy.io.savemat(buffer, {"synsets": synsets})
  return buffer.getvalue()


def kit() -> bytes:
  buffer = io.BytesIO()
  folder = "ILSVRC2012_devkit_t12"
  truth = "".join(f"{number}\n" for number in GROUND_TRUTH)
  with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
    add(tar, f"{folder}/readme.txt", b"Development kit\n")
    add(tar, f"{folder}/data/meta.mat", meta_mat())
    add(tar, f"{folder}/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
  return buffer.getvalue()


class ImageNetTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.get_temp_dir()
    self.output = self.path("out")
    self.train = {
      synset: {
        f"{synset}_{3 * k + number}.JPEG": encode(photograph(10 * number + k))
        for k in range(4)
      }
      for number, synset in enumerate(IN_TAR)
    }
    self.cmyk = photograph(77).convert("CMYK")
    self.png = photograph(78).convert("RGB")
    self.train["n01000003"]["n01000003_90.JPEG"] = encode(self.cmyk)
    self.train["n02000002"]["n02000002_91.JPEG"] = encode(self.png, "PNG")
    grey = photograph(79).convert("L")
    self.train["n03000001"]["n03000001_92.JPEG"] = encode(grey)
    self.validation = {
      f"ILSVRC2012_val_{number:08d}.JPEG": encode(photograph(40 + number))
      for number in (4, 2, 7, 1, 3, 6, 5)
    }
    self.write_archives()

  def path(self, name):
    return os.path.join(self.folder, name)

  def write(self, name, content):
    os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
    with open(self.path(name), "wb" if isinstance(content, bytes) else "w") as file:
      file.write(content)
    return self.path(name)

  def write_archives(self):
    self.train_tar = self.write(
      "ILSVRC2012_img_train.tar",
      tar_of(
        (f"{name}.tar", tar_of(images.items())) for name, images in self.train.items()
      ),
    )
    self.validation_tar = self.write(
      "ILSVRC2012_img_val.tar", tar_of(self.validation.items())
    )
    self.kit = self.write("ILSVRC2012_devkit_t12.tar.gz", kit())

  def build(self, train=None, validation=None, labels=None, *arguments):
    return call(
      "build_imagenet",
      f"--output_dir={self.output}",
      "--num_train_shards=3",
      "--num_validation_shards=2",
      *([f"--train={train}"] if train else []),
      *([f"--validation={validation}"] if validation else []),
      *([f"--validation_labels={labels}"] if labels else []),
      *arguments,
    )

  def assert_train_written(self):
    found = read_canonical(self.output, "train")
    images = {name: c for one in self.train.values() for name, c in one.items()}
    self.assertCountEqual(found, images)
    for name, one in found.items():
      synset = name.split("_")[0]
      self.assertEqual(one["class/synset"], synset)
      self.assertEqual(one["class/label"], 1 + ALPHABETICAL.index(synset))
      described = (one["format"], one["colorspace"], one["channels"])
      self.assertEqual(described, ("JPEG", "RGB", 3))
      self.assertEqual((one["height"], one["width"]), (24, 32))
      if not name.endswith(("_90.JPEG", "_91.JPEG")):
        self.assertEqual(one["encoded"], images[name])  # not a byte changed
    for name, original in (
      ("n01000003_90.JPEG", photograph(77)),
      ("n02000002_91.JPEG", photograph(78)),
    ):
      written = Image.open(io.BytesIO(found[name]["encoded"]))
      self.assertEqual((written.format, written.mode), ("JPEG", "RGB"))
      self.assertLess(mean_difference(written, original), 6)

  def assert_validation_written(self):
    found = read_canonical(self.output, "validation")
    self.assertCountEqual(found, self.validation)
    for name, one in found.items():
      synset = BY_ID[GROUND_TRUTH[int(name[15:23]) - 1]]
      self.assertEqual(one["class/synset"], synset)
      self.assertEqual(one["class/label"], 1 + ALPHABETICAL.index(synset))
      self.assertEqual(one["encoded"], self.validation[name])

  def test_archives(self):
    stdout, stderr = self.build(self.train_tar, self.validation_tar, self.kit)
    self.assert_train_written()
    self.assert_validation_written()
    self.assertCountEqual(
      os.listdir(self.output),
      [f"train-0000{k}-of-00003" for k in range(3)]
      + [f"validation-0000{k}-of-00002" for k in range(2)]
      + ["train.json", "validation.json"],
    )
    self.assertIn("15 images, of which 2 were encoded anew; 3 classes\n", stdout)
    self.assertIn("7 images; 3 classes\n", stdout)
    # Another size than the published archives' is a warning only.
    self.assertRegex(stderr, "Warning: .*img_train.tar is not the published .* bytes")
    self.assertRegex(stderr, "Warning: .*img_val.tar is not the published .* bytes")

  def test_a_second_run_does_nothing_and_warns_no_more(self):
    self.build(self.train_tar)
    stdout, stderr = self.build(self.train_tar)
    self.assertIn("all 15 images were there already", stdout)
    self.assertNotIn("Warning", stderr)

  def test_folders(self):
    for synset, images in self.train.items():
      for name, content in images.items():
        self.write(f"train/{synset}/{name}", content)
    for name, content in self.validation.items():
      self.write(f"val/{name}", content)
    self.write("train/readme.txt", "")
    self.build(self.path("train"), self.path("val"), self.kit)
    self.assert_train_written()
    self.assert_validation_written()

  def test_validation_in_synset_folders_needs_no_labels(self):
    for name, content in self.validation.items():
      synset = BY_ID[GROUND_TRUTH[int(name[15:23]) - 1]]
      self.write(f"val/{synset}/{name}", content)
    self.build(validation=self.path("val"))
    self.assert_validation_written()

  def test_another_seed_deals_otherwise(self):
    self.build(self.train_tar)
    first = [sorted(read_canonical(self.output, f"train-0000{k}")) for k in range(3)]
    self.output = self.path("other_seed")
    self.build(self.train_tar, None, None, "--seed=1")
    other = [sorted(read_canonical(self.output, f"train-0000{k}")) for k in range(3)]
    self.assertNotEqual(first, other)
    self.assert_train_written()

  @parameterized.named_parameters(
    ("synsets", "".join(f"{BY_ID[number]}\n" for number in GROUND_TRUTH)),
    (
      "kaggle",
      "ImageId,PredictionString\n"
      + "".join(
        f"ILSVRC2012_val_{n:08d},{BY_ID[GROUND_TRUTH[n - 1]]} 85 1 499 272"
        f"{' n02000002 1 2 3 4' if n == 2 else ' '}\n"
        for n in (7, 2, 1, 3, 4, 6, 5)
      ),
    ),
    ("windows", "\r\n".join(BY_ID[number] for number in GROUND_TRUTH)),
  )
  def test_validation_alone_with_lists(self, content):
    labels = self.write("labels.txt", content)
    self.build(validation=self.validation_tar, labels=labels)
    self.assert_validation_written()

  def test_ground_truth_numbers_need_the_kits_table(self):
    truth = "".join(f"{number}\n" for number in GROUND_TRUTH)
    labels = self.write("kit/ILSVRC2012_validation_ground_truth.txt", truth)
    with self.assertRaisesRegex(UserError, "own order, which is not the alphabetical"):
      self.build(validation=self.validation_tar, labels=labels)
    self.write("kit/meta.mat", meta_mat())
    self.build(validation=self.validation_tar, labels=labels)
    self.assert_validation_written()

  @unittest.skipUnless(
    importlib.util.find_spec("apache_beam"),
    "needs Apache Beam: pip install -e '.[beam]'",
  )
  def test_beam_writes_the_same_files(self):
    contents = []
    for options in ([], ["--runner=DirectRunner", "--", "--direct_num_workers=1"]):
      self.output += "_"
      stdout, _ = self.build(self.train_tar, None, None, *options)
      self.assertIn("15 images, of which 2 were encoded anew; 3 classes\n", stdout)
      contents.append({})
      for name in os.listdir(self.output):
        with open(os.path.join(self.output, name), "rb") as file:
          contents[-1][name] = file.read()
    self.assertLen(contents[0], 3 + 1)
    self.assertEqual(contents[0], contents[1])

  def assert_refused(self, pattern, *arguments):
    with self.assertRaisesRegex(UserError, pattern):
      self.build(*arguments)
    self.assertFalse(os.path.exists(self.output))

  def test_nothing_to_write(self):
    self.assert_refused("set --train, --validation or both")

  def test_validation_without_labels(self):
    self.assert_refused("needs --validation_labels", None, self.validation_tar)

  def test_bad_labels(self):
    arguments = None, self.validation_tar
    six = "".join(f"{BY_ID[number]}\n" for number in GROUND_TRUTH[:6])
    for content, pattern in (
      ("", "is no list of validation labels"),
      ("cat\n", "is no list of validation labels"),
      (six, "7 images and .* 6 labels; image 7 is in one of them only"),
      ("ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "line 2 names no image"),
      (b"\x1f\x8b" + bytes(100), "no whole archive"),
      (kit()[:-40], "no whole archive"),
    ):
      with self.subTest(pattern):
        self.assert_refused(pattern, *arguments, self.write("labels", content))

  def test_ids_that_the_kits_table_lacks(self):
    labels = self.write("kit/truth.txt", "1\n9\n")
    self.write("kit/meta.mat", meta_mat())
    self.assert_refused("line 2 of the ground truth", None, self.validation_tar, labels)
    self.write("kit/meta.mat", b"no mat")
    self.assert_refused("meta.mat cannot be read", None, self.validation_tar, labels)

  def test_train_and_validation_of_different_synsets(self):
    del self.train["n01000003"]
    self.write_archives()
    pattern = "--train has 2 synsets and --validation 3; n01000003 is in one of them"
    self.assert_refused(pattern, self.train_tar, self.validation_tar, self.kit)

  def test_wrong_archives(self):
    self.assert_refused(
      "holds ILSVRC2012_val_.* not one tar a synset", self.validation_tar
    )
    arguments = None, self.train_tar, self.kit
    self.assert_refused("holds n03000001.tar, which is not named as", *arguments)

  def test_truncated_archives(self):
    size = os.path.getsize(self.train_tar)
    for cut in (size - 20_000, 5 * 512, 512):
      os.truncate(self.train_tar, cut)
      self.assert_refused("is cut off or damaged", self.train_tar)

  def test_compressed_archive(self):
    self.assert_refused("is compressed", self.kit)

  def test_path_that_leads_out(self):
    self.train["n02000002"]["../../n02000002_1.JPEG"] = b""
    self.write_archives()
    pattern = "img_train.tar: n02000002.tar holds '../../n02000002_1.JPEG'"
    self.assert_refused(pattern, self.train_tar)

  def test_missing_source(self):
    self.assert_refused("cannot be read", self.path("none.tar"))

  def test_empty_folder(self):
    os.mkdir(self.path("empty"))
    self.assert_refused("empty holds no image of ILSVRC2012", self.path("empty"))

  def test_unreadable_image_is_named(self):
    whole = self.train["n02000002"]["n02000002_2.JPEG"]
    self.train["n02000002"]["n02000002_2.JPEG"] = whole[: len(whole) // 2]
    self.write_archives()
    pattern = r"img_train.tar: n02000002/n02000002_2.JPEG is no readable image \("
    with self.assertRaisesRegex(UserError, pattern):
      self.build(self.train_tar)
    self.assertEqual([n for n in os.listdir(self.output) if n[0] == "."], [])

  def test_more_files_than_images(self):
    arguments = self.train_tar, None, None, "--num_train_shards=16"
    self.assert_refused("15 images cannot fill 16 files", *arguments)


if __name__ == "__main__":
  tf.test.main()
