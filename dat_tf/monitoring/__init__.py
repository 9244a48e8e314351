"""How a run is watched: a progress bar, TensorBoard, and figures for programs."""

from dat_tf.monitoring.pictures import AttackedImages, picture_grid
from dat_tf.monitoring.progress import Progress
from dat_tf.monitoring.results import update_results
from dat_tf.monitoring.step_clock import StepClock
from dat_tf.monitoring.tensorboard import Scalars

__all__ = [
  "AttackedImages",
  "Progress",
  "Scalars",
  "StepClock",
  "picture_grid",
  "update_results",
]
