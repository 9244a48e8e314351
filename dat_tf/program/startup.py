"""How programs start and end: flags checked first, temporary files swept."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import glob
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Callable, NoReturn, Optional, Union

from absl import app, flags

from dat_tf.base.errors import UserError, exit_on_user_error
from dat_tf.config import flagfiles

# Set once the process ends: from then on no thread may wait for other workers.
LEAVING = threading.Event()
_MAKING, _TEMPORARY = ".dat-tf-making-", ".dat-tf-temporary-"


def own_temporary_directory() -> None:
  """Gives this process a temporary directory of its own, until it ends.

  TensorFlow's AutoGraph writes files there, some 30 a worker, and a process that is
  killed removes none. The kernel holds a lock on the directory while the process lives;
  the next process removes the directories that nobody holds.
  """
  parent = tempfile.gettempdir()
  for path in glob.glob(os.path.join(glob.escape(parent), f"{_TEMPORARY}*")):
    with contextlib.suppress(OSError):
      held = _hold(path)
      shutil.rmtree(path, ignore_errors=True)
      os.close(held)
  made = tempfile.mkdtemp(prefix=_MAKING)
  # Where the file system has no locks, nobody removes what another process has left.
  with contextlib.suppress(OSError):
    _hold(made)
  # Held before it has the name of those that are removed.
  own = os.path.join(parent, _TEMPORARY + os.path.basename(made)[len(_MAKING) :])
  os.rename(made, own)
  atexit.register(shutil.rmtree, own, ignore_errors=True)
  tempfile.tempdir = own


def _hold(path: str) -> int:
  """Locks a directory while the descriptor that it returns is open.

  Raises:
    OSError: another process holds it.
  """
  descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    os.close(descriptor)
    raise
  return descriptor


def leave(code: Union[int, str, None]) -> NoReturn:
  """Ends the process as `sys.exit` does, but at once.

  To take a TensorFlow input pipeline apart before its end, as when a run is told to end
  or fails, takes up to a minute: one of its threads sleeps as long. An interpreter that
  ends would wait for it.
  """
  if isinstance(code, str):
    print(code, file=sys.stderr)
    code = 1
  LEAVING.set()
  for thread in threading.enumerate():  # a checkpoint may be on its way
    if not thread.daemon and thread is not threading.current_thread():
      thread.join()
  if tempfile.tempdir and _TEMPORARY in tempfile.tempdir:
    shutil.rmtree(tempfile.tempdir, ignore_errors=True)
  with contextlib.suppress(OSError):  # whoever read it has left
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(code or 0)


def run_script(main: Callable[[Sequence[str]], Optional[int]]) -> None:
  """Parses a script's absl flags, calls `main` and exits with its code.

  Unlike with `absl.app.run`, a mistake in the flags is one line and exit code 2, as any
  other mistake of the user.
  """

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

  sys.exit(exit_on_user_error(parse_and_run, frozenset(flags.FLAGS))(sys.argv))
