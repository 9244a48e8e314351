"""Callbacks around all others, after which every worker is in the same state."""

from __future__ import annotations

from typing import Any, Optional

import tensorflow as tf

from dat_tf.compat import keras, takes_tensors


class AverageStatistics(keras.callbacks.Callback):
  """First of all callbacks: those after it may read every variable locally."""

  def on_epoch_end(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
    self.model.average_statistics()


@takes_tensors
class Agreement(keras.callbacks.Callback):
  """Last of all callbacks: what the others decided is made the same on all workers."""

  # Without this Keras waits for each step's figures before the next one may start.
  def on_train_begin(self, logs: Optional[dict[str, Any]] = None) -> None:
    self._stop = False

  def on_train_batch_end(
    self, batch: int, logs: Optional[dict[str, Any]] = None
  ) -> None:
    # A worker that left the epoch early would leave the others waiting for it.
    self._stop |= self.model.stop_training
    self.model.stop_training = False

  def on_epoch_end(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
    optimizer = self.model.optimizer
    follow = not isinstance(
      optimizer.learning_rate, keras.optimizers.schedules.LearningRateSchedule
    )
    stop, learning_rate = self._agree(
      tf.constant(float(self._stop or self.model.stop_training)),
      tf.convert_to_tensor(optimizer.learning_rate if follow else 0.0),
    )
    self.model.stop_training = bool(stop > 0)
    if follow:
      optimizer.learning_rate.assign(learning_rate)

  @tf.function
  def _agree(
    self, stop: tf.Tensor, learning_rate: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    def in_replica() -> tf.Tensor:
      context = tf.distribute.get_replica_context()
      is_chief = tf.cast(context.replica_id_in_sync_group == 0, tf.float32)
      return context.all_reduce(
        tf.distribute.ReduceOp.SUM, tf.stack([stop, learning_rate * is_chief])
      )

    strategy = self.model.distribute_strategy
    return tf.unstack(strategy.experimental_local_results(strategy.run(in_replica))[0])
