"""Inputs as a stranger may give them, and the functions at the border that take them.

A target writes an input below a folder, `in/`, and gives it to a function of the
package or of tfrecords/, which may write below `out/`. What a function should do is
known of each: refuse by a `UserError`, or take it; `AcceptedBroken` says that it took
what is broken: a content whose checksum does not hold.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import io
import os
import pathlib
import pickle
import random
import struct
import sys
import tarfile
import types
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags
from fuzz_mutations import (
  AcceptedBroken,
  Random,
  as_text,
  flag_lines,
  framed,
  mutated,
  odd_json,
  write,
)
from fuzz_runs import run_directory
from PIL import Image

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError, shown
from dat_tf.conversion import convert as conversion
from dat_tf.data import framing, records, shards, writing
from dat_tf.workers import peers
from dat_tf.workers.cluster import Cluster

ROOT = pathlib.Path(__file__).resolve().parent.parent


@functools.cache
def builder(name: str) -> types.ModuleType:
  """A program of tfrecords/ as a module; its flags, of which each has its own, go."""
  spec = importlib.util.spec_from_file_location(name, ROOT / "tfrecords" / f"{name}.py")
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  before = set(flags.FLAGS)
  spec.loader.exec_module(module)
  for flag in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, flag)
  return module


# --- flags and the cluster


def tf_config(rng: Random, folder: pathlib.Path) -> None:
  good = {
    "cluster": {"worker": ["a:1", "10.0.0.1:2222", "[::1]:22"], "chief": ["c:3"]},
    "task": {"type": "worker", "index": rng.choice([0, 1, 2, "1"])},
  }
  text = as_text(rng, odd_json(rng, good) if rng.random() < 0.8 else good)
  cluster = Cluster.from_environment({"TF_CONFIG": text.decode("utf-8", "replace")})
  for address in cluster.addresses:
    if not 0 < int(address.rpartition(":")[2]) < 2**16:
      raise AcceptedBroken(address)


def greeting(rng: Random, folder: pathlib.Path) -> None:
  addresses = ["a:1", "b:2"]
  answer = b"dat-tf " + as_text(rng, odd_json(rng, [addresses, 1]))
  peers._check(answer, addresses, 0, 1)


def flagfile(rng: Random, folder: pathlib.Path) -> None:
  path = str(folder / "in" / "a.flags")
  write(folder, "a.flags", flag_lines(rng, path))
  spelling = rng.choice([[f"--flagfile={path}"], ["-flagfile", path]])
  own = ["--model_dir=m", "--epochs=7"]
  words = [*spelling, *own] if rng.random() < 0.5 else [*own, *spelling]
  config = config_lib.parse(["run_dat.py", *words])
  if config.epochs != 7:
    raise AcceptedBroken("the flagfile beats the command line")


def settings(rng: Random, folder: pathlib.Path) -> None:
  words = ["", "--mode=report", f"--model_dir={folder / 'in'}", "--epsilon=0.1"]
  config_lib.save(config_lib.parse(words))
  path = folder / "in" / "config.flags"
  path.write_bytes(mutated(rng, path.read_bytes()))
  config_lib.load(str(folder / "in"))


# --- records


@functools.cache
def _images() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)


def _encoded(rng: Random) -> bytes:
  buffer = io.BytesIO()
  image = Image.fromarray(_images()[rng.randrange(4)])
  image.save(buffer, rng.choice(["png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm"]))
  return buffer.getvalue()


def _record(rng: Random, number: int) -> bytes:
  """A serialized record, whole or with features of odd types and numbers."""
  import tensorflow as tf

  image, label = _images()[number], number % 2
  if rng.random() < 0.5:
    return writing.image_example(image, label)
  example = tf.train.Example()
  feature = example.features.feature
  names = rng.choice([("image", "label"), ("image/encoded", "image/class/label")])
  if rng.random() < 0.3:
    names = ("image/raw", "label")
    shape = [rng.choice([6, 5, 3, -1, 0, 2**40, 2**62]) for _ in range(3)]
    feature["image/shape"].int64_list.value.extend(shape)
  content = _encoded(rng)
  feature[names[0]].bytes_list.value.append(
    mutated(rng, content) if rng.random() < 0.5 else content
  )
  kind = rng.randrange(6)
  if kind == 0:
    feature[names[1]].float_list.value.append(label)
  elif kind == 1:
    feature[names[1]].bytes_list.value.append(b"1")
  elif kind == 2:
    feature[names[1]].int64_list.value.extend([2**62, -(2**62)][: rng.randrange(3)])
  else:
    feature[names[1]].int64_list.value.append(label + 1)
  return example.SerializeToString()


def tfrecords(rng: Random, folder: pathlib.Path) -> None:
  made = [_record(rng, number) for number in range(rng.randrange(1, 4))]
  whole = b"".join(map(framed, made))
  damaged = rng.random() < 0.6
  content = mutated(rng, whole) if damaged else whole
  if rng.random() < 0.2:  # a length with a right checksum
    head = struct.pack("<Q", rng.choice([2**36, 2**62, 2**63, 2**64 - 1, 2**20]))
    content += head + struct.pack("<I", framing._masked_crc32c(head)) + b"rest"
  path = write(folder, "a", content)
  skip = rng.random() < 0.5
  shard = shards.shard_files([path], 0, 1, skip_bad_records=skip)
  form = records.detect_form(
    path, needs_label=rng.random() < 0.5, skip_bad_records=skip
  )
  shape = records.first_image_shape(path, form, skip_bad_records=skip)
  records.has_labels(path, form, skip_bad_records=skip)
  wrong = records.explain_data_error([path], form, shape, 10, skip_bad_records=skip)
  if wrong is not None:
    raise UserError(wrong)
  if not skip and content != whole and shard.num_examples == len(made):
    found = list(framing.read_while_good(path))
    if found != made:
      raise AcceptedBroken("records that fail their checksums")


# --- archives and folders


def idx(rng: Random, folder: pathlib.Path) -> None:
  pixels = _images()[..., 0]
  content = bytes([0, 0, 8, 3]) + struct.pack(">3I", *pixels.shape) + pixels.tobytes()
  packed = rng.random() < 0.5
  if rng.random() < 0.1:
    content += bytes(2**26)
  damaged = mutated(rng, content)
  if packed:
    damaged = mutated(rng, gzip.compress(content))
  write(folder, "x.gz" if packed else "x", damaged)
  module = builder("build_fashion_mnist")
  found = module.read_idx(str(folder / "in"), "x", 3)
  if packed and not np.array_equal(found, pixels):
    raise AcceptedBroken("gzip's checksum")


def _tar(rng: Random, files: dict[str, bytes]) -> bytes:
  """A tar of files and, sometimes, of what no archive should hold."""
  buffer = io.BytesIO()
  form = rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
  kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
  with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      kind = rng.randrange(30)
      if kind < 4:
        info.name = rng.choice(["/tmp/evil.png", "../../evil.png", "a/../../evil.png"])
      elif kind < 8:
        info.type, info.size = kinds[kind - 4], 0
        info.linkname = rng.choice(["/etc/passwd", "../../evil", name, "nowhere"])
      tar.addfile(info, io.BytesIO(content) if info.size else None)
  content = buffer.getvalue()
  return mutated(rng, content) if rng.random() < 0.6 else content


def _converted(source: str, folder: pathlib.Path) -> list[bytes]:
  """What build_unlabeled writes of a source."""
  list_source = builder("build_unlabeled").list_source
  items, make_record, made_of = list_source(source, drop_labels=False)
  count = min(2, len(items))
  out = str(folder / "out")
  conversion.convert(
    items, make_record, out, "unlabeled", num_shards=count, settings=made_of
  )
  paths = writing.present_shards(out, "unlabeled")
  return [record for path in paths for record in framing.read_while_good(path)]


def tar(rng: Random, folder: pathlib.Path) -> None:
  files = {f"d/{number}.png": _encoded(rng) for number in range(3)}
  _converted(write(folder, "a.tar", _tar(rng, files)), folder)


def cifar(rng: Random, folder: pathlib.Path) -> None:
  names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
  kind = rng.randrange(2)
  rows = np.random.default_rng(0).integers(0, 10, (2, 3073), np.uint8)
  batch = {"data": rows[:, 1:], "labels": rows[:, 0].tolist()}
  content = rows.tobytes() if kind else pickle.dumps(batch, rng.choice([0, 2, 4]))
  suffix = ".bin" if kind else ""
  packed = rng.random() < 0.5
  archive = _tar(rng, {f"c/{name}{suffix}": content for name in names})
  if packed:
    archive = gzip.compress(archive)
    archive = mutated(rng, archive) if rng.random() < 0.5 else archive
  builder("build_cifar10").images_from_files(write(folder, "c.tar.gz", archive))


def npz(rng: Random, folder: pathlib.Path) -> None:
  buffer = io.BytesIO()
  save = rng.choice([np.savez, np.savez_compressed])
  labels = np.arange(4) if rng.random() < 0.5 else np.zeros(3)
  save(buffer, image=_images(), label=labels)
  content = buffer.getvalue()
  if rng.random() < 0.1:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
      archive.writestr("image.npy", bytes(2**28))
    content = buffer.getvalue()
  damaged = mutated(rng, content)
  found = _converted(write(folder, "a.npz", damaged), folder)
  pixels = {_pixels(record) for record in found}
  if pixels - {image.tobytes() for image in _images()}:
    raise AcceptedBroken("zip's checksum")


def _pixels(record: bytes) -> bytes:
  import tensorflow as tf

  features = tf.train.Example.FromString(record).features.feature
  return features["image/raw"].bytes_list.value[0]


class _Runs:
  """What a pickle of it would run."""

  def __init__(self, path: str):
    self.path = path

  def __reduce__(self) -> Any:
    return os.mkdir, (self.path,)


def pickled(rng: Random, folder: pathlib.Path) -> None:
  arrays: dict[Any, Any] = {"data": _images(), "extrapolated_targets": np.arange(4)}
  evil = rng.random() < 0.2
  if evil:
    arrays["x"] = _Runs(str(folder / "evil"))
  content = pickle.dumps(arrays, rng.choice([0, 2, 4, 5]))
  if rng.random() < 0.8:
    content = mutated(rng, content)
  if rng.random() < 0.1:
    content = b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + content[2:]
  _converted(write(folder, "a.pickle", content), folder)


def images(rng: Random, folder: pathlib.Path) -> None:
  root = folder / "in"
  for name in ("a", "b"):
    for number in range(2):
      content = _encoded(rng)
      content = mutated(rng, content) if rng.random() < 0.3 else content
      extension = rng.choice(["png", "jpg", "gif", "tif", "avif", ""])
      write(folder, f"{name}/{number}.{extension}", content)
  kind = rng.randrange(8)
  if kind == 0:
    os.mkfifo(root / "a" / "pipe.png")
  elif kind == 1:
    os.symlink(rng.choice(["/dev/zero", "..", ".", "nowhere"]), root / "a" / "x.png")
  elif kind == 2:
    os.mkdir(os.fsencode(root) + rng.choice([b"/\xe4", b"/a\nb", b"/\x1b[2J"]))
  elif kind == 3:
    header = struct.pack(">2I5B", 13_000, 13_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(13_000 * 1626), 9)
    png = b"\x89PNG\r\n\x1a\n"
    for part in (b"IHDR" + header, b"IDAT" + rows, b"IEND"):
      png += struct.pack(">I", len(part) - 4) + part
      png += struct.pack(">I", zlib.crc32(part))
    write(folder, "a/huge.png", png)
  module = builder("build_folder")
  classes, splits = module.list_splits(str(root), 0.3, 0)
  make = functools.partial(conversion.encoded_record, class_names=classes)
  for split, items in splits.items():
    out = str(folder / "out")
    skip = rng.random() < 0.5
    conversion.convert(items, make, out, split, num_shards=1, skip_bad_images=skip)


def imagenet_labels(rng: Random, folder: pathlib.Path) -> None:
  synsets = b"n01440764\nn01443537\n"
  rows = b"ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n"
  kit = _tar(
    rng,
    {
      "d/meta.mat": b"MATLAB 5.0",
      "d/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n",
    },
  )
  content = rng.choice([synsets, rows, b"1\n2\n", gzip.compress(kit)])
  content = mutated(rng, content) if rng.random() < 0.8 else content
  builder("build_imagenet").read_labels(write(folder, "labels", content))


def message(rng: Random, folder: pathlib.Path) -> None:
  """What is said of any text is one short line."""
  text = bytes(rng.randrange(256) for _ in range(99))
  line = shown(UserError(text.decode("utf-8", "surrogateescape") * rng.choice([1, 50])))
  if len(line) > 620 or not line.isprintable():
    raise AcceptedBroken(line)


TARGETS: dict[str, Callable[[Random, pathlib.Path], None]] = {
  target.__name__: target
  for target in (
    tf_config,
    greeting,
    flagfile,
    settings,
    tfrecords,
    idx,
    tar,
    cifar,
    npz,
    pickled,
    images,
    imagenet_labels,
    run_directory,
    message,
  )
}


def outside(folder: pathlib.Path) -> list[str]:
  """What was written elsewhere than below `in` and `out`: beside them, or in /tmp."""
  beside = [
    *folder.iterdir(),
    *folder.parent.glob("evil*"),
    *folder.glob("../../evil*"),
  ]
  found = [str(path) for path in beside if path.name not in ("in", "out", "a", "b")]
  return found + [str(path) for path in pathlib.Path("/tmp").glob("evil*")]


def run_one(name: str, seed: int, folder: pathlib.Path) -> str:
  """The verdict on one input: accepted, refused, or what went wrong."""
  (folder / "in").mkdir(parents=True)
  try:
    TARGETS[name](random.Random(f"{name} {seed}"), folder)
  except UserError as error:
    return "refused" if len(shown(error)) < 700 else "traceback: a long message"
  except AcceptedBroken as error:
    return f"accepted_broken: {error}"
  except Exception as error:  # which is what is looked for
    return f"traceback: {type(error).__name__}: {str(error)[:300]}"
  finally:
    sys.stdout.flush()
  return "accepted"
