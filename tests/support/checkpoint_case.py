"""Checkpoints of a model of one number, and damage to their files."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import tensorflow as tf

from dat_tf.program.checkpoint_files import START, Position
from dat_tf.program.checkpointing import Checkpoints


def scalar_model(value):
  model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
  set_value(model, value)
  return model


def set_value(model, value):
  model.set_weights([np.full_like(w, value) for w in model.get_weights()])


class FilesCase(tf.test.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = os.path.join(
      tempfile.mkdtemp(dir=self.get_temp_dir()), "checkpoints"
    )

  def newest(self):
    """(epochs, value) as a run that starts now restores them; None without any."""
    model = scalar_model(-1.0)
    checkpoints = Checkpoints(self.directory, {"classifier": model})
    newest = checkpoints.newest()
    if newest == START:
      return None
    checkpoints.restore(newest)
    return newest.epochs, float(model.get_weights()[0][0, 0])

  def save(self, *epochs, **kwargs):
    model, copy = scalar_model(0.0), scalar_model(0.0)
    copies = {"classifier": copy} if not kwargs.get("worker") else None
    checkpoints = Checkpoints(self.directory, {"classifier": model}, copies, **kwargs)
    for epoch in epochs:
      set_value(model, 10.0 * epoch)
      checkpoints.save(Position(epoch))
      # What is saved is the state at that time.
      set_value(model, -5.0)
    checkpoints.finish()


def cut(path):
  os.truncate(path, os.path.getsize(path) // 2)


def empty(path):
  os.truncate(path, 0)


def flip(path, place=0.5):
  with open(path, "r+b") as file:
    file.seek(int(place * os.path.getsize(path)))
    byte = file.read(1)
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte[0] ^ 4]))


def fill(path):
  with open(path, "w") as file:
    file.write("\0garbage {" * 5)


def point_nowhere(path):
  with open(path, "w") as file:
    file.write('model_checkpoint_path: "epoch-9"\n')
