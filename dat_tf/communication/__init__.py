"""How the workers' gradients become one."""

from dat_tf.communication.all_reduce import AllReduce, FullPrecision, MeanAllReduce
from dat_tf.communication.quantized import QuantizedAllReduce
from dat_tf.communication.quantizers import BucketQuantizer, Quantizer

__all__ = [
  "AllReduce",
  "BucketQuantizer",
  "FullPrecision",
  "MeanAllReduce",
  "QuantizedAllReduce",
  "Quantizer",
]
