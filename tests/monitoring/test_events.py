"""What happened to a run, and its goodput."""

from __future__ import annotations

import datetime
import os
import tempfile
from unittest import mock

import tensorflow as tf

from dat_tf.monitoring import Events, goodput, read_events


def at(seconds):
  start = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
  return start + datetime.timedelta(seconds=seconds)


class EventsTest(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(
      tempfile.mkdtemp(dir=self.get_temp_dir()), "run", "e.jsonl"
    )

  def test_lines_are_added(self):
    events = Events(self.path)
    events.write_start(0, 0, workers=3)
    events.write("save", 1, 20, seconds=0.1, bytes=5, seconds_per_step=0.5)
    told = {"DAT_TF_RESTARTS": "2", "DAT_TF_RESTART_CAUSE": "Worker 1 was ended"}
    with mock.patch.dict(os.environ, told):
      Events(self.path).write_start(1, 20, workers=3)
    events = Events(self.path)
    events.write_here("failure", cause="a bad record")
    first, saved, again, failure = read_events(self.path)
    self.assertEqual((first["event"], first["workers"]), ("start", 3))
    self.assertNotIn("restarts", first)
    self.assertEqual((saved["epochs"], saved["step"], saved["bytes"]), (1, 20, 5))
    self.assertEqual((again["restarts"], again["cause"]), (2, "Worker 1 was ended"))
    self.assertEqual((failure["step"], failure["cause"]), (20, "a bad record"))
    moment = datetime.datetime.fromisoformat(first["time"])
    now = datetime.datetime.now(datetime.timezone.utc)
    self.assertLess(abs((now - moment).total_seconds()), 60)

  def test_a_line_that_was_cut_off_is_left_out(self):
    Events(self.path).write_start(0, 0, workers=1)
    with open(self.path, "a") as file:
      file.write('{"time": "2026')
    self.assertLen(read_events(self.path), 1)
    # What comes after it is whole.
    Events(self.path).write("save", 1, 20)
    self.assertEqual([e["event"] for e in read_events(self.path)], ["start", "save"])

  def test_others_than_the_chief_write_nothing(self):
    events = Events(None)
    events.write_start(0, 0, workers=2)
    self.assertIsNone(events.goodput())

  def test_goodput(self):
    """100 steps of 0.5 s in 80 s, 20 of them lost and done again."""
    events = [{"event": "start", "time": at(0).isoformat(), "step": 0}]
    self.assertIsNone(goodput(events, at(5)))
    for step, pace in ((40, 0.5), (80, 0.4), (80, None), (100, 0.6)):
      save = {"event": "save", "time": at(step).isoformat(), "step": step}
      events.append({**save, "seconds_per_step": pace})
    self.assertAlmostEqual(goodput(events, at(80)), 100 * 0.5 / 80)
    self.assertEqual(goodput(events, at(10)), 1.0)


if __name__ == "__main__":
  tf.test.main()
