"""The converter of unlabelled images."""

import io
import os
import pickle
import tarfile

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from builders import call, encode, photograph, read, read_canonical, records
from dat_tf.base.errors import UserError


class UnlabeledTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.get_temp_dir()
    self.output = self.path("out")
    rng = np.random.default_rng(0)
    self.images = rng.integers(0, 256, (9, 32, 32, 3), np.uint8)
    self.labels = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5])

  def path(self, name):
    return os.path.join(self.folder, name)

  def write(self, name, content):
    os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
    with open(self.path(name), "wb") as file:
      file.write(content)
    return self.path(name)

  def build(self, source, *arguments):
    arguments = (f"--output_dir={self.output}", "--num_shards=2", *arguments)
    return call("build_unlabeled", f"--source={self.path(source)}", *arguments)

  def assert_written(self, labels):
    written, written_labels = read(self.output, "unlabeled")
    self.assertLen(written, len(self.images))
    self.assertEqual(
      {image.tobytes(): label for image, label in zip(written, written_labels)},
      {image.tobytes(): label for image, label in zip(self.images, labels)},
    )

  def assert_no_labels(self):
    for record in records(self.output, "unlabeled"):
      features = tf.train.Example.FromString(record).features.feature
      self.assertEmpty(
        [name for name in features if "label" in name or "class" in name]
      )

  def test_folder(self):
    contents = {
      name: encode(photograph(number), form)
      for number, (name, form) in enumerate(
        (
          ("a.jpg", "JPEG"),
          ("b/b.png", "PNG"),
          ("b/c/d.JPEG", "JPEG"),
          ("e.webp", "WEBP"),
        )
      )
    }
    for name, content in contents.items():
      self.write(f"source/{name}", content)
    self.write("source/b/readme.txt", b"")
    stdout, _ = self.build("source")
    self.assertIn("4 images, of which 1 were encoded anew", stdout)
    found = read_canonical(self.output, "unlabeled")
    self.assertCountEqual(found, map(os.path.basename, contents))
    for name, content in contents.items():
      if not name.endswith("webp"):
        self.assertEqual(found[os.path.basename(name)]["encoded"], content)
    self.assertEqual(found["e.webp"]["format"], "PNG")
    self.assert_no_labels()

  def write_tar(self, name, members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
      for member, content in members.items():
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return self.write(name, buffer.getvalue())

  def test_webdataset_tars(self):
    contents = {}
    for shard in range(3):
      members = {}
      for number in range(3 * shard, 3 * shard + 3):
        extension = (".jpg", ".png", ".jpeg")[shard]
        image = encode(photograph(number), "PNG" if shard == 1 else "JPEG")
        members[f"{number:06d}{extension}"] = image
        members[f"{number:06d}.json"] = b"{}"
        members[f"{number:06d}.cls"] = b"7"
      self.write_tar(f"shards/{shard:05d}.tar", members)
      contents |= members
    self.write_tar("shards/other.tar", {"x.jpg": b"not matched"})
    self.build("shards/0000[0-9].tar")
    images = {
      name: c for name, c in contents.items() if name[-4:] not in ("json", ".cls")
    }
    found = read_canonical(self.output, "unlabeled")
    self.assertEqual({name: one["encoded"] for name, one in found.items()}, images)
    self.assert_no_labels()

  @parameterized.product(save=[np.savez, np.savez_compressed], drop=[False, True])
  def test_npz(self, save, drop):
    save(self.path("a.npz"), image=self.images, label=self.labels)
    self.build("a.npz", *(["--drop_labels"] if drop else []))
    self.assert_written([-1] * 9 if drop else self.labels)
    if drop:
      self.assert_no_labels()

  def test_npz_without_labels(self):
    np.savez(self.path("a.npz"), image=self.images)
    self.build("a.npz")
    self.assert_written([-1] * 9)
    self.assert_no_labels()

  @parameterized.product(protocol=[2, 4], drop=[False, True])
  def test_tiny_images_pickle(self, protocol, drop):
    content = {"data": self.images, "extrapolated_targets": self.labels}
    self.write("ti_500K_pseudo_labeled.pickle", pickle.dumps(content, protocol))
    arguments = ["--drop_labels"] if drop else []
    self.build("ti_500K_pseudo_labeled.pickle", *arguments)
    self.assert_written([-1] * 9 if drop else self.labels)

  def test_other_pixels_are_another_set(self):
    for images in (self.images, self.images[::-1]):
      np.savez_compressed(self.path("a.npz"), image=images)
      if images is self.images:
        self.build("a.npz")
    with self.assertRaisesRegex(UserError, r"of other images .*sha256_of_pixels"):
      self.build("a.npz")

  def assert_refused(self, pattern, source, *arguments):
    with self.assertRaisesRegex(UserError, pattern):
      self.build(source, *arguments)
    self.assertFalse(os.path.exists(self.output))

  def test_a_pickle_of_anything_else(self):
    made = self.path("made")

    class Payload:
      def __reduce__(self):
        return os.mkdir, (made,)

    content = {"data": self.images, "extra": Payload()}
    self.write("a.pickle", pickle.dumps(content))
    self.assert_refused("a.pickle is refused .*posix.mkdir", "a.pickle")
    self.assertFalse(os.path.exists(made))

  def test_bad_arrays(self):
    for content, pattern in (
      ({"images": self.images}, "no 'image' of uint8"),
      ({"image": self.images / 255}, "no 'image' of uint8"),
      ({"image": self.images[0]}, "no 'image' of uint8"),
      ({"image": self.images[..., :2]}, "no 'image' of uint8"),
      (
        {"image": self.images, "label": self.labels[1:]},
        r"'label' is not as many .*\(9\)",
      ),
      ({"image": self.images, "label": self.labels / 10}, "'label' is not as many"),
      ({"image": self.images[:0]}, "a.npz holds no image"),
      (
        {"image": self.images, "label": 0 * self.labels - 1},
        "no 'label' is 0 or above",
      ),
    ):
      with self.subTest(pattern):
        np.savez(self.path("a.npz"), **content)
        self.assert_refused(pattern, "a.npz")

  def test_bad_sources(self):
    self.write("a.txt", b"")
    self.assert_refused("a.txt is no folder, .tar, .npz or .pickle", "a.txt")
    os.mkdir(self.path("empty"))
    self.assert_refused("empty holds no image", "empty")
    self.assert_refused(r"No file matches .*none\*.tar", "none*.tar")
    self.assert_refused("none.npz cannot be read .*No such file", "none.npz")
    self.assert_refused("none.pickle cannot be read .*No such file", "none.pickle")
    self.write_tar("texts.tar", {"a.txt": b""})
    self.assert_refused("texts.tar holds no image", "texts.tar")

  def test_bad_tars(self):
    path = self.write_tar("a.tar", {"a.jpg": encode(photograph(0))})
    os.truncate(path, 1024)
    self.assert_refused("a.tar is cut off or damaged", "a.tar")
    self.write_tar("a.tar", {"/a.jpg": b""})
    self.assert_refused("a.tar holds '/a.jpg', a path that leads out", "a.tar")
    self.write("a.tar.gz", b"\x1f\x8b")
    self.assert_refused("a.tar.gz is compressed", "a.tar.gz")


if __name__ == "__main__":
  tf.test.main()
