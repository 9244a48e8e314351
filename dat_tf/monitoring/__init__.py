"""How a run is watched: a progress bar, TensorBoard, and figures for programs."""

from dat_tf.monitoring.events import Events, goodput, read_events
from dat_tf.monitoring.pictures import Attacked, AttackedImages, picture_grid
from dat_tf.monitoring.profiler import Profiler
from dat_tf.monitoring.progress import Progress
from dat_tf.monitoring.results import read_results, update_results
from dat_tf.monitoring.step_clock import StepClock
from dat_tf.monitoring.summary import Summary, log_evaluation
from dat_tf.monitoring.tensorboard import Scalars, forget_later

__all__ = [
  "Attacked",
  "AttackedImages",
  "Events",
  "Profiler",
  "Progress",
  "Scalars",
  "StepClock",
  "Summary",
  "forget_later",
  "goodput",
  "log_evaluation",
  "picture_grid",
  "read_events",
  "read_results",
  "update_results",
]
