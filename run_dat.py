"""Distributed adversarial training from the command line.

    python run_dat.py --flagfile=flags/NAME.flags [--flag=value ...]

on one machine, or, with the same command and TF_CONFIG, on each of many. Many workers
on one machine: python -m dat_tf.launch --num_workers=N -- run_dat.py --flagfile=...
Once the package is installed, `dat-tf` is the same program, from any directory.
"""

from dat_tf.__main__ import run

if __name__ == "__main__":
  run()
