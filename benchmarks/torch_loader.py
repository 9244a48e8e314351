"""A torchvision DataLoader that takes its turns in benchmarks/input_pipeline.py.

It runs in an interpreter of its own, which has torch and no TensorFlow: for each number
of batches that it reads, a line each, it writes the seconds that they took.
"""

from __future__ import annotations

import os
import sys
import time

import PIL.Image
import torch

try:
  from torchvision import transforms
except RuntimeError:
  # A torchvision built for CUDA cannot load its operators beside a torch without. The
  # transforms need none, but importing them asks for these two.
  for name in [name for name in sys.modules if name.startswith("torchvision")]:
    del sys.modules[name]
  operators = torch.library.Library("torchvision", "DEF")
  for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
  from torchvision import transforms


class Photographs(torch.utils.data.Dataset):
  """The JPEGs of a directory, cropped and mirrored at random."""

  def __init__(self, directory: str, size: int):
    self._paths = sorted(
      os.path.join(directory, name) for name in os.listdir(directory)
    )
    self._transform = transforms.Compose(
      [
        transforms.RandomResizedCrop(size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
      ]
    )

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> torch.Tensor:
    with open(self._paths[index], "rb") as file:
      return self._transform(PIL.Image.open(file).convert("RGB"))


def main() -> None:
  directory = sys.argv[1]
  size, batch, processes, filling = map(int, sys.argv[2:])
  dataset = Photographs(directory, size)
  for line in sys.stdin:
    batches = int(line)
    sampler = torch.utils.data.RandomSampler(
      dataset, replacement=True, num_samples=batch * (filling + batches)
    )
    loader = iter(
      torch.utils.data.DataLoader(
        dataset, batch, sampler=sampler, num_workers=processes
      )
    )
    for _ in range(filling):
      next(loader)
    started = time.perf_counter()
    for _ in range(batches):
      next(loader)
    print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
  main()
