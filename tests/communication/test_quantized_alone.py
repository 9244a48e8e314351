"""The quantized mean on one replica: packs, error feedback over many steps, bytes."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf.communication import (
  BucketQuantizer,
  FullPrecision,
  MeanAllReduce,
  QuantizedAllReduce,
)
from dat_tf.communication.quantizers import l2_norm, nearest
from dat_tf.workers import joined


class LoneReplicaTest(tf.test.TestCase):
  """Where the quantizer alone decides."""

  def means(self, all_reduce, tensors):
    names = [f"kernel{index}" for index in range(len(tensors))]
    return all_reduce(
      [tf.constant(tensor) for tensor in tensors], names, tf.constant(0)
    )

  def test_packs_change_nothing_but_the_noise(self):
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(25, 50)).astype("f4") for _ in range(3)]
    quantizer = BucketQuantizer(4, 64, rounding=nearest)
    whole, _ = self.means(QuantizedAllReduce(quantizer), tensors)
    options = joined.communication_options("ring", 4 * 1300, 60)
    packs, _ = self.means(QuantizedAllReduce(quantizer, options), tensors)
    for tensor, first, second in zip(tensors, whole, packs):
      self.assertNotAllClose(first, tensor, atol=0.01)
      self.assertAllEqual(first, second)

  def test_vectors_alone_are_not_quantized(self):
    bias = np.arange(5, dtype="f4")
    for error_feedback in (False, True):
      all_reduce = QuantizedAllReduce(
        BucketQuantizer(2, rounding=nearest), error_feedback=error_feedback
      )
      (mean,), _ = self.means(all_reduce, [bias])
      self.assertAllEqual(mean, bias)

  def test_zeros_stay_zeros(self):
    means, figures = self.means(
      QuantizedAllReduce(BucketQuantizer(8)), [np.zeros([50, 50], "f4")]
    )
    self.assertAllEqual(means[0], np.zeros([50, 50]))
    self.assertEqual(figures["quantization_error"], 0.0)


class ErrorFeedbackTest(tf.test.TestCase, parameterized.TestCase):
  """On one bucket a row: two constant gradients, and one that is new in every step."""

  def run_steps(self, quantizer, num_steps):
    """Gradients, means and residuals: [num_steps, 3, d] each."""
    rng = np.random.default_rng(2)
    shape = (num_steps, 3, quantizer.bucket_size)
    gradients = rng.normal(size=shape).astype("f4")
    gradients[:, 0] = gradients[0, 0]
    gradients[:, 1] = gradients[0, 1] ** 3
    all_reduce = QuantizedAllReduce(
      quantizer, error_feedback=True, full_precision=FullPrecision(below=0)
    )
    step = tf.function(
      lambda gradient, number: all_reduce([gradient], ["kernel"], number)[0][0],
      autograph=False,
    )
    means, residuals = np.empty(shape, "f4"), np.empty(shape, "f4")
    for number, gradient in enumerate(gradients):
      means[number] = step(tf.constant(gradient), tf.constant(number))
      residuals[number] = all_reduce.residual[0]
    return gradients, means, residuals

  @parameterized.parameters((2, 128), (4, 64))
  def test_the_residual_stays_bounded_and_the_mean_converges(self, bits, d):
    quantizer = BucketQuantizer(bits, d, rounding=nearest)
    gradients, means, residuals = self.run_steps(quantizer, 1000)
    # From ‖r'‖ <= c ‖g + r‖, with the quantizer's contraction c < 1.
    c = np.sqrt((d - 1) / (d - 1 + 4 * (2 ** (bits - 1) - 1) ** 2))
    bounds = c / (1 - c) * np.linalg.norm(gradients, axis=-1).max(axis=0)
    norms = np.linalg.norm(residuals, axis=-1)
    self.assertAllLessEqual(norms / bounds, 1.0)
    self.assertAllLessEqual(norms[100:].max(axis=0) / norms[:100].max(axis=0), 1.5)
    # Nothing is lost: what has not come out is in the residual.
    missing = np.cumsum(gradients - means, axis=0, dtype="f8")
    self.assertAllClose(missing, residuals, rtol=0, atol=1e-3)
    for steps in (10, 100, 1000):
      error = np.mean(means[:steps] - gradients[:steps], axis=0, dtype="f8")
      self.assertAllLessEqual(np.linalg.norm(error, axis=-1) * steps / bounds, 1.001)
    # Without the residual the error of the first step would stay.
    first = np.linalg.norm(means[0] - gradients[0], axis=-1)
    self.assertAllLessEqual(np.linalg.norm(error, axis=-1) / first, 0.02)

  def test_an_unbiased_quantizer_makes_the_residual_explode(self):
    gradients, _, residuals = self.run_steps(BucketQuantizer(2, 1024, l2_norm), 60)
    ratio = np.linalg.norm(residuals[-1]) / np.linalg.norm(gradients[-1])
    self.assertGreater(ratio, 1e4)


class BytesSentTest(tf.test.TestCase, parameterized.TestCase):
  # 262,144 values and a bias. Of M chunks, one has 256 / M buckets of 1,024 values,
  # which are 257, 129 or 65 words at 8, 4 or 2 bits.
  VARIABLES = (
    tf.TensorSpec([256, 1024], name="kernel"), tf.TensorSpec([256], name="bias")
  )  # fmt: skip

  @parameterized.parameters(
    # Twice to each of the M - 1 others: a chunk of codes.
    (8, True, 1, 0), (8, True, 2, 2 * 4 * 128 * 257), (8, True, 4, 6 * 4 * 64 * 257),
    (8, True, 8, 14 * 4 * 32 * 257), (4, True, 4, 6 * 4 * 64 * 129),
    (2, True, 4, 6 * 4 * 64 * 65), (2, True, 8, 14 * 4 * 32 * 65),
    # To each of the others: the codes of all 256 buckets ...
    (8, False, 1, 0), (8, False, 2, 4 * 256 * 257), (8, False, 4, 3 * 4 * 256 * 257),
    (4, False, 8, 7 * 4 * 256 * 129), (2, False, 8, 7 * 4 * 256 * 65),
    # ... or those of a chunk, then a chunk of float32 values.
    (8, False, 8, 7 * 4 * 32 * (257 + 1024)),
    (4, False, 16, 15 * 4 * 16 * (129 + 1024)),
  )  # fmt: skip
  def test_of_each_form(self, bits, two_sided, num_workers, codes):
    all_reduce = QuantizedAllReduce(BucketQuantizer(bits), two_sided=two_sided)
    sent = all_reduce.bytes_sent(self.VARIABLES, num_workers)
    ring = {1: 0, 2: 1024, 4: 1536, 8: 1792, 16: 1920}  # of the bias
    self.assertEqual(sent, codes + ring[num_workers])

  @parameterized.parameters((8, 0.26), (4, 0.135), (2, 0.07))
  def test_ratio_to_float32_for_a_large_gradient(self, bits, target):
    variables = [tf.TensorSpec([5000, 5120], name="kernel")]
    sent = QuantizedAllReduce(BucketQuantizer(bits)).bytes_sent(variables, 4)
    plain = MeanAllReduce().bytes_sent(variables, 4)
    self.assertEqual(plain, 4 * 25_600_000 * 2 * 3 // 4)
    self.assertBetween(sent / plain, bits / 32, target)
