"""How the workers' gradients become one."""

from dat_tf.communication.all_reduce import AllReduce, MeanAllReduce

__all__ = ["AllReduce", "MeanAllReduce"]
