"""Whether training gives the same weights, bit for bit, as at another commit.

    python tests/same_weights.py --against=COMMIT [--only=NAME,...]

Trains with the code of that commit, in a work tree of its own, and with the code here,
on this machine: last bits differ from one processor to another. It is for a redesign
that must change nothing, and goes when that is done.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

DIGITS = ["--epsilon=0.2", "--global_batch_size=64", "--mode=train", "--pictures=0"]
FIVE_STEPS = ["--epochs=1", "--global_batch_size=240", "--warmup_epochs=0"]
# Workers and flags of each training, on the digits unless they name other data.
RUNS: dict[str, tuple[int, list[str]]] = {
  "digits": (2, ["--flagfile=flags/digits_dat_pgd.flags", "--mode=train"]),
  "fashion": (
    2,
    [
      "--flagfile=flags/fashion_mnist_dat_pgd.flags",
      "--all_reduce=two_sided",
      "--epochs=1",
      "--warmup_epochs=0",
      "--mode=train",
      "--pictures=0",
    ],
  ),
  **{
    name: (2, [*DIGITS, *FIVE_STEPS, *flags])
    for name, flags in {
      "free": ["--attack=free", "--attack_steps=2"],
      "yopo": ["--attack=yopo", "--attack_steps=3"],
      "trades": ["--objective=trades", "--attack_steps=3"],
      "awp": ["--weight_perturbation=0.01", "--attack_steps=3"],
      "crown_ibp": [
        *("--objective=crown_ibp", "--attack=none", "--epsilon_growing_epochs=0.5")
      ],
      "accumulated": ["--accumulation=2", "--clip_norm=0.1", "--attack_steps=3"],
      "averaged": ["--weight_average=exponential", "--attack=dynamic_pgd"],
      "warm_start": ["--attack=warm_start_pgd", "--attack_steps=2"],
      "momentum": ["--attack=momentum_pgd", "--attack_steps=3"],
      "llr": ["--objective=llr", "--attack_steps=2"],
      "ig_norm": ["--objective=ig_norm", "--attack_steps=2"],
      "curriculum": ["--attack=bim", "--steps_growing_epochs=1", "--attack_steps=3"],
      "wrm": ["--attack=wrm", "--attack_steps=3"],
      "nfgsm": ["--attack=nfgsm", "--gradient_alignment=0.2"],
      "mixed": ["--mixing=cutmix", "--label_smoothing=0.1", "--attack=fgsm"],
      "one_sided": ["--all_reduce=one_sided", "--error_feedback", "--bits=4"],
    }.items()
  },
}


def digest(folder: pathlib.Path) -> str:
  """Of the values of all tensors of a SavedModel."""
  import tensorflow as tf

  reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
  found = hashlib.sha256()
  for name in sorted(reader.get_variable_to_shape_map()):
    if "VARIABLE_VALUE" in name:
      found.update(name.encode() + reader.get_tensor(name).tobytes())
  return found.hexdigest()[:16]


def train(code: pathlib.Path, data: pathlib.Path, name: str, model_dir: str) -> str:
  workers, words = RUNS[name]
  if name != "fashion":
    words = [
      *words,
      f"--train_data={data}/digits/train-*",
      f"--test_data={data}/digits/test-*",
    ]
  else:
    words = [
      *words,
      f"--train_data={data}/fashion/train-*",
      f"--test_data={data}/fashion/test-*",
    ]
  command = [sys.executable, "-m", "dat_tf.launch", f"--num_workers={workers}", "--"]
  done = subprocess.run(
    [*command, "run_dat.py", *words, f"--model_dir={model_dir}"],
    cwd=code,
    env={**os.environ, "PYTHONPATH": str(code)},
    capture_output=True,
    text=True,
  )
  if done.returncode:
    return (done.stdout + done.stderr)[-600:]
  return digest(pathlib.Path(model_dir) / "export")


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--against", required=True)
  parser.add_argument("--only", default="")
  parser.add_argument("--fashion", help="a folder with Fashion-MNIST's records")
  options = parser.parse_args()
  differ = []
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    there = folder / "there"
    subprocess.run(
      ["git", "worktree", "add", "--detach", str(there), options.against],
      cwd=ROOT,
      check=True,
      capture_output=True,
    )
    try:
      (folder / "data").mkdir()
      command = [sys.executable, "tfrecords/build_digits.py"]
      subprocess.run(
        [*command, f"--output_dir={folder}/data/digits"], cwd=ROOT, check=True
      )
      names = options.only.split(",") if options.only else list(RUNS)
      if options.fashion:
        os.symlink(os.path.abspath(options.fashion), folder / "data" / "fashion")
      elif not options.only:
        names.remove("fashion")
      for name in names:
        kept = pathlib.Path(tempfile.gettempdir()) / f"weights-{options.against}-{name}"
        if not kept.exists():
          kept.write_text(train(there, folder / "data", name, f"{folder}/{name}_there"))
        before = kept.read_text()
        after = train(ROOT, folder / "data", name, f"{folder}/{name}_here")
        print(f"{name}: {before}, {'same' if before == after else after}", flush=True)
        differ += [name] if before != after else []
    finally:
      subprocess.run(
        ["git", "worktree", "remove", "--force", str(there)], cwd=ROOT, check=True
      )
  print(f"{len(differ)} differ: {', '.join(differ)}" if differ else "All are the same.")
  return bool(differ)


if __name__ == "__main__":
  sys.exit(main())
