"""DAT-TF: distributed adversarial training of robust image classifiers.

Importing the package itself is cheap: TensorFlow is imported by the modules that
compute (`dat_tf.adversarial_model`, `dat_tf.attacks`, ...), not here, so that
flags and TF_CONFIG can be checked before TensorFlow starts.
"""

from dat_tf import stack

__version__ = "0.1.0"

stack.prepare()
