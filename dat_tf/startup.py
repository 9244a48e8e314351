"""How programs start: flags checked first, TensorFlow's usual noise dropped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Callable, Optional

from absl import app, flags

from dat_tf import flagfiles
from dat_tf.compat import NOISE
from dat_tf.errors import UserError, exit_on_user_error

_NOTHING = re.compile(rb"(?!)")


@contextlib.contextmanager
def quiet(noise: re.Pattern[bytes] = NOISE) -> Iterator[None]:
  """While it lasts, lines on stderr in which `noise` is found are dropped.

  By default it is what TensorFlow is known to print.

  Libraries below Python write to the file descriptor, so it is the descriptor that is
  caught; everything but noise is shown at the end, and all of it after an exception.
  """
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as caught:
    os.dup2(caught.fileno(), 2)
    try:
      yield
    except BaseException:
      noise = _NOTHING
      raise
    finally:
      sys.stderr.flush()
      os.dup2(stderr, 2)
      os.close(stderr)
      caught.seek(0)
      for line in caught:
        if not noise.search(line):
          os.write(2, line)


def run_script(main: Callable[[Sequence[str]], Optional[int]]) -> None:
  """Parses a script's absl flags, calls `main` and exits with its code.

  Unlike with `absl.app.run`, a mistake in the flags is one line and exit code 2, as any
  other mistake of the user.
  """

  @exit_on_user_error
  def parse_and_run(argv: Sequence[str]) -> Optional[int]:
    app.define_help_flags()
    try:
      arguments = flags.FLAGS([argv[0], *flagfiles.arguments(argv[1:])])
    except flags.Error as error:
      raise UserError(str(error)) from None
    try:
      return main(arguments)
    except KeyboardInterrupt:
      print("Interrupted.", file=sys.stderr)
      return 128 + signal.SIGINT

  sys.exit(parse_and_run(sys.argv))
