"""Reading through a tf.data service, against reading without one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.base.errors import UserError
from dat_tf.data import augment, pipeline, records, service, shards, writing
from dat_tf.program.run import Run

SHAPE = (6, 5, 3)
SIZES = (7, 3, 9, 4, 6)


@contextlib.contextmanager
def running(*arguments):
  """The command, from its first line on; it must end well at SIGTERM."""
  command = [sys.executable, "-m", "dat_tf.data.service", *arguments]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0, process.returncode
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


def said_address(process) -> str:
  return process.stdout.readline().split()[-1]


def unused_port() -> int:
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


class ServiceTest(tf.test.TestCase, parameterized.TestCase):
  def shard(self) -> shards.Shard:
    directory = self.get_temp_dir()
    rng = np.random.default_rng(0)
    for file, size in enumerate(SIZES):
      with tf.io.TFRecordWriter(os.path.join(directory, f"part-{file}")) as writer:
        for record in range(size):
          image = rng.integers(0, 256, SHAPE, np.uint8)
          writer.write(writing.image_example(image, (file + record) % 10))
    return shards.shard_files(records.match_files(f"{directory}/part-*"), 0, 1)

  def examples(self, shard, address, epochs=2, batches=4, size=None, **kwargs) -> dict:
    """(epoch, example_id, weight) -> [(image, label)], and epochs in order."""
    crop = augment.RandomResizedCrop(size) if size else augment.PadCropFlip(2)
    shape = (size, size, SHAPE[-1]) if size else SHAPE
    dataset = pipeline.training_dataset(
      shard,
      pipeline.Reading(records.DAT, shape, num_classes=10, augmentation=crop, seed=3),
      batch_size=8,
      batches_per_epoch=batches,
      first_epoch=0,
      last_epoch=epochs,
      data_service=address,
      **{"shuffle_buffer": 5, **kwargs},
    )
    found: dict = {}
    order = []
    for batch in dataset.as_numpy_iterator():
      self.assertEqual(batch["image"].shape, (8, *shape))
      order += [int(epoch) for epoch in batch["epoch"]]
      for image, label, weight, number, epoch in zip(
        *(batch[key] for key in ("image", "label", "weight", "example_id", "epoch"))
      ):
        found.setdefault((epoch, number, weight), []).append((image, label))
    return {"examples": found, "epochs": order}

  def test_every_example_once_an_epoch_and_augmented_as_without(self):
    shard = self.shard()
    self.assertEqual(shard.num_examples, 29)  # Of 4 * 8 places.
    with running("--port=0", "--num_workers=2") as process:
      address = said_address(process)
      for settings in ({}, {"shuffle_buffer": 0}, {"size": 4}):
        alone = self.examples(shard, None, **settings)
        served = self.examples(shard, address, **settings)
        self.assertEqual(served["epochs"], [0] * 32 + [1] * 32)
        self.assertEqual(alone["epochs"], served["epochs"])
        self.assertCountEqual(alone["examples"], served["examples"])
        for key, expected in alone["examples"].items():
          found = served["examples"][key]
          self.assertLen(found, len(expected))
          if key[2] == 1:
            self.assertLen(found, 1)
          # Half a level is lost where pixels are between levels, and nothing else.
          lost = 0.501 / 255 if settings.get("size") else 0.0
          self.assertAllClose(found[0][0], expected[0][0], rtol=0, atol=lost)
          self.assertEqual(found[0][1], expected[0][1])

  def test_a_service_that_was_started_elsewhere_finds_relative_paths(self):
    self.shard()
    here = os.getcwd()
    with running("--port=0") as process:
      address = said_address(process)
      self.addCleanup(os.chdir, here)
      os.chdir(self.get_temp_dir())
      shard = shards.shard_files(records.match_files("part-*"), 0, 1)
      served = self.examples(shard, address, epochs=1)
      self.assertLen([k for k in served["examples"] if k[2] == 1], 29)

  def test_a_service_that_does_not_see_the_files(self):
    shard = self.shard()
    with running("--port=0") as process:
      address = said_address(process)
      for piece in shard.slices:
        os.rename(piece.path, f"{piece.path}.away")
      run = mock.Mock()
      run.config.data_service = address
      expected = f"--data_service={address}: its workers do not find the data .*paths"
      with self.assertRaisesRegex(UserError, expected):
        with Run.explained_errors(run):
          self.examples(shard, address, epochs=1)

  def test_workers_added_to_a_dispatcher(self):
    shard = self.shard()
    with running("--port=0", "--num_workers=0") as dispatcher:
      address = said_address(dispatcher)
      with running(f"--dispatcher={address}") as first:
        said_address(first)
        with running(f"--dispatcher={address}") as second:
          said_address(second)
          served = self.examples(shard, address, epochs=1)
          self.assertLen([k for k in served["examples"] if k[2] == 1], 29)

  def test_proxies_are_passed_by(self):
    code = """
import sys
import tensorflow as tf
from dat_tf.data import service
print(len(list(service.distribute(tf.data.Dataset.range(7), sys.argv[1]))))
"""
    # Nobody listens there.
    proxy = f"http://127.0.0.1:{unused_port()}"
    proxies = dict.fromkeys(["http_proxy", "https_proxy", "grpc_proxy"], proxy)
    with mock.patch.dict(os.environ, proxies):
      os.environ.pop("no_grpc_proxy", None)  # which other tests may have set
      with running("--port=0") as process:
        command = [sys.executable, "-c", code, said_address(process)]
        output = subprocess.check_output(command, text=True, timeout=120)
    self.assertEqual(output, "7\n")

  @parameterized.parameters("localhost", "host:port", ":5050", "localhost:99999")
  def test_what_is_no_address(self, address):
    with self.assertRaisesRegex(UserError, "HOST:PORT"):
      service.check_reachable(address)

  def test_nobody_answers(self):
    started = time.monotonic()
    address = f"localhost:{unused_port()}"
    with self.assertRaisesRegex(UserError, f"No data service answers at {address}"):
      self.examples(self.shard(), address)
    self.assertLess(time.monotonic() - started, 30)

  @parameterized.parameters(
    (["--dispatcher={address}"], "No data service answers"),
    (["--port=99999"], "--port=99999"),
    (["--num_workers=-1"], "--num_workers=-1"),
    (["--ports=3"], "--ports=3"),
    (["--port={taken}"], "cannot be had"),
  )
  def test_mistakes_are_one_line_and_code_2(self, arguments, expected):
    with socket.socket() as other:
      other.bind(("", 0))
      other.listen()
      taken = other.getsockname()[1]
      address = f"localhost:{unused_port()}"
      arguments = [each.format(address=address, taken=taken) for each in arguments]
      ended = subprocess.run(
        [sys.executable, "-m", "dat_tf.data.service", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
      )
    self.assertEqual(ended.returncode, 2)
    self.assertEqual(ended.stderr.count("\n"), 1, ended.stderr)
    self.assertIn(expected, ended.stderr)


if __name__ == "__main__":
  tf.test.main()
