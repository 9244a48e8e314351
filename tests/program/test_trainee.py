"""In which arithmetic training attacks the network."""

from __future__ import annotations

from unittest import mock

from absl.testing import absltest, parameterized
from config_case import parse

from dat_tf.base.errors import UserError
from dat_tf.models import precision
from dat_tf.program import trainee

SHAPE = (8, 28, 28, 1)


class Worker:
  """One of two workers; the other one's answers are given."""

  is_chief = True

  def __init__(self, speedup=9.0, reason=""):
    self._hundredths, self._reason = round(100 * speedup), reason

  def texts(self, text):
    return [text, self._reason]

  def largest(self, value):
    return max(value, -self._hundredths)


class AttackPrecisionTest(parameterized.TestCase):
  def chosen(self, speedup=9.0, worker=None, **values):
    answer = {"side_effect": speedup} if isinstance(speedup, Exception) else {}
    with mock.patch.object(precision, "speedup", return_value=speedup, **answer) as run:
      found = trainee._attack_precision(parse(**values), worker or Worker(), SHAPE)
    return found, [call.args[-1] for call in run.call_args_list]

  @parameterized.parameters(
    {},
    {"attack_precision": "auto", "objective": "llr"},
    {"attack_precision": "auto", "attack_in_training_mode": "true"},
    {"attack_precision": "bfloat16", "mode": "evaluate"},
    {"precision": "mixed_bfloat16", "mode": "evaluate"},
  )
  def test_nothing_is_tried_without_need(self, **values):
    self.assertEqual(self.chosen(**values), ("float32", []))

  @parameterized.parameters((1.5, 9.0, "bfloat16"), (1.05, 9.0, "float32"))
  def test_auto_takes_what_is_faster(self, ours, theirs, expected):
    found = self.chosen(ours, Worker(theirs), attack_precision="auto")
    self.assertEqual(found, (expected, ["bfloat16"]))
    found, _ = self.chosen(theirs, Worker(ours), attack_precision="auto")
    self.assertEqual(found, expected)

  def test_auto_takes_what_all_workers_have(self):
    lacking = precision.NoBfloat16Error("why")
    for ours, worker in ((lacking, Worker()), (9.0, Worker(0.0, "why"))):
      found, _ = self.chosen(ours, worker, attack_precision="auto")
      self.assertEqual(found, "float32")

  @parameterized.parameters("attack_precision", "precision")
  def test_what_was_asked_for_and_a_worker_lacks(self, flag):
    lacking = precision.NoBfloat16Error("why")
    form = {"attack_precision": "bfloat16", "precision": "mixed_bfloat16"}[flag]
    for ours, worker in ((lacking, Worker()), (9.0, Worker(0.0, "why"))):
      with self.assertRaisesRegex(UserError, f"--{flag}={form}: why: choose float32"):
        self.chosen(ours, worker, **{flag: form})

  def test_what_was_asked_for(self):
    found = self.chosen(0.5, attack_precision="bfloat16")
    self.assertEqual(found, ("bfloat16", ["bfloat16"]))
    found = self.chosen(0.5, precision="mixed_bfloat16")
    self.assertEqual(found, ("float32", ["mixed_bfloat16"]))


if __name__ == "__main__":
  absltest.main()
