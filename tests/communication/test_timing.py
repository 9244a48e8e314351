"""What the clocks inside a step say."""

import time

import tensorflow as tf

from dat_tf.communication import BucketQuantizer, MeanAllReduce, QuantizedAllReduce
from dat_tf.communication.timing import Stopwatch, arrivals, elapsed_ms

NAP = 0.05


def _slow(x):
  """x, after a nap."""

  def nap(x):
    time.sleep(NAP)
    return x

  return tf.ensure_shape(tf.numpy_function(nap, [x], x.dtype), x.shape)


class StopwatchTest(tf.test.TestCase):
  def test_covers_what_it_times_and_no_more(self):
    @tf.function(autograph=False)
    def timed(x):
      timed = Stopwatch()
      (x,), start = arrivals([_slow(x)])
      y = timed("slow", _slow, _slow(timed("slow", _slow, x)))
      y = timed("quick", tf.negative, y)
      (y,), end = arrivals([_slow(y)])
      return y, timed.totals, elapsed_ms(start, end)

    for _ in range(2):
      y, totals, whole = timed(tf.constant([1.0]))
      self.assertAllEqual(y, [-1.0])
      self.assertGreaterEqual(totals["slow"], 2000 * NAP)
      self.assertLess(totals["quick"], totals["slow"])
      # Two naps more, outside of what is timed.
      self.assertGreaterEqual(whole - totals["slow"], 0.9 * 2000 * NAP)

  def test_counts_what_overlaps_once(self):
    @tf.function(autograph=False)
    def timed(x):
      timed = Stopwatch()
      inputs, start = arrivals([x + i for i in range(8)])
      outputs, end = arrivals([timed("slow", _slow, x) for x in inputs])
      return outputs, timed.totals["slow"], elapsed_ms(start, end)

    _, covered, whole = timed(tf.constant([1.0]))
    self.assertGreaterEqual(covered, 1000 * NAP)
    # Counted by call it would be twice as much with two threads. A thread may be late
    # to note the time.
    self.assertLessEqual(covered, 1.1 * whole)


class FiguresTest(tf.test.TestCase):
  """In a step whose threads are busy with other work."""

  def _figures(self, all_reduce):
    variables = [tf.Variable(tf.ones([512, 1024])) for _ in range(8)]
    names = [variable.name for variable in variables]

    @tf.function(autograph=False)
    def step(number):
      tensors = [tf.sin(variable) for variable in variables]
      means, figures = all_reduce(tensors, names, number)
      for variable, mean in zip(variables, means):
        variable.assign_sub(1e-3 * tf.tanh(mean))
      return figures

    steps = [step(tf.constant(number, tf.int64)) for number in range(4)]
    return tf.nest.map_structure(float, steps[1:])

  def test_the_parts_of_a_pack_are_within_the_whole(self):
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=2**26)
    all_reduce = QuantizedAllReduce(BucketQuantizer(bits=8), options)
    for figures in self._figures(all_reduce):
      parts = [figures[f"{part}_ms"] for part in ("encode", "exchange", "decode")]
      self.assertLessEqual(sum(parts), figures["reduction_ms"] + 1e-3)
      # 4 million values are not encoded in no time.
      self.assertGreater(figures["encode_ms"], 0.05 * figures["reduction_ms"])
      self.assertGreater(figures["decode_ms"], 0.05 * figures["reduction_ms"])

  def test_a_plain_mean_takes_some_time(self):
    for figures in self._figures(MeanAllReduce()):
      self.assertGreater(figures["reduction_ms"], 0.0)


if __name__ == "__main__":
  tf.test.main()
