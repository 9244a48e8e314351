"""A worker that keeps the others waiting is named."""

from __future__ import annotations

import unittest

from dat_tf.workers.stragglers import Stragglers


class StragglersTest(unittest.TestCase):
  def test_one_that_stays_slow_is_named_once(self):
    stragglers = Stragglers()
    lines = [stragglers.look([0.1, 0.1, 0.23, 0.11]) for _ in range(40)]
    self.assertEqual([bool(line) for line in lines[:9]], [False] * 9)
    (line,) = filter(None, lines)
    self.assertIs(line, lines[9])
    self.assertIn("Worker 2 takes 2.3 times as long as the others", line)
    self.assertAlmostEqual(stragglers.ratio, 2.3)

  def test_another_one_is_named_too(self):
    stragglers = Stragglers()
    for worker in (0, 1):
      seconds = [0.2 if worker == n else 0.1 for n in range(2)]
      lines = list(filter(None, (stragglers.look(seconds) for _ in range(10))))
      self.assertEqual(len(lines), 1)
      self.assertIn(f"Worker {worker} takes 2.0 times", lines[0])

  def test_what_passes_is_not(self):
    stragglers = Stragglers()
    for turn in range(60):
      slow = 0.5 if turn % 7 == 3 else 0.1
      self.assertIsNone(stragglers.look([0.1, slow]))

  def test_a_little_slower_is_not(self):
    stragglers = Stragglers()
    self.assertFalse(any(stragglers.look([0.1, 0.13]) for _ in range(60)))
    self.assertAlmostEqual(stragglers.ratio, 1.3)


if __name__ == "__main__":
  unittest.main()
