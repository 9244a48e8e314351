"""What an attack does to images, as a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.figure
import numpy as np
import tensorflow as tf

from dat_tf.compat import keras


class Attacked(NamedTuple):
  """Images before and after an attack.

  Attributes:
    images: float32 [B, H, W, C] in [0, 1], C 1 or 3.
    adversarial: of the same shape.
    labels: integer [B].
    clean_predictions: integer [B].
    adversarial_predictions: integer [B].
  """

  images: np.ndarray
  adversarial: np.ndarray
  labels: np.ndarray
  clean_predictions: np.ndarray
  adversarial_predictions: np.ndarray


class AttackedImages:
  """Some images, attacked anew each time they are asked for."""

  def __init__(
    self,
    classifier: keras.Model,
    attack: Callable[..., tf.Tensor],
    images: tf.Tensor,
    labels: tf.Tensor,
    keys: tf.Tensor,
  ):
    """Keeps the images.

    Args:
      classifier: a plain model, which one worker alone can run; its weights may change
        between attacks.
      attack: see `dat_tf.attacks`.
      images: float32 [B, H, W, C] in [0, 1], C 1 or 3.
      labels: integer [B].
      keys: uint32 [B, 2], for the attack.
    """

    @tf.function
    def attacked() -> tuple[tf.Tensor, ...]:
      adversarial = attack(classifier, images, labels, keys)
      return (
        images,
        adversarial,
        labels,
        tf.argmax(classifier(images), axis=-1),
        tf.argmax(classifier(adversarial), axis=-1),
      )

    self._attacked = attacked

  def attack(self) -> Attacked:
    """Attacks the classifier as it is now."""
    return Attacked(*(tensor.numpy() for tensor in self._attacked()))


def picture_grid(
  images: np.ndarray,
  adversarial: np.ndarray,
  labels: np.ndarray,
  clean_predictions: np.ndarray,
  adversarial_predictions: np.ndarray,
) -> np.ndarray:
  """Clean image, magnified perturbation and adversarial image, one column an example.

  The perturbation is stretched so that its largest value anywhere in the grid is black
  or white on grey. Titles are predicted classes, red where they are wrong.

  Args:
    images: float [B, H, W, C] in [0, 1], C 1 or 3.
    adversarial: of the same shape.
    labels: integer [B].
    clean_predictions: integer [B].
    adversarial_predictions: integer [B].

  Returns:
    uint8 [height, width, 3] pixels.
  """
  perturbations = adversarial - images
  magnification = 0.5 / max(float(np.abs(perturbations).max()), 1e-12)
  rows: Sequence[tuple[str, np.ndarray, np.ndarray]] = (
    ("clean", images, clean_predictions),
    (
      f"{magnification:.3g} x (difference)",
      0.5 + magnification * perturbations,
      labels,
    ),
    ("adversarial", adversarial, adversarial_predictions),
  )
  figure = matplotlib.figure.Figure(
    figsize=(1.2 * len(images) + 0.4, 4.4), dpi=100, layout="constrained"
  )
  axes = figure.subplots(3, len(images), squeeze=False)
  for row, (name, pictures, predictions) in enumerate(rows):
    axes[row, 0].set_ylabel(name)
    for column, axis in enumerate(axes[row]):
      axis.imshow(
        np.clip(pictures[column], 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1
      )
      axis.set(xticks=[], yticks=[])
      if row != 1:
        right = predictions[column] == labels[column]
        axis.set_title(str(predictions[column]), color="black" if right else "red")
  buffer = io.BytesIO()
  figure.savefig(buffer, format="rgba")
  height, width = (
    int(round(size * figure.dpi)) for size in figure.get_size_inches()[::-1]
  )
  pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)
  return pixels[..., :3].copy()
