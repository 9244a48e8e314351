"""What CONTRIBUTING says of adding a part is enough: parts are added by it alone.

Each is added to a copy of the project, in at most so many files as CONTRIBUTING says.
There a run uses it, and the tests that know all parts are still green.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import unittest

import pytest
from program_case import write_digits
from programs import ROOT

# For each part what is new, by file; and what is added before a line that is there.
ATTACK = {
  "dat_tf/attacks/dotted.py": '''
    """A made-up attack: the sign of the gradient, on part of the pixels."""

    from __future__ import annotations

    import dataclasses

    import tensorflow as tf

    from dat_tf.attacks import norms
    from dat_tf.base import hashing
    from dat_tf.objectives.losses import cross_entropy, input_gradient


    @dataclasses.dataclass(frozen=True)
    class Dotted:
      """One step on a random share of the pixels; arguments as `Attack`'s."""

      ball: norms.Ball
      share: float

      def __call__(self, classifier, images, labels, keys, loss=cross_entropy):
        gradient = input_gradient(classifier, images, labels, loss)
        dots = hashing.uniform(keys, images.shape[1:]) < self.share
        gradient = tf.where(dots, gradient, 0.0)
        return norms.ascend(self.ball, images, images, gradient, self.ball.epsilon)
    ''',
  "tests/attacks/test_dotted.py": """
    import numpy as np
    import tensorflow as tf
    from absl.testing import parameterized
    from linear_model import Linear

    from dat_tf.attacks import LInfinity
    from dat_tf.attacks.dotted import Dotted
    from dat_tf.base import hashing


    class DottedTest(tf.test.TestCase, parameterized.TestCase):
      @parameterized.parameters(1, 3)
      def test_part_of_the_pixels_moves_by_epsilon(self, channels):
        linear = Linear(near_classes=2, shape=(9, 9, channels), count=4)
        keys = hashing.stream_keys(0, linear.ids)
        images, labels = tf.constant(linear.images), tf.constant(linear.labels)
        moved = Dotted(LInfinity(0.01), 0.5)(linear, images, labels, keys)
        changed = np.abs(moved - linear.images)
        self.assertAllLessEqual(changed, 0.01 + 1e-6)
        self.assertBetween(np.mean(changed > 0), 0.35, 0.65)
    """,
  "flags/methods/dotted.flags": """
    # A made-up attack.

    --flagfile=flags/methods/common.flags
    --model_dir=runs/methods/dotted
    --attack=dotted
    """,
}
ATTACK_RECORD = {
  "dat_tf/config/attacks.py": {
    "def _one_step(": """
      def _dotted(settings: Settings, trained: Trained) -> Any:
        return attacks.dotted.Dotted(make_ball(settings), settings.share_of_pixels)


      """,
    ")\n\n\ndef training_attack(": """
        TrainingAttack(
          "dotted",
          "one step on part of the pixels",
          ("share_of_pixels",),
          _dotted,
          steps=1,
        ),
      """,
    "  attack_in_training_mode: bool": """
        share_of_pixels: float = number(
          "1/2", "Part of the pixels that dotted moves.", above=0, upper=1
        )
      """,
  }
}
OBJECTIVE = {
  "dat_tf/objectives/focal.py": '''
    """A made-up objective: what is predicted well already counts less."""

    from __future__ import annotations

    import dataclasses

    import tensorflow as tf

    from dat_tf.objectives.losses import cross_entropy
    from dat_tf.objectives.objective import Evaluated, Objective, both_logits


    @dataclasses.dataclass(frozen=True)
    class Focal(Objective):
      """l(x + delta, y) (1 - exp(-l(x + delta, y)))^focus, l the cross-entropy."""

      focus: float

      def __call__(self, classifier, batch, adversarial):
        clean_logits, logits = both_logits(classifier, batch, adversarial)
        losses = cross_entropy(logits, batch.labels)
        losses *= (1.0 - tf.exp(-losses)) ** self.focus
        return Evaluated(losses, clean_logits, logits)
    ''',
  "tests/objectives/test_focal.py": """
    import numpy as np
    import tensorflow as tf

    from dat_tf.objectives import Batch
    from dat_tf.objectives.focal import Focal


    class FocalTest(tf.test.TestCase):
      def test_against_numpy(self):
        images = np.random.default_rng(0).random((4, 2, 1, 1), np.float32)
        labels = np.array([0, 1, 0, 1])
        rows = [tf.constant(x) for x in (images, labels, np.ones(4, "f4"))]
        batch = Batch(*rows, tf.zeros([4, 2], tf.uint32), tf.ones(4))
        network = lambda x, training: 3.0 * x[:, :, 0, 0]
        losses = Focal(2.0)(network, batch, 1.0 - images).losses
        logits = 3.0 * (1.0 - images[:, :, 0, 0])
        p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[range(4), labels]
        self.assertAllClose(losses, -np.log(p) * (1 - p) ** 2)
    """,
  "flags/methods/focal.flags": """
    # A made-up objective.

    --flagfile=flags/methods/common.flags
    --model_dir=runs/methods/focal
    --objective=focal
    """,
}
OBJECTIVE_RECORD = {
  "dat_tf/config/objectives.py": {
    ")\n\n_MIXING = ": """
        TrainingObjective(
          "focal",
          "what is predicted well counts less",
          ("focus",),
          lambda s, steps: objectives.focal.Focal(s.focus),
        ),
      """,
    "  gradient_alignment: float": """
        focus: float = number(2, "Power of what focal multiplies the loss by.")
      """,
  }
}
FLAG = {
  "tests/config/test_rate_factor.py": """
    from config_case import ConfigCase, parse

    from dat_tf import config
    from dat_tf.models import make_model


    class RateFactorTest(ConfigCase):
      def test_the_rate_is_multiplied(self):
        network = make_model("small_cnn", (8, 8, 1), 10)
        for factor in ("1", "1/2"):
          settings = parse(rate_factor=factor, learning_rate=0.5, decay="constant")
          optimizer = config.make_optimizer(settings, network, 3)
          self.assertAlmostEqual(
            float(optimizer.learning_rate(0)), settings.rate_factor * 0.5
          )
    """
}
FLAG_FIELD = {
  "dat_tf/config/optimizers.py": {
    "  reference_batch_size: int = ": """
        rate_factor: float = number(1, "Factor of the learning rate.", above=0)
      """,
    "settings.learning_rate,\n": "settings.rate_factor * ",
  }
}


@pytest.mark.long
class ContributingTest(unittest.TestCase):
  def setUp(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.clone = self.folder / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(self.clone)], check=True)
    # Where the package is installed from its folder, this one goes before it.
    self.environment = {**os.environ, "PYTHONPATH": str(self.clone)}

  def run_python(self, *words):
    return subprocess.run(
      [sys.executable, *words],
      cwd=self.clone,
      env=self.environment,
      capture_output=True,
      text=True,
    )

  def run_dat(self, *words):
    return self.run_python("run_dat.py", f"--model_dir={self.folder / 'run'}", *words)

  def add(self, new, changed, files):
    """Adds a part in this number of files, and runs the tests that know all parts."""
    for name, content in new.items():
      (self.clone / name).write_text(textwrap.dedent(content).lstrip())
    for name, additions in changed.items():
      text = (self.clone / name).read_text()
      for before, added in additions.items():
        self.assertEqual(text.count(before), 1, before)
        lines = textwrap.dedent(added).removeprefix("\n").splitlines(keepends=True)
        indented = added.startswith("\n  ") and before.startswith((")", "  "))
        added = "".join(("  " * indented + x) if x.strip() else x for x in lines)
        text = text.replace(before, added + before)
      (self.clone / name).write_text(text)
    self.assertLessEqual(len(new) + len(changed), files)
    own = [name for name in new if name.startswith("tests/")]
    everywhere = ["tests/config", "tests/test_coverage.py", "tests/test_layers.py"]
    done = self.run_python("-m", "pytest", "-q", "-m", "not long", *own, *everywhere)
    self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-1000:])

  def digits(self):
    write_digits(str(self.folder / "data"))
    data = [f"--{kind}_data={self.folder}/data/{kind}-*" for kind in ("train", "test")]
    return [*data, "--global_batch_size=32", "--epochs=1", "--mode=train"]

  def trained(self, *words):
    done = self.run_dat(*self.digits(), *words)
    self.assertEqual(done.returncode, 0, done.stderr)
    return (self.folder / "run/config.flags").read_text()

  def test_an_attack_of_training(self):
    self.add(ATTACK, ATTACK_RECORD, files=4)  # and a row of the results
    help_text = " ".join(self.run_dat("--help").stdout.split())
    self.assertIn("dotted (one step on part of the pixels)", help_text)
    self.assertIn("Range: (0, 1]. (default: '1/2')", help_text)
    refused = self.run_dat(*self.digits(), "--share_of_pixels=0.1")
    self.assertEqual(refused.returncode, 2)
    self.assertIn("plays no part with --attack=pgd", refused.stderr)
    self.assertIn("--attack=dotted", refused.stderr)
    settings = self.trained("--attack=dotted", "--share_of_pixels=0.1")
    self.assertIn("--share_of_pixels=0.1", settings)

  def test_an_objective(self):
    self.add(OBJECTIVE, OBJECTIVE_RECORD, files=4)  # and a row of the results
    refused = self.run_dat(*self.digits(), "--focus=3")
    self.assertIn("--focus plays no part with --objective=at", refused.stderr)
    self.assertIn("--focus=3", self.trained("--objective=focal", "--focus=3"))

  def test_a_flag(self):
    self.add(FLAG, FLAG_FIELD, files=2)
    self.assertIn("--rate_factor=0.5", self.trained("--rate_factor=1/2"))


if __name__ == "__main__":
  unittest.main()
