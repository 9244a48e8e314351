"""The peers of benchmarks/peers.py, which runs this in the peers' own environment.

    python torch_peers.py SPEC

SPEC is a JSON object: `part` (step, autoattack or train), `entrant`, `network`,
`shape` (height, width, channels), `batch`, `epsilon`, `threads`, `data` (an .npz file),
and what the part needs. Once all is built this writes `ready`; for each line `run N`
that it reads, it then writes the seconds that N units took, and what else was measured.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import torch
import torch_steps
import torch_suites
import torch_training

PARTS = {
  "step": torch_steps.measure,
  "autoattack": torch_suites.measure,
  "train": torch_training.measure,
}


def main() -> None:
  spec = json.loads(sys.argv[1])
  # Libraries write to stdout what they like: the answers go where they do not.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  torch.set_num_threads(spec["threads"])
  torch.manual_seed(0)
  np.random.seed(0)
  run = PARTS[spec["part"]](spec)
  print("ready", file=answers, flush=True)
  for line in sys.stdin:
    word, count = line.split()
    if word != "run":
      raise ValueError(f"{word!r} is no command.")
    print(*run(int(count)), file=answers, flush=True)


if __name__ == "__main__":
  main()
