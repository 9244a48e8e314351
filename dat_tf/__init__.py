"""DAT-TF: distributed adversarial training of robust image classifiers.

Importing the package itself is cheap: TensorFlow is imported by the modules that
compute (`dat_tf.adversarial_model`, `dat_tf.attacks`, ...), not here, so that
flags and TF_CONFIG can be checked before TensorFlow starts.
"""

import os
import sys

__version__ = "0.1.0"

if not (3, 9) <= sys.version_info[:2] <= (3, 11):
  print(
    "DAT-TF needs Python 3.9, 3.10 or 3.11, the versions that TensorFlow Addons 0.23 "
    f"and TensorFlow 2.15 support; this is Python {sys.version.split()[0]}.",
    file=sys.stderr,
  )
  raise SystemExit(2)

# Read when TensorFlow is loaded; a value set by the user wins.

# Level 1 hides TensorFlow's start-up chatter (INFO) and keeps its warnings.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

# TensorFlow uses oneDNN's kernels by itself on some processors only (those with AVX-512
# VNNI or AMX); those with AVX2 gain by them too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
