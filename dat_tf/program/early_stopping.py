"""An end to training once it makes the network less robust, and its best weights."""

from __future__ import annotations

from typing import Any, Optional

import tensorflow as tf

from dat_tf.compat import keras
from dat_tf.program.checkpoint_files import Position, newest_whole, position
from dat_tf.program.checkpointing import Checkpoints


class EarlyStopping(keras.callbacks.Callback):
  """Keeps the weights with the best robust accuracy on validation data.

  Robust accuracy on new images often falls again in the later part of training, while
  that on training images still grows: robust overfitting, for which stopping early is
  as good as any remedy (Rice et al., "Overfitting in adversarially robust deep
  learning", ICML 2020).

  What is kept are the weights that were evaluated, averages if there are any. All
  workers see the same accuracies, so that they stop together; and a continued run knows
  what the best was.
  """

  def __init__(
    self, directory: str, classifier: keras.Model, *, patience: int, is_chief: bool
  ):
    """Looks up the best so far.

    Args:
      directory: of the best weights, a checkpoint.
      classifier: whose weights they are.
      patience: epochs without a better accuracy after which training ends.
      is_chief: whether this worker's files stay.

    Raises:
      UserError: they are damaged.
    """
    super().__init__()
    self._accuracy = tf.Variable(-1.0, trainable=False, name="robust_accuracy")
    copies = None
    if is_chief:
      with tf.device("CPU:0"):
        copies = {
          "classifier": keras.models.clone_model(classifier),
          "robust_accuracy": tf.Variable(-1.0, trainable=False),
        }
    self._checkpoints = Checkpoints(
      directory,
      {"classifier": classifier, "robust_accuracy": self._accuracy},
      copies,
      keep=1,
      worker=0 if is_chief else 1,
    )
    self._patience = patience
    self.best_epoch = 0
    newest = newest_whole(directory, warn=is_chief)
    if newest:
      best = tf.train.Checkpoint(robust_accuracy=self._accuracy)
      best.read(newest).expect_partial()
      self.best_epoch = position(newest).epochs

  def is_over(self, epochs: int) -> bool:
    """Whether training ends after so many epochs."""
    return bool(self.best_epoch) and epochs - self.best_epoch >= self._patience

  def on_epoch_end(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
    accuracy = (logs or {}).get("val_robust_accuracy")
    if accuracy is None:  # not evaluated in this epoch
      return
    if accuracy > float(self._accuracy):
      self._accuracy.assign(accuracy)
      self.best_epoch = epoch + 1
      with self.model.final_weights():
        self._checkpoints.save(Position(self.best_epoch))
      # The checkpoint after this epoch must not be there before the best weights are.
      self._checkpoints.finish()
    elif self.is_over(epoch + 1):
      self.model.stop_training = True

  def restore(self) -> None:
    """Gives the classifier the best weights, if any were kept."""
    if self.best_epoch:
      self._checkpoints.restore(Position(self.best_epoch))
