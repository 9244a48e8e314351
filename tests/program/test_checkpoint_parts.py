"""What each replica keeps for itself: every worker saves and restores its own."""

from __future__ import annotations

import contextlib
import io
import os
from unittest import mock

import tensorflow as tf
from checkpoint_case import FilesCase, flip, scalar_model

from dat_tf.base import files
from dat_tf.base.errors import UserError
from dat_tf.program import checkpoint_files, checkpointing
from dat_tf.program.checkpoint_files import Position
from dat_tf.program.checkpointing import Checkpoints


class WorkersTest(FilesCase):
  """What each replica keeps for itself, of two workers."""

  def checkpoints(self, worker, value, num_workers=2):
    self.own = tf.Variable([value, -value])
    model = scalar_model(1.0)
    copies = {"classifier": scalar_model(0.0)} if worker == 0 else None
    return Checkpoints(
      self.directory,
      {"classifier": model},
      copies,
      replica_state={"statistics": [self.own]},
      worker=worker,
      num_workers=num_workers,
    )

  def save_both(self, position):
    first, second = (self.checkpoints(i, 1.0 + 2.0 * i) for i in (0, 1))
    first.save(position)
    # The chief waits for the other worker.
    self.assertNotIn(f"{position.name}.index", files.names(self.directory))
    second.save(position)
    for each in (first, second):
      each.finish()
    self.assertIn(f"{position.name}.index", files.names(self.directory))

  def restored(self, worker, num_workers=2):
    checkpoints = self.checkpoints(worker, 0.0, num_workers)
    checkpoints.restore(checkpoints.newest())
    return self.own.numpy().tolist()

  def test_each_gets_its_own(self):
    self.save_both(Position(1, 20))
    self.assertEqual(self.restored(0), [1.0, -1.0])
    self.assertEqual(self.restored(1), [3.0, -3.0])

  def test_others_get_the_mean(self):
    self.save_both(Position(1))
    for worker in range(3):
      self.assertEqual(self.restored(worker, 3), [2.0, -2.0])

  def test_the_older_ones_go_with_all_files(self):
    for position in (Position(1), Position(1, 20), Position(1, 100), Position(2)):
      self.save_both(position)
    names = {name.split(".")[0] for name in os.listdir(self.directory)}
    stems = ["epoch-1-step-100", "epoch-2"]
    expected = {f"{s}{w}" for s in stems for w in ("", *self.workers)}
    self.assertEqual(names, {*expected, "checkpoint"})

  workers = ("-worker-0-of-2", "-worker-1-of-2")

  def test_damage_is_noticed_by_the_one_whose_file_it_is(self):
    self.save_both(Position(1, 3))
    self.save_both(Position(1, 6))
    name = f"epoch-1-step-6{self.workers[1]}.data-00000-of-00001"
    flip(os.path.join(self.directory, name))
    with contextlib.redirect_stdout(io.StringIO()) as output:
      found = [self.checkpoints(i, 0.0).newest() for i in (0, 1)]
    self.assertEqual(found, [Position(1, 6), Position(1, 3)])
    self.assertLen(output.getvalue().splitlines(), 1)
    self.assertRegex(output.getvalue(), rf"Warning: \S*/{name} is damaged")
    # All agree on the earlier one.
    limited = self.checkpoints(0, 0.0).newest(limit=Position(1, 3))
    self.assertEqual(limited, Position(1, 3))
    # One that is gone is missed by all.
    os.remove(os.path.join(self.directory, f"epoch-1-step-6{self.workers[1]}.index"))
    for worker in (0, 1):
      self.assertEqual(self.checkpoints(worker, 0.0).newest(), Position(1, 3))

  def test_what_single_workers_have_left_goes(self):
    self.save_both(Position(1))
    whole = set(os.listdir(self.directory))
    # The chief was killed before it wrote its own.
    second = self.checkpoints(1, 0.0)
    second.save(Position(1, 9))
    second.finish()
    self.assertNotEqual(set(os.listdir(self.directory)), whole)
    checkpoint_files.remove_leftovers(self.directory)
    self.assertEqual(set(os.listdir(self.directory)), whole)
    # The chief's of a later one is damaged.
    self.save_both(Position(2))
    checkpoint_files.remove_after(self.directory, Position(1))
    later = {name for name in os.listdir(self.directory) if "epoch-2-worker" in name}
    self.assertEmpty(later)

  def test_a_worker_whose_directory_is_another(self):
    chief = self.checkpoints(0, 0.0)
    with mock.patch.object(checkpointing, "_PATIENCE", 0.1):
      chief.save(Position(1))
      with self.assertRaisesRegex(UserError, "worker-1-of-2.index .*one directory"):
        chief.finish()


if __name__ == "__main__":
  tf.test.main()
