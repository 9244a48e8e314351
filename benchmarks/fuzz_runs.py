"""A run's directory as a stranger may give it, for the report."""

from __future__ import annotations

import io
import json
import pathlib
import struct
from typing import Any

import numpy as np
from fuzz_mutations import Random, as_text, flag_lines, framed, mutated, odd_json, write

from dat_tf.data import framing
from dat_tf.reporting import write_report
from dat_tf.reporting.runs import read_runs

_RESULTS = {
  "standard_accuracy": 0.9,
  "robust_accuracy": {"pgd-20": 0.5, "square": 0.6},
  "test_examples": 8,
  "norm": "linf",
  "epsilon": 0.1,
  "fingerprint": "0",
  "warnings": [{"check": "zero_gradient", "message": "The gradient is 0."}],
  "probed_images": 8,
  "epochs": 2,
  "global_batch_size": 128,
  "num_workers": 2,
  "parameters": 1000,
  "train_seconds": 12.5,
  "examples_per_second": 640.5,
  "bytes_sent_per_step": 1004,
  "fp32_bytes_per_step": 4000,
  "trained_with": {"dat_tf": "1", "python": "3.11"},
}


def _events() -> bytes:
  import tensorflow as tf

  content = b""
  for step in range(3):
    event = tf.compat.v1.Event(step=step, wall_time=1.0)
    value = event.summary.value.add(tag="loss")
    value.metadata.plugin_data.plugin_name = "scalars"
    value.tensor.CopyFrom(tf.make_tensor_proto(1.0 / (1 + step)))
    content += framed(event.SerializeToString())
  return content


def run_directory(rng: Random, folder: pathlib.Path) -> None:
  """Reads, and sometimes draws, what a run left, one file of it odd or damaged."""
  label = np.arange(8, dtype=np.int32) % 3
  outcomes = {
    "example_id": np.arange(8),
    "label": label,
    "prediction": label,
    "adversarial_prediction": (label + label % 2) % 3,
    "fingerprint": np.array("0"),
  }
  axis = np.linspace(0.0, 1.0, 3)
  probes = {
    "fingerprint": np.array("0"),
    "example_id": np.arange(8),
    "epsilons": axis,
    "epsilon_accuracy": axis,
    "noise_accuracy": axis,
    "steps": np.array([0, 1, 20]),
    "steps_accuracy": axis,
    "steps_loss": axis,
    "surface_gradient": axis,
    "surface_random": axis,
    "surface": np.outer(axis, axis),
  }
  changed = rng.choice(["results", "settings", "outcomes", "probes", "events"])
  results: Any = _RESULTS
  if changed == "results":
    results = odd_json(rng, results)
    content = as_text(rng, results)
  else:
    content = json.dumps(results).encode()
  write(folder, "results.json", content)
  lines = b"--model_dir=m\n--epsilon=0.1\n--norm=linf\n--bits=4\n"
  write(
    folder, "config.flags", flag_lines(rng, "x") if changed == "settings" else lines
  )
  for name, arrays in (("pgd-20", outcomes), ("square", outcomes), ("probes", probes)):
    if changed == ("probes" if name == "probes" else "outcomes"):
      arrays = dict(arrays)
      key = rng.choice(sorted(arrays))
      odd = [np.array("x"), np.zeros([3, 3]), np.full(8, -1), np.full(8, 2**31 - 1)]
      odd += [np.array([np.nan] * 3), np.array([{}]), np.zeros(0), np.full(3, 1e308)]
      arrays[key] = rng.choice(odd)
      if rng.random() < 0.2:
        del arrays[key]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content = buffer.getvalue()
    if changed == ("probes" if name == "probes" else "outcomes") and rng.random() < 0.5:
      content = mutated(rng, content)
    write(folder, f"evaluation/{name}.npz", content)
  events = _events()
  if changed == "events":
    events = mutated(rng, events)
    if rng.random() < 0.5:
      events = b"".join(framed(mutated(rng, e)) for e in _parts_of(_events()))
    head = struct.pack("<Q", rng.choice([2**36, 2**63, 2**10]))
    events += head + struct.pack("<I", framing._masked_crc32c(head))
  write(folder, "logs/train/events.out.tfevents.1", events)
  if rng.random() < 0.1:
    write_report(str(folder / "out"), [str(folder / "in")])
  else:  # drawing takes most of the time
    read_runs([str(folder / "in")])


def _parts_of(content: bytes) -> list[bytes]:
  """The records of a file, whose framing is whole."""
  parts, place = [], 0
  while place < len(content):
    (length,) = struct.unpack("<Q", content[place : place + 8])
    parts.append(content[place + 12 : place + 12 + length])
    place += 16 + length
  return parts
