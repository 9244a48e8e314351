"""One run at a time in a directory, and what is said to the others.

A file `lock` names the process that writes in the directory. On local discs the kernel
holds it too, and lets go when the process ends, however that is. The owner touches the
file while it lives: a process on another host, of which the kernel here may know
nothing, is taken for dead once it has not done so for a while.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from typing import Optional

from dat_tf.base import files
from dat_tf.base.errors import UserError
from dat_tf.base.run_directory import RunDirectory

_BEAT = 20.0  # seconds between two touches
_DEAD = 180.0  # seconds without one; clocks of hosts may differ by less


class Lock:
  """A directory in which this process alone writes, until `release`."""

  def __init__(self, directory: str):
    """Takes the lock; one whose owner is dead is taken over, with a printed line.

    Args:
      directory: made if need be.

    Raises:
      UserError: another run writes there, or the directory cannot be written.
    """
    import tensorflow as tf

    self.directory, self.path = directory, RunDirectory(directory).lock
    self._is_local = "://" not in directory
    self._is_new = not tf.io.gfile.exists(directory)
    self._text = json.dumps(
      {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "id": uuid.uuid4().hex,
      }
    )
    with files.explained_writing(directory):
      tf.io.gfile.makedirs(directory)
      self._file = self._open() if self._is_local else None
      try:
        self._check_owner()
        if self._file is None:
          files.write_text(self.path, self._text)
        else:
          os.ftruncate(self._file, 0)
          os.pwrite(self._file, self._text.encode(), 0)
      except BaseException:
        self._close()
        raise
    self._over = threading.Event()
    threading.Thread(target=self._beat, daemon=True).start()

  def _open(self) -> Optional[int]:
    """Has the kernel hold the file; its descriptor, or None if it cannot."""
    while True:
      file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        os.close(file)
        if error.errno in (errno.EAGAIN, errno.EACCES):
          raise self._taken(_owner(self.path)) from None
        return None  # what stands in the file must do
      # Its owner may have removed it since it was opened.
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file), os.stat(self.path)):
          return file
      os.close(file)

  def _check_owner(self) -> None:
    """Raises UserError if another process, which lives, has written the file."""
    owner = _owner(self.path)
    if not owner:
      return
    # The kernel would not have let this process hold the file.
    is_dead = self._file is not None and owner["host"] == socket.gethostname()
    if not is_dead and _is_alive(owner, self.path):
      raise self._taken(owner)
    print(
      f"Warning: the lock on {self.directory} is taken over: process {owner['pid']} on "
      f"{owner['host']}, which held it since {owner['since']}, has ended.",
      flush=True,
    )

  def _taken(self, owner: dict[str, str]) -> UserError:
    who = "another run"
    if owner:
      who = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    return UserError(
      f"{self.directory} is in use by {who}: wait until that has ended, or choose "
      f"another --model_dir; if it has ended, remove {self.path}."
    )

  def check(self) -> None:
    """Makes sure that the directory is still this process's own.

    Raises:
      UserError: it was removed, or another run has taken it over.
    """
    try:
      text = files.read_text(self.path)
    except OSError:
      text = None
    if text != self._text:
      raise UserError(
        f"{self.path}, the lock of this run, is gone or another's: the directory was "
        "removed or taken over while the run was writing there. Start it again."
      )

  def release(self) -> None:
    """Lets others in; a directory that was made for nothing but the lock goes."""
    import tensorflow as tf

    self._over.set()
    with contextlib.suppress(UserError, tf.errors.OpError):
      self.check()
      tf.io.gfile.remove(self.path)
      if self._is_new and not files.names(self.directory):
        tf.io.gfile.rmtree(self.directory)
    self._close()

  def _close(self) -> None:
    if self._file is not None:
      os.close(self._file)
      self._file = None

  def _beat(self) -> None:
    while not self._over.wait(_BEAT):
      # A lock that is lost shows when the run writes next.
      with contextlib.suppress(Exception):
        self.check()
        if self._is_local:
          os.utime(self.path)
        else:
          files.write_text(self.path, self._text)


def owner_of(directory: str) -> Optional[dict[str, str]]:
  """`host`, `pid` and `since` of the process that writes in a directory now, if any."""
  path = RunDirectory(directory).lock
  owner = _owner(path)
  return owner if owner and _is_alive(owner, path) else None


def _owner(path: str) -> dict[str, str]:
  """Who has written the file; empty if nobody has, or it is damaged."""
  try:
    owner = json.loads(files.read_text(path) or "{}")
    int(owner["pid"])
    return {name: str(owner[name]) for name in ("host", "pid", "since")}
  except (UserError, ValueError, KeyError, TypeError):
    return {}


def _is_alive(owner: dict[str, str], path: str) -> bool:
  """Whether the process that has written the file lives, as far as can be known."""
  import tensorflow as tf

  if owner["host"] == socket.gethostname():
    return _lives(int(owner["pid"]))
  return time.time() - tf.io.gfile.stat(path).mtime_nsec / 1e9 <= _DEAD


def _lives(pid: int) -> bool:
  if pid == os.getpid():  # of a process before this one
    return False
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
