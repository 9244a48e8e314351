"""A network for --model that takes no time and no room."""

from __future__ import annotations

import tensorflow as tf


def tiny(image_shape, num_classes):
  layers = tf.keras.layers
  dense = layers.Dense(num_classes)
  return tf.keras.Sequential([tf.keras.Input(image_shape), layers.Flatten(), dense])
