"""Whether bfloat16 is there is asked before it is used."""

from __future__ import annotations

from unittest import mock

import tensorflow as tf
from absl.testing import parameterized

from dat_tf.models import precision

ARGUMENTS = "small_cnn", (16, 28, 28, 1), 10


class NativeTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("flags\t\t: fpu avx512_bf16 sse\n", True),
    ("processor : 0\nflags : fpu amx_bf16\nflags : fpu\n", True),
    ("Features\t: fp asimd bf16\n", True),
    ("flags : fpu avx512f avx512_vnni\nbf16 : none\n", False),
    ("", False),
  )
  def test_instructions_of_the_processor(self, text, is_native):
    with mock.patch("builtins.open", mock.mock_open(read_data=text)):
      self.assertEqual(precision.is_native(), is_native)

  def test_a_system_that_does_not_tell(self):
    with mock.patch("builtins.open", side_effect=FileNotFoundError):
      self.assertFalse(precision.is_native())

  @parameterized.parameters(
    ([(8, 0)], True), ([(9, 0), (8, 6)], True), ([(8, 0), (7, 5)], False)
  )
  def test_gpus(self, capabilities, is_native):
    details = [{"compute_capability": each} for each in capabilities]
    with (
      mock.patch.object(tf.config, "list_physical_devices", return_value=details),
      mock.patch.object(tf.config.experimental, "get_device_details", lambda gpu: gpu),
    ):
      self.assertEqual(precision.is_native(), is_native)


class SpeedupTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters("bfloat16", "mixed_bfloat16")
  def test_it_is_measured(self, form):
    # Processors without the instructions have a slow substitute.
    with mock.patch.object(precision, "is_native", return_value=True):
      self.assertGreater(precision.speedup(*ARGUMENTS, form), 0.0)

  def test_without_instructions_nothing_is_tried(self):
    with (
      mock.patch.object(precision, "is_native", return_value=False),
      mock.patch.object(precision.subprocess, "run") as run,
      self.assertRaisesRegex(precision.NoBfloat16Error, "no instructions"),
    ):
      precision.speedup(*ARGUMENTS, "bfloat16")
    run.assert_not_called()

  @parameterized.parameters(
    (["-c", "import os, signal; os.kill(os.getpid(), signal.SIGILL)"], "code -4"),
    (["-c", "raise ValueError('why')"], "ValueError: why"),
  )
  def test_a_trial_that_dies_hurts_nobody(self, words, reason):
    run = precision.subprocess.run
    with (
      mock.patch.object(precision, "is_native", return_value=True),
      mock.patch.object(
        precision.subprocess, "run", lambda command, **k: run(command[:1] + words, **k)
      ),
      self.assertRaisesRegex(precision.NoBfloat16Error, reason),
    ):
      precision.speedup(*ARGUMENTS, "bfloat16")


if __name__ == "__main__":
  tf.test.main()
