"""Records and TFRecord files, good and bad, for tests; not by our own writers."""

import numpy as np
import tensorflow as tf


def example(**features) -> bytes:
  """A serialized tf.train.Example; '__' in a name stands for '/'."""

  def feature(value):
    if isinstance(value, bytes):
      return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if getattr(value, "dtype", None) == np.float32:
      return tf.train.Feature(float_list=tf.train.FloatList(value=value))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=np.ravel(value)))

  named = {name.replace("__", "/"): feature(value) for name, value in features.items()}
  return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def write(path: str, serialized) -> str:
  with tf.io.TFRecordWriter(path) as writer:
    for record in serialized:
      writer.write(record)
  return path


def read(path: str) -> list:
  return list(tf.data.TFRecordDataset(path).as_numpy_iterator())


def gradient_image(height=6, width=5, channels=3) -> np.ndarray:
  """A smooth image, which JPEG keeps almost unchanged."""
  rows, columns = np.mgrid[:height, :width]
  image = 20 * rows + 10 * columns
  return np.stack([image + 5 * c for c in range(channels)], -1).astype(np.uint8)


def bare_pixels(label: int, image=None) -> bytes:
  image = gradient_image() if image is None else image
  return example(image__raw=image.tobytes(), image__shape=image.shape, label=label)


def flip_byte(path: str, offset: int) -> None:
  with open(path, "r+b") as file:
    file.seek(offset)
    byte = file.read(1)[0]
    file.seek(offset)
    file.write(bytes([byte ^ 0xFF]))
