"""Archives: tars read in place, .npz files, pickles, and all that may be wrong."""

import gzip
import io
import os
import pickle
import resource
import tarfile
import zipfile

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.conversion import archives
from record_files import flip_byte


def tar_bytes(members, form=tarfile.GNU_FORMAT) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return buffer.getvalue()


class ReadMembersTest(tf.test.TestCase, parameterized.TestCase):
  def members(self, content, most=100):
    return archives.read_members(io.BytesIO(content), "a.tar", {"a", "b"}, most)

  def test_wanted_files_alone(self):
    members = [("x/a", b"1"), ("b", b""), ("c", b"3")]
    for content in (tar_bytes(members), gzip.compress(tar_bytes(members))):
      self.assertEqual(self.members(content), {"a": b"1", "b": b""})

  @parameterized.parameters(
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE
  )
  def test_no_notice_is_taken_of_others(self, kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
      info = tarfile.TarInfo("a")
      info.type, info.linkname = kind, "../../nowhere"
      tar.addfile(info)
    self.assertEqual(self.members(buffer.getvalue()), {})

  def test_what_unpacks_to_too_much(self):
    self.assertLen(self.members(tar_bytes([("a", bytes(100))]))["a"], 100)
    for members in ([("a", bytes(101))], [(f"c{i}", bytes(100)) for i in range(17)]):
      with self.assertRaisesRegex(UserError, "a.tar unpacks to more than 100 bytes"):
        self.members(tar_bytes(members))

  def test_a_sparse_file(self):
    # GNU's old form: 95 bytes that stand for 8 GiB.
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"00000000000\0" * 2
    head[483:495] = b"%011o\0" % (2**33 - 1)
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + sum(head[156:512]) + 8 * 32)
    with self.assertRaisesRegex(UserError, "unpacks to more than"):
      self.members(bytes(head) + bytes(1024))

  def test_read_at_most(self):
    self.assertEqual(archives.read_at_most(io.BytesIO(b"12").read, 2, "x"), b"12")
    with self.assertRaisesRegex(UserError, "x holds over 1 bytes"):
      archives.read_at_most(io.BytesIO(b"12").read, 1, "x")


class TarTest(tf.test.TestCase, parameterized.TestCase):
  def members(self, content, *part):
    file = io.BytesIO(content)
    return [
      (name, content[offset : offset + size])
      for name, offset, size in archives.tar_members(file, "a.tar", *part)
    ]

  @parameterized.parameters(tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
  def test_members_lie_where_it_says(self, form):
    # A name longer than a header's field has records of its own before the member.
    members = [("a/1.jpg", b"one"), ("b" * 150, b""), ("c.jpg", bytes(range(256)) * 5)]
    self.assertEqual(self.members(tar_bytes(members, form)), members)

  def test_a_tar_within_a_tar(self):
    inner = [("x.JPEG", b"xx"), ("y.JPEG", b"y" * 513)]
    outer = tar_bytes([("1.tar", tar_bytes(inner)), ("2.tar", tar_bytes(inner[:1]))])
    file = io.BytesIO(outer)
    found = [
      (member.name, outer[member.offset : member.offset + member.size])
      for tar in archives.tar_members(file, "outer")
      for member in archives.tar_members(file, tar.name, tar.offset, tar.size)
    ]
    self.assertEqual(found, [*inner, inner[0]])

  def test_folders_are_passed_over(self):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
      folder = tarfile.TarInfo("a")
      folder.type = tarfile.DIRTYPE
      tar.addfile(folder)
    self.assertEqual(self.members(buffer.getvalue()), [])

  def test_truncated_anywhere(self):
    # Header and content of each member, and the zeros: 1,024 + 1,024 + at least 1,024.
    whole = tar_bytes([("a", b"a" * 100), ("b", b"b" * 512)])
    self.assertLen(self.members(whole[: 2048 + 512]), 2)  # one block of zeros ends it
    for size in (2048 + 511, 2048, 2047, 1600, 1536, 1535, 1100, 1024, 1023, 600, 512):
      with self.subTest(size=size):
        with self.assertRaisesRegex(UserError, "a.tar is cut off or damaged"):
          self.members(whole[:size])

  def test_inner_tar_truncated_between_two_members(self):
    # What follows it in the outer tar is a good header, which is not the inner tar's.
    cut = tar_bytes([("x", b"x"), ("y", b"y")])[:1024]
    outer = tar_bytes([("1.tar", cut), ("2.tar", cut)])
    with self.assertRaisesRegex(UserError, "cut off or damaged"):
      self.members(outer, 512, 1024)

  def test_damaged_header(self):
    content = bytearray(tar_bytes([("a", b"a"), ("b", b"b")]))
    content[1024 + 5] ^= 1
    with self.assertRaisesRegex(UserError, "cut off or damaged"):
      self.members(bytes(content))

  def test_compressed(self):
    with self.assertRaisesRegex(UserError, "a.tar is compressed.*gunzip"):
      self.members(b"\x1f\x8b" + bytes(1000))

  @parameterized.parameters(b"", b"no tar", b"\xff" * 2000)
  def test_no_tar(self, content):
    with self.assertRaisesRegex(UserError, "a.tar is no tar archive"):
      self.members(content)

  @parameterized.parameters("/etc/passwd", "../a", "a/../../b", "a/..")
  def test_paths_that_lead_out(self, name):
    with self.assertRaisesRegex(UserError, f"'{name}', a path that leads out"):
      self.members(tar_bytes([("good", b""), (name, b"")]))

  @parameterized.parameters(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
  def test_links_and_devices(self, kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
      link = tarfile.TarInfo("a.jpg")
      link.type, link.linkname = kind, "b.jpg"
      tar.addfile(link)
    with self.assertRaisesRegex(UserError, "a.jpg is a link"):
      self.members(buffer.getvalue())


class NpzTest(tf.test.TestCase, parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.get_temp_dir(), "a.npz")
    rng = np.random.default_rng(0)
    self.images = rng.integers(0, 256, (5, 4, 3, 3), np.uint8)
    self.labels = np.arange(5)

  def open(self):
    return archives.open_npz(self.path, "image", "label")

  def test_uncompressed_images_are_found_in_place(self):
    np.savez(self.path, label=self.labels, image=self.images, other=np.ones(3))
    arrays = self.open()
    self.assertCountEqual(arrays, ["image", "label"])
    found = arrays["image"]
    self.assertIsInstance(found, archives.ArrayInFile)
    with open(self.path, "rb") as file:
      content = file.read()[found.offset : found.offset + self.images.size]
    self.assertEqual(content, self.images.tobytes())
    self.assertEqual(found.shape, self.images.shape)
    self.assertAllEqual(arrays["label"], self.labels)

  def test_from_an_object_store(self):
    np.savez(self.path, image=self.images)
    tf.io.gfile.copy(self.path, "ram://npz/a.npz", overwrite=True)
    here = self.open()["image"]
    there = archives.open_npz("ram://npz/a.npz", "image")["image"]
    self.assertEqual(there, here._replace(path="ram://npz/a.npz"))

  def test_what_cannot_be_read_in_place_is_read(self):
    np.savez_compressed(self.path, image=self.images)
    self.assertAllEqual(self.open()["image"], self.images)
    np.savez(self.path, image=np.asfortranarray(self.images))
    self.assertAllEqual(self.open()["image"], self.images)

  def test_objects_are_refused(self):
    np.savez(self.path, image=np.array([{}, None], dtype=object))
    with self.assertRaisesRegex(UserError, "no whole .npz file of plain arrays"):
      self.open()

  def test_truncated_or_no_npz(self):
    np.savez(self.path, image=self.images)
    with open(self.path, "r+b") as file:
      file.truncate(os.path.getsize(self.path) - 30)
    with self.assertRaisesRegex(UserError, "no whole .npz file"):
      self.open()

  def test_array_shorter_than_its_head_says(self):
    buffer = io.BytesIO()
    np.save(buffer, self.images)
    with zipfile.ZipFile(self.path, "w") as archive:
      archive.writestr("image.npy", buffer.getvalue()[:-1])
    with self.assertRaisesRegex(UserError, "another length"):
      self.open()

  def test_missing_file(self):
    with self.assertRaisesRegex(UserError, "a.npz cannot be read .*No such file"):
      self.open()

  def test_compressed_content_damaged(self):
    np.savez_compressed(self.path, image=np.zeros((9, 99, 99, 3), np.uint8))
    flip_byte(self.path, 200)
    with self.assertRaisesRegex(UserError, "no whole .npz file|cannot be read"):
      self.open()

  def test_each_flipped_byte_of_an_array_is_noticed(self):
    for save in (np.savez, np.savez_compressed):
      save(self.path, image=self.images)
      with zipfile.ZipFile(self.path) as archive:
        start = 30 + len("image.npy") + archive.getinfo("image.npy").compress_size
      for place in range(start - 60, start - 20):
        flip_byte(self.path, place)
        with self.assertRaisesRegex(UserError, "no whole .npz file"):
          self.open()
        flip_byte(self.path, place)
      self.open()

  def test_an_array_that_grows_without_measure(self):
    size = 101 * 2**20
    with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as archive:
      archive.writestr("image.npy", bytes(size))
    with self.assertRaisesRegex(UserError, "unpacks from .* to 105,906,176 bytes"):
      self.open()


class Payload:
  """Would make a file if a pickle of it were loaded as usual."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def load(content: bytes):
  return archives.load_pickled_arrays(io.BytesIO(content), "a.pickle")


class PickleTest(tf.test.TestCase, parameterized.TestCase):
  def test_a_number_that_would_fill_the_memory(self):
    # PROTO 2, EMPTY_DICT, LONG_BINPUT 2^31 - 1, STOP
    self.assertEqual(load(b"\x80\x02}r\xff\xff\xff\x7f."), {})
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    self.assertLess(usage, 2**22)

  def setUp(self):
    super().setUp()
    self.arrays = {
      "data": np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8),
      "extrapolated_targets": np.array([3, 1, 255]),
      "columns": np.asfortranarray(np.arange(6.0, dtype=">f4").reshape(2, 3)),
    }

  @parameterized.product(
    protocol=list(range(pickle.HIGHEST_PROTOCOL + 1)), core=["core", "_core"]
  )
  def test_arrays_of_every_protocol_and_numpy(self, protocol, core):
    content = pickle.dumps(self.arrays, protocol)
    if core == "_core":  # NumPy 2's name, longer by one.
      if protocol >= 4:  # Without the frame, whose length would be wrong.
        content = content[:2] + content[11:]
      for module in (b"multiarray", b"numeric"):
        old, new = b"numpy.core." + module, b"numpy._core." + module
        lengths = bytes([len(old)]), bytes([len(new)])
        content = content.replace(lengths[0] + old, lengths[1] + new)
        content = content.replace(b"c" + old, b"c" + new)
      self.assertNotIn(b"numpy.core", content)
    loaded = load(content)
    self.assertCountEqual(loaded, self.arrays)
    for name, array in self.arrays.items():
      self.assertAllEqual(loaded[name], array)
      self.assertEqual(loaded[name].dtype, array.dtype)

  def test_arrays_of_python_2(self):
    # As Python 2.7 writes {'data': numpy.array([[1, 200]], 'u1'), 'labels': [7]}:
    # byte strings where Python 3 has text and bytes.
    content = (
      b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
      b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01K\x02\x86cnumpy\n"
      b"dtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xff"
      b"J\xff\xff\xff\xffK\x00tb\x89U\x02\x01\xc8tbU\x06labelsq\x08]q\x09K\x07au."
    )
    loaded = load(content)
    self.assertAllEqual(loaded["data"], np.array([[1, 200]], np.uint8))
    self.assertEqual(loaded["labels"], [7])

  @parameterized.parameters(range(pickle.HIGHEST_PROTOCOL + 1))
  def test_anything_else_is_refused_by_name_and_does_not_run(self, protocol):
    path = os.path.join(self.get_temp_dir(), "made")
    self.arrays["extra"] = Payload(path)
    with self.assertRaisesRegex(UserError, "a.pickle is refused .*posix.mkdir"):
      load(pickle.dumps(self.arrays, protocol))
    self.assertFalse(os.path.exists(path))

  @parameterized.parameters(
    (b"cbuiltins\neval\n(V1\ntR.", "builtins.eval"),
    (b"c__builtin__\neval\n(V1\ntR.", "__builtin__.eval"),
    (b"cnumpy\nload\n(V/etc/passwd\ntR.", "numpy.load"),
    (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
    (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", "numpy.ndarray.__init__"),
    (b"(inumpy\nsave\n.", "numpy.save"),
    (b"c_codecs\nencode\n(Va\nVrot13\ntR.", "rot13"),
    (b"cnumpy\ndtype\n(VO\ntR.", "type 'O'"),
    (b"P1\n.", "persistent"),
  )
  def test_opcodes_that_reach_further(self, content, name):
    with self.assertRaisesRegex(UserError, f"refused .*{name}"):
      load(content)

  def test_arrays_of_objects_and_lengths_that_lie(self):
    with self.assertRaisesRegex(UserError, "refused .*type 'O8?'"):
      load(pickle.dumps({"data": np.array([{}], dtype=object)}))
    content = pickle.dumps({"data": np.zeros(5, np.uint8)}, 2)
    with self.assertRaisesRegex(UserError, "refused"):
      load(content.replace(b"K\x05\x85", b"K\x07\x85"))

  def test_truncated(self):
    content = pickle.dumps(self.arrays)
    for size in (0, 1, 50, len(content) - 1):
      with self.assertRaisesRegex(UserError, "refused"):
        load(content[:size])

  def test_no_dictionary(self):
    with self.assertRaisesRegex(UserError, "holds a list"):
      load(pickle.dumps([1]))


if __name__ == "__main__":
  tf.test.main()
