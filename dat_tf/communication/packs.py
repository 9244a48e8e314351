"""Many tensors as a few vectors of equal length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import tensorflow as tf


class Packs:
  """Cuts a list of tensors into packs, and puts it together again.

  All packs have the same length, so that what works on them is compiled once. Tensors
  are packed from the last to the first, as backpropagation delivers them: a pack can be
  sent while the gradients of the next are still computed.
  """

  def __init__(self, shapes: Sequence[tf.TensorShape], length: int, multiple: int):
    """Plans the cuts.

    Args:
      shapes: static shapes of the tensors.
      length: values in a pack, at most, up to rounding; 0: all in one.
      multiple: the length is a multiple of this; zeros fill the last pack up.
    """
    self._shapes = list(shapes)
    total = sum(shape.num_elements() for shape in self._shapes)
    self.count = max(1, math.ceil(total / length)) if length else 1
    self.length = math.ceil(total / self.count / multiple) * multiple
    # Rounding up may have emptied the last packs.
    self.count = max(1, math.ceil(total / self.length)) if total else 0
    self._padding = self.count * self.length - total

  def join(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Tensors of the planned shapes -> `count` vectors [length]."""
    pieces: list[list[tf.Tensor]] = [[] for _ in range(self.count)]
    for tensor, cuts in zip(reversed(tensors), self._cuts()):
      flat = tf.reshape(tensor, [-1])
      whole = len(cuts) == 1
      done = 0
      for pack, _, size in cuts:
        pieces[pack].append(flat if whole else flat[done : done + size])
        done += size
    if self._padding:
      pieces[-1].append(tf.zeros([self._padding]))
    return [tf.concat(parts, axis=0) for parts in pieces]

  def split(self, packs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Undoes `join`."""
    tensors = []
    for shape, cuts in zip(reversed(self._shapes), self._cuts()):
      parts = [packs[pack][start : start + size] for pack, start, size in cuts]
      flat = parts[0] if len(parts) == 1 else tf.concat(parts or [[]], axis=0)
      tensors.append(tf.reshape(flat, shape))
    return tensors[::-1]

  def _cuts(self) -> Iterator[list[tuple[int, int, int]]]:
    """For each tensor, from the last: its parts as (pack, start in it, size)."""
    position = 0
    for shape in reversed(self._shapes):
      end = position + shape.num_elements()
      cuts = []
      while position < end:
        pack, start = divmod(position, self.length)
        size = min(end - position, self.length - start)
        cuts.append((pack, start, size))
        position += size
      yield cuts
