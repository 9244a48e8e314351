"""How inputs are made and broken: bytes, JSON, flagfiles, records."""

from __future__ import annotations

import copy
import json
import pathlib
import random
import struct
from typing import Any

from dat_tf.data import framing

_ODD = [0, 1, -1, 2**31, 2**63, 10**400, 1.5, True, None, "", "x" * 5000, [], {}]
_ODD += [[[]], "../../evil", "/tmp/evil", "\0", "\u2028", "ε", "<svg onload=x>"]


class AcceptedBroken(Exception):
  """A broken input was taken for a good one."""


Random = random.Random


def mutated(rng: Random, content: bytes) -> bytes:
  """The content after a few changes of bits, bytes, numbers and stretches."""
  data = bytearray(content)
  for _ in range(rng.choice([1, 1, 2, 5])):
    place = rng.randrange(len(data) + 1)
    end = min(len(data), place + rng.choice([1, 2, 4, 8, 64, 512]))
    kind = rng.randrange(7)
    if kind == 0 and place < len(data):
      data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
      data[place:end] = bytes(rng.randrange(256) for _ in range(end - place))
    elif kind == 2:
      del data[place:end]
    elif kind == 3:
      data[place:place] = data[place:end]
    elif kind == 4:
      del data[place:]
    elif kind == 5:
      number = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**36, 2**62, 2**63, 2**64 - 1])
      data[place : place + 8] = struct.pack(rng.choice("<>") + "Q", number)
    else:
      data[place:end] = rng.choice([b"\0", b"\xff", b"{", b"[", b'"', b"-"]) * 8
  return bytes(data)


def odd_json(rng: Random, value: Any) -> Any:
  """The value with a few of its parts replaced, dropped or wrapped."""
  value = copy.deepcopy(value)
  for _ in range(rng.choice([1, 1, 2, 4])):
    parts: list[tuple[Any, Any]] = []

    def collect(part: Any, parts: list[tuple[Any, Any]] = parts) -> None:
      keys = range(len(part)) if isinstance(part, list) else part
      for key in list(keys) if isinstance(part, (dict, list)) else []:
        parts.append((part, key))
        collect(part[key])

    collect(value)
    if not parts:
      return rng.choice(_ODD)
    part, key = rng.choice(parts)
    kind = rng.randrange(4)
    if kind == 0:
      del part[key]
    elif kind == 1 and isinstance(part, dict):
      part[str(rng.choice(_ODD))] = part.pop(key)
    else:
      part[key] = copy.deepcopy(rng.choice(_ODD))
  return value


def as_text(rng: Random, value: Any) -> bytes:
  """JSON, sometimes damaged or nested without end."""
  text = json.dumps(value).encode()
  kind = rng.randrange(10)
  if kind == 0:
    return b'{"a":' * 50_000 + text
  if kind == 1:
    return b"[" * 100_000
  return mutated(rng, text) if kind < 6 else text


def write(folder: pathlib.Path, name: str, content: bytes) -> str:
  """Puts a file into the input of a target; returns its path."""
  path = folder / "in" / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return str(path)


_LINES = ["--epsilon=8/255", "--epochs=3", "--decay_epochs=3,5", "--model_dir=m"]
_LINES += ["--train_data=a-*,~/b", "# note", "--mode=train", "--attacks=pgd-5"]
_LINES += ["--data_is_local", "--input_range=0,1", "--full_precision_names=a|b"]
_VALUES = [
  "1e99999999",
  "9" * 5000,
  "1/0",
  "nan",
  "-1",
  "'x",
  '"',
  "a # b",
  "~",
  "(",
  "٣",
]


def flag_lines(rng: Random, path: str) -> bytes:
  """The text of a flagfile, whole or broken, that may name itself, at `path`."""
  lines = [rng.choice(_LINES) for _ in range(rng.randrange(1, 8))]
  for number, line in enumerate(lines):
    kind = rng.randrange(8)
    if kind == 0:
      lines[number] = f"{line.partition('=')[0]}={rng.choice(_VALUES)}"
    elif kind == 1:
      lines[number] = f"--flagfile={rng.choice([path, '/dev/zero', '/tmp', 'nowhere'])}"
    elif kind == 2:
      lines[number] = rng.choice([line.replace("=", " "), f"'{line}'", line.upper()])
  content = "\n".join(lines).encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
  return mutated(rng, content) if rng.random() < 0.5 else content


def framed(serialized: bytes) -> bytes:
  """A record of a TFRecord file, its checksums right."""
  head = struct.pack("<Q", len(serialized))
  return b"".join(
    [
      head,
      struct.pack("<I", framing._masked_crc32c(head)),
      serialized,
      struct.pack("<I", framing._masked_crc32c(serialized)),
    ]
  )
