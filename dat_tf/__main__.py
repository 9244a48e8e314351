"""`python -m dat_tf` and `dat-tf`: the program, as `python run_dat.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from dat_tf import config as config_lib
from dat_tf.base.errors import exit_on_user_error
from dat_tf.compat import quiet
from dat_tf.program.startup import leave, own_temporary_directory
from dat_tf.workers.cluster import Cluster


def main(argv: Sequence[str]) -> None:
  """Does what the flags say, as one of the workers that TF_CONFIG names."""
  config = config_lib.parse(argv)
  cluster = Cluster.from_environment()
  own_temporary_directory()
  try:
    # TensorFlow is loaded only now: a mistake in the flags shows at once.
    with quiet():
      from dat_tf.program import modes
    modes.run(config, cluster)
  except KeyboardInterrupt:
    print("Interrupted: the same command goes on from what is kept.")
    sys.exit(130)


def run() -> NoReturn:
  """Runs the program and ends the process with its exit code."""
  try:
    leave(exit_on_user_error(main, config_lib.FLAGS)(sys.argv))
  except SystemExit as request:
    leave(request.code)
  except BaseException:
    sys.excepthook(*sys.exc_info())
    leave(1)


if __name__ == "__main__":
  run()
