"""The mean of all workers' tensors, sent in a few bits a value.

With M workers a vector is cut into M chunks, and worker i is in charge of chunk i:

    two-sided   all-to-all     each worker sends each other one its chunk's codes
                average        of the others' codes and its own values, in float32
                all-gather     of the codes of the averages
    one-sided   the same, but the averages travel back in float32;
                or else an all-gather of all workers' codes, which everyone averages:
                whichever moves fewer bytes

All replicas decode the same codes in the same order: their means are bit-identical.

In units of a float32 vector of n values, with b = bits / 32, a worker sends

    float32 ring    2 (M - 1) / M
    two-sided       2 (M - 1) / M · b
    one-sided       (M - 1) / M · (1 + b), or (M - 1) · b while M < 1 + 1 / b

The two-sided form is that of Zhang et al. (UAI 2022), in which a server quantizes once
more what it sends back; here every worker is the server of its chunk. A server knows
its own worker's gradient as it is: that part needs no quantization.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Optional

import tensorflow as tf

from dat_tf.base import hashing
from dat_tf.communication.all_reduce import (
  FullPrecision,
  Metrics,
  divided,
  mean,
  merged,
  ring_bytes,
)
from dat_tf.communication.collectives import Group, groups
from dat_tf.communication.packs import Packs
from dat_tf.communication.quantizers import Quantizer
from dat_tf.communication.timing import Stopwatch, arrivals, elapsed_ms

_BYTES_PER_PACK = 16 * 2**20

# Buckets of the gradient in which the error of quantization is measured.
_SAMPLED_BUCKETS = 64


class _Sent(NamedTuple):
  """A vector of n values on its way to M workers, in M chunks.

  Attributes:
    values: float32 [M, n / M], this worker's own.
    keys: uint32 [M, 2], a stream of random numbers for each chunk.
    codes: int32 [M, payload], what it sent of them.
    received: int32, what it got from the others.
  """

  values: tf.Tensor
  keys: tf.Tensor
  codes: tf.Tensor
  received: tf.Tensor


@dataclasses.dataclass(frozen=True)
class _Exchange:
  """Averages vectors over the workers of a group, each in two phases."""

  quantizer: Quantizer
  group: Group
  timed: Stopwatch

  def run(
    self, vectors: list[tf.Tensor], keys: list[tf.Tensor], *, keeps_lost: bool
  ) -> list[tuple[tf.Tensor, Optional[tf.Tensor]]]:
    """Averages many vectors, one after another.

    Collectives travel in the order in which they are written here: the next vector's
    first phase goes before this one's second, and does not wait for it.

    Args:
      vectors: float32 [M, n / M] each, in M chunks.
      keys: uint32 [M, 2] for each, a stream of random numbers for every chunk.
      keeps_lost: whether what quantization loses is asked for.

    Returns:
      For each vector its mean and, if asked for, what this worker has lost of it, both
      float32 [M, n / M]. What the mean lacks is the mean of what all workers have lost.
    """
    results: list[tuple[tf.Tensor, Optional[tf.Tensor]]] = []
    sent: list[_Sent] = []
    for vector, streams in zip(vectors, keys):
      sent.append(self.send(vector, streams))
      if len(sent) > 1:
        results.append(self.finish(sent[-2], keeps_lost=keeps_lost))
    return [*results, self.finish(sent[-1], keeps_lost=keeps_lost)]

  def send(self, values: tf.Tensor, keys: tf.Tensor) -> _Sent:
    """The first phase."""
    raise NotImplementedError

  def finish(
    self, sent: _Sent, *, keeps_lost: bool
  ) -> tuple[tf.Tensor, Optional[tf.Tensor]]:
    """The second phase."""
    raise NotImplementedError

  def _encode(self, values: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    return self.timed("encode_ms", lambda x: self.quantizer.encode(x, keys), values)

  def _decode(self, codes: tf.Tensor, num_values: int) -> tf.Tensor:
    return self.timed(
      "decode_ms", lambda x: self.quantizer.decode(x, num_values), codes
    )

  def _all_to_all(self, rows: tf.Tensor) -> tf.Tensor:
    return self.timed("exchange_ms", self.group.all_to_all, rows)

  def _all_gather(self, row: tf.Tensor) -> tf.Tensor:
    return self.timed("exchange_ms", self.group.all_gather, row)


class _GatherExchange(_Exchange):
  """One-sided: every worker gets the codes of all, and averages them."""

  def send(self, values: tf.Tensor, keys: tf.Tensor) -> _Sent:
    codes = self._encode(values, keys)
    received = self._all_gather(tf.reshape(codes, [-1]))
    return _Sent(values, keys, codes, received)

  def finish(
    self, sent: _Sent, *, keeps_lost: bool
  ) -> tuple[tf.Tensor, Optional[tf.Tensor]]:
    codes = tf.reshape(sent.received, [-1, *sent.codes.shape])
    decoded = self._decode(codes, sent.values.shape[1])
    lost = sent.values - decoded[self.group.rank] if keeps_lost else None
    return tf.reduce_mean(decoded, axis=0), lost


@dataclasses.dataclass(frozen=True)
class _ChunkExchange(_Exchange):
  """Every worker averages one chunk: the others as codes, itself as it is."""

  two_sided: bool

  def send(self, values: tf.Tensor, keys: tf.Tensor) -> _Sent:
    nothing = tf.zeros([1, self.quantizer.payload_size(values.shape[1])], tf.int32)
    rows = [nothing]  # what stays here
    before, after = self._others
    if values[before].shape[0]:
      rows.insert(0, self._encode(values[before], keys[before]))
    if values[after].shape[0]:
      rows.append(self._encode(values[after], keys[after]))
    codes = tf.concat(rows, axis=0)
    return _Sent(values, keys, codes, self._all_to_all(codes))

  def finish(
    self, sent: _Sent, *, keeps_lost: bool
  ) -> tuple[tf.Tensor, Optional[tf.Tensor]]:
    workers, chunk = sent.values.shape
    own, (before, after) = self.group.rank, self._others
    mean = sent.values[own]
    if workers > 1:
      received = tf.concat([sent.received[before], sent.received[after]], axis=0)
      mean += tf.reduce_sum(self._decode(received, chunk), axis=0)
    mean /= workers
    if self.two_sided:
      means = self._decode(self._all_gather(self._encode(mean, sent.keys[own])), chunk)
    else:
      means = self._all_gather(mean)
    if not keeps_lost:
      return means, None
    lost = sent.values - self.quantizer.decode(sent.codes, chunk)
    # This worker alone knows what its part of the mean loses.
    here = workers * (mean - means[own])[tf.newaxis]
    return means, tf.concat([lost[before], here, lost[after]], axis=0)

  @property
  def _others(self) -> tuple[slice, slice]:
    return slice(self.group.rank), slice(self.group.rank + 1, None)


def _bytes_sent(quantizer: Quantizer, chunk: int, workers: int) -> dict[str, int]:
  """What a worker sends of a vector of M chunks, by the form of the exchange."""
  codes, others = 4 * quantizer.payload_size(chunk), workers - 1
  return {
    "gather": others * workers * codes,
    "one_sided": others * (codes + 4 * chunk),
    "two_sided": others * 2 * codes,
  }


class QuantizedAllReduce(tf.Module):
  """A mean whose tensors travel as the codes of a quantizer.

  Several replicas on one worker are averaged in full precision first; then each of them
  takes its share of the values through the network.

  With error feedback every worker adds to its gradient what quantization lost of the
  step before (Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019; on both
  sides: Tang et al., "DoubleSqueeze", ICML 2019). It needs a quantizer that contracts,
  ‖Q(v) - v‖ < ‖v‖, such as one that rounds to the nearest level: with an unbiased one
  the loss grows without bound.

  Attributes:
    residual: what error feedback keeps, one variable for each tensor that is quantized,
      of its shape, with a value for each replica. The mean over all replicas is what
      the mean gradients lack so far: a run that goes on with other replicas gives it
      to all of them.
  """

  def __init__(
    self,
    quantizer: Quantizer,
    options: Optional[tf.distribute.experimental.CommunicationOptions] = None,
    *,
    two_sided: bool = True,
    error_feedback: bool = False,
    full_precision: Optional[FullPrecision] = None,
    seed: int = 0,
  ):
    """How to send.

    Args:
      quantizer: makes and reads the codes.
      options: pack size in bytes (0: 16 MiB), time-out in seconds, and ring or NCCL.
      two_sided: whether the averages travel back as codes too.
      error_feedback: whether what is lost is made up for in the next step.
      full_precision: tensors that travel in float32 instead.
      seed: of the quantizer's random numbers.
    """
    super().__init__()
    self._quantizer, self._two_sided = quantizer, two_sided
    self._options = options or tf.distribute.experimental.CommunicationOptions()
    self._full_precision = full_precision or FullPrecision()
    self._error_feedback, self._seed = error_feedback, seed
    self.residual: list[tf.Variable] = []

  def build(self, shapes: Sequence[tf.TensorShape], names: Sequence[str]) -> None:
    """Makes the residual for tensors of these shapes and names, if one is kept.

    Called in the strategy's scope, before a checkpoint is restored; else by the first
    step.
    """
    if not self._error_feedback or self.residual:
      return
    narrow, _ = divided(shapes, self._is_narrow(shapes, names))
    self.residual = [
      tf.Variable(
        tf.zeros(shape),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN,
        name=f"residual{index}",
      )
      for index, shape in enumerate(narrow)
    ]

  def __call__(
    self, tensors: Sequence[tf.Tensor], names: Sequence[str], step: tf.Tensor
  ) -> tuple[list[tf.Tensor], Metrics]:
    shapes = [tensor.shape for tensor in tensors]
    with tf.init_scope():
      self.build(shapes, names)
    tensors, start = arrivals(tensors)
    is_narrow = self._is_narrow(shapes, names)
    narrow, wide = divided(tensors, is_narrow)
    means, metrics = self._quantized_means(narrow, step) if narrow else ([], {})
    means = merged(means, mean(wide, self._options), is_narrow)
    means, end = arrivals(means)
    return means, {**metrics, "reduction_ms": elapsed_ms(start, end)}

  def _quantized_means(
    self, tensors: list[tf.Tensor], step: tf.Tensor
  ) -> tuple[list[tf.Tensor], Metrics]:
    across, within = groups(self._options)
    packs = self._packs([tensor.shape for tensor in tensors], across.size, within.size)
    if self.residual:
      tensors = [tensor + lost for tensor, lost in zip(tensors, self.residual)]
    vectors = packs.join(tensors)
    # Each replica of this worker takes its share of the values through the network.
    shares = [
      tf.reshape(within.sum(vector) / within.size, [within.size, across.size, -1])[
        within.rank
      ]
      for vector in vectors
    ]
    replica = across.rank * within.size + within.rank
    keys = hashing.stream_keys(
      self._seed,
      step,
      replica,
      tf.range(packs.count)[:, tf.newaxis],
      tf.range(across.size),
    )
    timed = Stopwatch()
    results = self._exchange(packs.length, across, timed).run(
      shares, tf.unstack(keys), keeps_lost=bool(self.residual)
    )
    metrics = {
      "quantization_error": self._sampled_error(vectors, replica, step),
      **timed.totals,
    }
    means = [
      tf.reshape(within.all_gather(tf.reshape(mean, [-1])), [-1]) for mean, _ in results
    ]
    if self.residual:
      # The mean over a worker's replicas: the others have nothing in this share.
      mine = tf.one_hot(within.rank, within.size, float(within.size))[:, tf.newaxis]
      lost = [tf.reshape(mine * tf.reshape(lost, [1, -1]), [-1]) for _, lost in results]
      for residual, value in zip(self.residual, packs.split(lost)):
        residual.assign(value)
    return packs.split(means), metrics

  def _exchange(self, length: int, group: Group, timed: Stopwatch) -> _Exchange:
    if self._two_sided:
      return _ChunkExchange(self._quantizer, group, timed, two_sided=True)
    sent = _bytes_sent(self._quantizer, length // group.size, group.size)
    if sent["gather"] <= sent["one_sided"]:
      return _GatherExchange(self._quantizer, group, timed)
    return _ChunkExchange(self._quantizer, group, timed, two_sided=False)

  def _sampled_error(
    self, vectors: list[tf.Tensor], replica: int, step: tf.Tensor
  ) -> tf.Tensor:
    """‖Q(g) - g‖ / ‖g‖ of this replica's gradient, in some of its buckets."""
    size = self._quantizer.bucket_size
    each = max(1, _SAMPLED_BUCKETS // len(vectors))
    sample = []
    for vector in vectors:
      buckets = tf.reshape(vector, [-1, size])
      sample.append(buckets[:: max(1, buckets.shape[0] // each)])
    values = tf.reshape(tf.concat(sample, axis=0), [-1])
    key = hashing.stream_keys(self._seed, step, replica, -1)
    codes = self._quantizer.encode(values, key)
    error = self._quantizer.decode(codes, values.shape[0]) - values
    return tf.math.divide_no_nan(tf.norm(error), tf.norm(values))

  def bytes_sent(self, variables: Sequence[tf.Variable], num_workers: int) -> int:
    shapes = [variable.shape for variable in variables]
    is_narrow = self._is_narrow(shapes, [variable.name for variable in variables])
    narrow, wide = divided(shapes, is_narrow)
    packs = self._packs(narrow, num_workers)
    sent = _bytes_sent(self._quantizer, packs.length // num_workers, num_workers)
    form = (
      "two_sided"
      if self._two_sided
      else min(("gather", "one_sided"), key=sent.__getitem__)
    )
    return packs.count * sent[form] + ring_bytes(
      4 * sum(shape.num_elements() for shape in wide), num_workers
    )

  def _is_narrow(
    self, shapes: Sequence[tf.TensorShape], names: Sequence[str]
  ) -> list[bool]:
    return [not self._full_precision(*pair) for pair in zip(names, shapes)]

  def _packs(
    self, shapes: Sequence[tf.TensorShape], workers: int, replicas: int = 1
  ) -> Packs:
    length = (self._options.bytes_per_pack or _BYTES_PER_PACK) // 4
    return Packs(shapes, length, workers * replicas * self._quantizer.bucket_size)
