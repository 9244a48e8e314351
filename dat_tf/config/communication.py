"""How the workers' gradients become one, and how long workers wait for each other."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dat_tf.base.errors import UserError
from dat_tf.config.declaring import (
  Option,
  choice,
  integer,
  number,
  options,
  switch,
  text,
)
from dat_tf.config.refusals import Refusals

if TYPE_CHECKING:
  import tensorflow as tf

  from dat_tf.communication import AllReduce
  from dat_tf.config.settings import Settings
  from dat_tf.workers.joined import Workers

_EXACT = ("full_precision_below", "full_precision_names")
_CODES = ("bits", "bucket_size", "quantization_scale", *_EXACT)
_ALL_REDUCE = options(
  Option("auto", "two_sided if it is faster than fp32 here", _CODES),
  Option("fp32"),
  Option("fp16", "gradients travel in 16 bits", _EXACT),
  Option(
    "one_sided", "gradients travel as quantized codes", (*_CODES, "error_feedback")
  ),
  Option(
    "two_sided",
    "gradients and their mean travel as quantized codes",
    (*_CODES, "error_feedback"),
  ),
)
_COLLECTIVES = options(
  Option("auto"), Option("ring", "gRPC"), Option("nccl", "needs GPUs")
)
_SCALES = options(
  Option("largest", "the largest magnitude of the bucket"),
  Option("l2_norm", "the norm of the bucket"),
)


@dataclasses.dataclass(frozen=True)
class CommunicationSettings:
  """How workers communicate."""

  ROOM = "communication"

  communication: str = choice(
    "auto", _COLLECTIVES, "Collectives between the workers.", may_change=True
  )
  all_reduce: str = choice("fp32", _ALL_REDUCE, "How gradients are averaged.")
  bits: str = choice("8", ("2", "4", "8"), "Bits per quantized value, sign included.")
  bucket_size: int = integer(
    1024,
    "Number of values that are quantized with one scale: a multiple of 256 / bits.",
    lower=1,
  )
  quantization_scale: str = choice(
    "largest", _SCALES, "What the levels of a bucket are multiples of."
  )
  error_feedback: bool = switch(
    "Round to the nearest level, and add what is lost to the gradient of the next "
    "step.",
  )
  full_precision_below: int = integer(
    1024,
    "Tensors of fewer values than this travel in fp32, as vectors always do.",
  )
  full_precision_names: str = text(
    "", "Regular expression: tensors in whose name it is found travel in fp32."
  )
  bytes_per_pack: int = integer(
    0,
    "Bytes of gradient that are reduced together; 0 is 4 MiB, or 16 MiB if quantized.",
    may_change=True,
  )
  collective_timeout: float = number(
    600,
    "Seconds after which a step that waits for other workers ends the run.",
    above=0,
    may_change=True,
  )
  start_timeout: float = number(
    3600,
    "Seconds that a worker waits at the start until all others answer.",
    above=0,
    may_change=True,
  )
  grace_seconds: float = number(
    30,
    "Seconds that training has to save and end after SIGTERM or SIGUSR1.",
    above=0,
    may_change=True,
  )


def make_all_reduce(
  settings: Settings,
  variables: Sequence[tf.Variable],
  workers: Workers,
) -> AllReduce:
  """What averages the gradients of these variables. All workers must call it."""
  import tensorflow as tf

  from dat_tf import communication, compat
  from dat_tf.communication import choice as fastest_of
  from dat_tf.communication import quantizers

  options = workers.options
  plain = communication.MeanAllReduce(options)
  if settings.all_reduce == "fp32":
    return plain
  full_precision = communication.FullPrecision(
    settings.full_precision_below, settings.full_precision_names
  )
  if settings.all_reduce == "fp16":
    return communication.MeanAllReduce(
      options, dtype=tf.float16, full_precision=full_precision
    )
  with compat.quiet():
    quantizers.start_compiler()
  quantized = communication.QuantizedAllReduce(
    communication.BucketQuantizer(
      int(settings.bits),
      settings.bucket_size,
      getattr(quantizers, settings.quantization_scale),
      quantizers.nearest if settings.error_feedback else quantizers.stochastic,
    ),
    options,
    two_sided=settings.all_reduce != "one_sided",
    error_feedback=settings.error_feedback,
    full_precision=full_precision,
    seed=settings.seed,
  )
  with workers.strategy.scope():
    quantized.build([v.shape for v in variables], [v.name for v in variables])
  if settings.all_reduce != "auto":
    return quantized
  candidates: dict[str, AllReduce] = {"fp32": plain, "two_sided": quantized}
  times = fastest_of.time_all_reduces(candidates, variables, workers)
  fastest = min(times, key=times.__getitem__)
  if workers.is_chief:
    measured = ", ".join(f"{name} {time:.3g} ms" for name, time in times.items())
    print(f"--all_reduce=auto: {measured} a step; {fastest} it is.", flush=True)
  return candidates[fastest]


def contradictions(settings: Settings) -> Refusals:
  """What does not go together, see `refusals`."""
  together = 256 // int(settings.bits)
  yield (
    settings.bucket_size % together,
    f"--bucket_size={settings.bucket_size}: at --bits={settings.bits} choose a "
    f"multiple of {together}, which are packed together.",
  )
  yield (
    settings.error_feedback and settings.quantization_scale != "largest",
    "--error_feedback takes --quantization_scale=largest: beside the norm most values "
    "round to 0, and what is lost would grow without end.",
  )
  try:
    re.compile(settings.full_precision_names)
  except re.error as error:
    raise UserError(
      f"--full_precision_names={settings.full_precision_names} is no regular "
      f"expression: {error}."
    ) from None
