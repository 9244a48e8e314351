"""A made-up part of each kind that CONTRIBUTING says how to add."""

from __future__ import annotations

import pathlib
import textwrap
from typing import NamedTuple


class Part(NamedTuple):
  """The files of a part.

  Attributes:
    new: what is in each new file.
    changed: by file, before which words what is added. Text that begins with a new line
      is lines, as far to the right as the words before which they are added.
  """

  new: dict[str, str]
  changed: dict[str, dict[str, str]]

  @property
  def files(self) -> list[str]:
    return [*self.new, *self.changed]

  def add_to(self, folder: pathlib.Path) -> None:
    """Adds the part to a copy of the project."""
    for name, content in self.new.items():
      (folder / name).write_text(textwrap.dedent(content).lstrip())
    for name, additions in self.changed.items():
      text = (folder / name).read_text()
      for before, added in additions.items():
        assert text.count(before) == 1, f"{name}: {before}"
        if added.startswith("\n"):
          margin = before[: len(before) - len(before.lstrip())]
          added = textwrap.indent(textwrap.dedent(added[1:]), margin)
        text = text.replace(before, added + before)
      (folder / name).write_text(text)


def _flagfile(kind: str, name: str) -> dict[str, str]:
  content = f"""
    # A made-up {kind}.

    --flagfile=flags/methods/common.flags
    --model_dir=runs/methods/{name}
    --{kind}={name}
    """
  return {f"flags/methods/{name}.flags": content}


TRAINING_ATTACK = Part(
  new={
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
    **_flagfile("attack", "dotted"),
  },
  changed={
    "dat_tf/config/attacks.py": {
      "def _one_step(": """
        def _dotted(settings: Settings, trained: Trained) -> Any:
          return attacks.dotted.Dotted(make_ball(settings), settings.share_of_pixels)


        """,
      '  TrainingAttack(\n    "nfgsm",': """
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
  },
)

OBJECTIVE = Part(
  new={
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
          p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
          p = p[range(4), labels]
          self.assertAllClose(losses, -np.log(p) * (1 - p) ** 2)
      """,
    **_flagfile("objective", "focal"),
  },
  changed={
    "dat_tf/config/objectives.py": {
      '  TrainingObjective(\n    "trades",': """
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
  },
)

EVALUATION_ATTACK = Part(
  new={
    "dat_tf/attacks/shortening.py": '''
      """A made-up attack of evaluation: steps that get shorter."""

      from __future__ import annotations

      import dataclasses

      import tensorflow as tf

      from dat_tf.attacks import losses, norms
      from dat_tf.attacks.gradient import loss_and_gradient
      from dat_tf.attacks.iterative import (
        Bounded,
        Classifier,
        Examples,
        State,
        keep_smaller,
        per_example,
        unfooled,
      )


      @dataclasses.dataclass(frozen=True)
      class Shortening(Bounded):
        """Ascent of the margin from the image, by steps of epsilon / sqrt(k + 1)."""

        ball: norms.Ball
        steps: int = 20

        def num_steps(self, size: int) -> int:
          return self.steps + 1  # the last one looks at the last point

        def start(self, examples: Examples) -> State:
          return {**unfooled(examples.images), "point": examples.images}

        def step(
          self, classifier: Classifier, examples: Examples, state: State, k: tf.Tensor
        ) -> State:
          ball, images, point = self.ball, examples.images, state["point"]
          logits, _, gradient = loss_and_gradient(
            classifier, point, lambda logits: losses.margin(logits, examples.labels)
          )
          gradient = norms.never_zero(gradient, examples.keys, k)
          length = ball.epsilon * tf.math.rsqrt(tf.cast(k, tf.float32) + 1.0)
          return {
            **keep_smaller(ball, examples, state, point, logits),
            "point": norms.ascend(ball, images, point, gradient, per_example(length)),
          }
      ''',
    "tests/attacks/test_shortening.py": """
      import numpy as np
      import tensorflow as tf
      from absl.testing import parameterized
      from linear_model import Linear

      from dat_tf.attacks import LInfinity, OneShot
      from dat_tf.attacks.shortening import Shortening
      from dat_tf.base import hashing


      class ShorteningTest(tf.test.TestCase, parameterized.TestCase):
        @parameterized.parameters(1, 3)
        def test_the_first_step_is_that_of_numpy(self, channels):
          linear = Linear(near_classes=2, shape=(5, 5, channels), count=4)
          epsilon = 1.1 * linear.distances(LInfinity).max()
          attack = OneShot(Shortening(LInfinity(epsilon), steps=1))
          images, labels = tf.constant(linear.images), tf.constant(linear.labels)
          keys = hashing.stream_keys(0, linear.ids)
          moved = attack(linear, images, labels, keys)
          # Of two classes within reach the other one is aimed at.
          slope = linear.weights.T[1 - linear.labels] - linear.weights.T[linear.labels]
          signs = np.sign(slope).reshape(images.shape)
          self.assertAllClose(moved, linear.images + epsilon * signs, atol=1e-6)
      """,
  },
  changed={
    "dat_tf/attacks/registry.py": {
      "from dat_tf.attacks.square import": """
        from dat_tf.attacks.shortening import Shortening
        """,
      '  "deepfool": DeepFool,': """
        "shortening": Shortening,
        """,
    },
    "dat_tf/config/evaluation.py": {
      '    "autoattack-rand, deepfool': """
        "shortening, "
        """
    },
  },
)

QUANTIZER = Part(
  new={},
  changed={
    "dat_tf/communication/quantizers.py": {
      "@dataclasses.dataclass(frozen=True)\nclass BucketQuantizer:": '''
        @dataclasses.dataclass(frozen=True)
        class WholeQuantizer:
          """A made-up quantizer: 8 bits a value, and one scale for all of a vector."""

          bucket_size: int = 4

          def payload_size(self, num_values: int) -> int:
            return 1 + -(-num_values // 4)

          def encode(self, values: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
            *vectors, num_values = values.shape
            steps = tf.reduce_max(tf.abs(values), axis=-1, keepdims=True) * (1 / 127)
            codes = tf.round(tf.math.divide_no_nan(values, steps))
            codes = tf.cast(codes, tf.int8)
            codes = tf.pad(codes, [[0, 0]] * len(vectors) + [[0, -num_values % 4]])
            words = tf.bitcast(tf.reshape(codes, [*vectors, -1, 4]), tf.int32)
            return tf.concat([tf.bitcast(steps, tf.int32), words], axis=-1)

          def decode(self, payload: tf.Tensor, num_values: int) -> tf.Tensor:
            steps = tf.bitcast(payload[..., :1], tf.float32)
            codes = tf.cast(tf.bitcast(payload[..., 1:], tf.int8), tf.float32)
            codes = tf.reshape(codes, [*payload.shape[:-1], -1])
            return codes[..., :num_values] * steps


        '''
    },
    "dat_tf/config/communication.py": {
      '"bits", "bucket_size", ': '"quantizer", ',
      "_SCALES = options(": """
        _QUANTIZERS = options(
          Option("buckets", "a scale for each bucket"),
          Option("whole", "one scale for a whole pack"),
        )
        """,
      "  bits: str = ": """
        quantizer: str = choice("buckets", _QUANTIZERS, "How gradients are quantized.")
        """,
      "    communication.BucketQuantizer(": """
        quantizers.WholeQuantizer()
        if settings.quantizer == "whole"
        else
        """,
      "  yield (\n    settings.error_feedback and": """
        yield (
          settings.quantizer == "whole" and settings.bits != "8",
          "--quantizer=whole takes --bits=8.",
        )
        """,
    },
    "tests/communication/test_quantizers.py": {
      "    Halves(),\n  )": """
        quantizers.WholeQuantizer(),
        """,
      "@dataclasses.dataclass\nclass Halves:": """
        class WholeTest(tf.test.TestCase):
          def test_against_numpy(self):
            values = gaussian(10)
            decoded = round_trip(quantizers.WholeQuantizer(), values, keys_of(0))
            step = np.abs(values).max() / 127
            self.assertAllClose(decoded, step * np.round(values / step), atol=1e-6)


        """,
    },
  },
)

MODEL = Part(
  new={
    "dat_tf/models/perceptron.py": '''
      """A made-up network: one hidden layer."""

      from __future__ import annotations

      from collections.abc import Sequence

      from dat_tf.compat import keras


      def perceptron(image_shape: Sequence[int], num_classes: int) -> keras.Model:
        """One hidden layer of 32 units."""
        inputs = keras.Input(image_shape)
        x = keras.layers.Normalization(mean=0.5, variance=0.25)(inputs)
        x = keras.layers.Flatten()(x)
        x = keras.layers.Dense(32, activation="relu")(x)
        return keras.Model(inputs, keras.layers.Dense(num_classes)(x))
      ''',
    "tests/models/test_perceptron.py": """
      import tensorflow as tf

      from dat_tf.models import make_model


      class PerceptronTest(tf.test.TestCase):
        def test_parameters(self):
          for shape, size in (((8, 8, 1), 64), ((6, 5, 3), 90)):
            model = make_model("perceptron", shape, 7)
            self.assertEqual(model.output_shape, (None, 7))
            count = sum(int(tf.size(x)) for x in model.trainable_weights)
            self.assertEqual(count, (size + 1) * 32 + (32 + 1) * 7)
      """,
  },
  changed={
    "dat_tf/models/registry.py": {
      '  "vit_small16": ': """
        "perceptron": _Own("perceptron"),
        """
    }
  },
)

FLAG = Part(
  new={
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
  },
  changed={
    "dat_tf/config/optimizers.py": {
      "  reference_batch_size: int = ": """
        rate_factor: float = number(1, "Factor of the learning rate.", above=0)
        """,
      "settings.learning_rate,\n": "settings.rate_factor * ",
    }
  },
)
