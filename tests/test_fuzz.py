"""Inputs as strangers give them, a few of each kind; benchmarks/fuzz.py has more."""

from __future__ import annotations

import contextlib
import io
import pathlib
import sys
import tempfile

import hypothesis
from absl.testing import parameterized
from hypothesis import strategies

from dat_tf.base.errors import UserError, shown

ROOT = pathlib.Path(__file__).resolve().parent.parent


sys.path.insert(0, str(ROOT / "benchmarks"))

import fuzz_inputs  # noqa: E402


class FuzzTest(parameterized.TestCase):
  @parameterized.parameters(*fuzz_inputs.TARGETS)
  def test_it_is_taken_or_refused_in_a_line(self, name):
    target = fuzz_inputs.TARGETS[name]

    @hypothesis.settings(max_examples=25, deadline=None, database=None)
    @hypothesis.seed(0)
    @hypothesis.given(strategies.randoms(use_true_random=False))
    def check(rng):
      with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory, "a", "b")
        (folder / "in").mkdir(parents=True)
        try:
          with contextlib.redirect_stderr(io.StringIO()):
            target(rng, folder)
        except UserError as error:
          self.assertLess(len(shown(error)), 700)
        self.assertEqual(fuzz_inputs.outside(folder), [])

    check()
