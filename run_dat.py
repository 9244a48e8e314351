"""Distributed adversarial training from the command line.

    python run_dat.py --flagfile=flags/NAME.flags [--flag=value ...]

on one machine, or, with the same command and TF_CONFIG, on each of many. Many workers
on one machine: python -m dat_tf.launch --num_workers=N -- run_dat.py --flagfile=...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dat_tf import config as config_lib
from dat_tf.cluster import Cluster
from dat_tf.errors import exit_on_user_error
from dat_tf.startup import own_temporary_directory, quiet


def main(argv: Sequence[str]) -> None:
  config = config_lib.parse(argv)
  cluster = Cluster.from_environment()
  own_temporary_directory()
  try:
    # TensorFlow is loaded only now: a mistake in the flags shows at once.
    with quiet():
      from dat_tf import modes
    modes.run(config, cluster)
  except KeyboardInterrupt:
    print("Interrupted: the same command goes on from what is kept.")
    sys.exit(130)


if __name__ == "__main__":
  sys.exit(exit_on_user_error(main)(sys.argv))
