"""What an evaluation counts."""

from __future__ import annotations

from unittest import mock

import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.program import evaluating


class CountTest(tf.test.TestCase):
  def test_images_that_no_worker_counted_are_missed(self):
    run, trainee = mock.MagicMock(), mock.MagicMock()
    run.config.attacks, run.config.test_data = [], "data/test-*"
    run.inputs.test.steps = 3
    run.workers.is_chief = False
    trainee.model.evaluate.return_value = {"loss": 1.0, "examples": 315.0}
    trainee.model.evaluate.return_value["robust_accuracy"] = 0.5
    with mock.patch.object(evaluating, "_survey"):
      with mock.patch.object(evaluating, "_whole") as whole:
        whole.return_value.num_examples = 360
        with self.assertRaisesRegex(UserError, "315 test images .*test-. hold 360"):
          evaluating.evaluate(run, trainee)
        whole.return_value.num_examples = 315
        evaluating.evaluate(run, trainee)


if __name__ == "__main__":
  tf.test.main()
