"""Images before and after an attack, for the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from dat_tf.monitoring import picture_grid
from dat_tf.reporting.runs import RunRecord

# Images of each run: a page should stay small enough to be sent.
_MOST = 12


def gallery(run: RunRecord) -> dict[str, Any]:
  """What the page shows of a run's images, pictures as data URIs.

  The perturbations are stretched alike, so that the largest change of a pixel is black
  or white on grey.
  """
  images, adversarial, *_ = _first(run)
  changes = adversarial - images
  magnification = 0.5 / max(float(np.abs(changes).max()), 1e-12)
  pictures = [
    {
      "image": _uri(images[i]),
      "perturbation": _uri(0.5 + magnification * changes[i]),
      "adversarial": _uri(adversarial[i]),
      "label": int(run.probes["gallery_label"][i]),
      "prediction": int(run.probes["gallery_prediction"][i]),
      "confidence": _confidence(run, "gallery_confidence", i),
      "adversarial_prediction": int(run.probes["gallery_adversarial_prediction"][i]),
      "adversarial_confidence": _confidence(run, "gallery_adversarial_confidence", i),
    }
    for i in range(len(images))
  ]
  return {"run": run.name, "magnification": magnification, "pictures": pictures}


def gallery_png(run: RunRecord) -> bytes:
  """The same as one picture, a PNG file."""
  return _png(picture_grid(*_first(run)))


def _first(run: RunRecord) -> list[np.ndarray]:
  names = ("image", "adversarial", "label", "prediction", "adversarial_prediction")
  return [run.probes[f"gallery_{name}"][:_MOST] for name in names]


def _confidence(run: RunRecord, name: str, index: int) -> Any:
  return float(run.probes[name][index]) if name in run.probes else None


def _uri(image: np.ndarray) -> str:
  pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
  if pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  return f"data:image/png;base64,{base64.b64encode(_png(pixels)).decode()}"


def _png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "png", optimize=True)
  return buffer.getvalue()
