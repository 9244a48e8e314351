"""How a run is watched: one progress bar, TensorBoard, and the newest checkpoint."""

from dat_tf.monitoring.pictures import AttackedImages, picture_grid
from dat_tf.monitoring.progress import Progress
from dat_tf.monitoring.tensorboard import Scalars

__all__ = ["AttackedImages", "Progress", "Scalars", "picture_grid"]
