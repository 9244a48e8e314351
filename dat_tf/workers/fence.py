"""Keeps the network away from servers that are for this host alone.

TensorFlow's servers, which run whatever they are asked to by whoever asks, listen at
all of a host's addresses, whatever address they are given. Linux lets a process put a
filter on its own listening sockets, after which they see only packets of this host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
# Instructions of classic BPF, <linux/filter.h>: load a byte or a word of the packet,
# compare it or some bits of it, return. Offsets from here on count from the IP header.
_IP = 0xFFFFFFFF & -0x100000
_LOAD_BYTE, _LOAD, _AND, _IF_EQUAL, _RETURN = 0x30, 0x20, 0x54, 0x15, 0x06
# Instruction, how many to pass over if it holds and if not, number.
_FROM_LOOPBACK = (
  (_LOAD_BYTE, 0, 0, _IP),
  (_AND, 0, 0, 0xF0),  # the version of IP
  (_IF_EQUAL, 8, 0, 0x40),
  (_LOAD, 0, 0, _IP + 8),  # source ::1, in four words
  (_IF_EQUAL, 0, 9, 0),
  (_LOAD, 0, 0, _IP + 12),
  (_IF_EQUAL, 0, 7, 0),
  (_LOAD, 0, 0, _IP + 16),
  (_IF_EQUAL, 0, 5, 0),
  (_LOAD, 0, 0, _IP + 20),
  (_IF_EQUAL, 2, 3, 1),
  (_LOAD_BYTE, 0, 0, _IP + 12),  # source 127.0.0.0/8
  (_IF_EQUAL, 0, 1, 127),
  (_RETURN, 0, 0, 0xFFFFFFFF),
  (_RETURN, 0, 0, 0),
)


def is_loopback(host: str) -> bool:
  """Whether a name or address, in brackets or not, means this host to itself."""
  return host.strip("[]") in _LOOPBACK or host.startswith("127.")


def only_from_this_host(port: int) -> bool:
  """Drops what comes from other hosts to this process's servers at a port.

  Returns:
    Whether there is such a server, and it is fenced; False where the system cannot.
  """
  program = b"".join(struct.pack("HBBI", *line) for line in _FROM_LOOPBACK)
  buffer = ctypes.create_string_buffer(program)
  option = struct.pack("HP", len(_FROM_LOOPBACK), ctypes.addressof(buffer))
  fenced = False
  if sys.platform != "linux":
    return fenced
  for name in os.listdir("/proc/self/fd"):
    # Most are no sockets, and some are closed by now.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as one:
      listens = one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
      )
      if listens and one.getsockname()[1] == port:
        one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
        fenced = True
  return fenced
