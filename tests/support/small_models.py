"""Classifiers of a few weights, and batches for `AdversarialModel`."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def linear_classifier(pixels=4, classes=3):
  inputs = tf.keras.Input((pixels, 1, 1))
  logits = tf.keras.layers.Dense(classes)(tf.keras.layers.Flatten()(inputs))
  return tf.keras.Model(inputs, logits)


def hidden_classifier(*, batch_norm=False):
  layers = [
    tf.keras.Input((4, 1, 1)),
    tf.keras.layers.Flatten(),
    tf.keras.layers.Dense(8),
    *([tf.keras.layers.BatchNormalization()] if batch_norm else []),
    tf.keras.layers.ReLU(),
    tf.keras.layers.Dense(3),
  ]
  return tf.keras.Sequential(layers)


def softmax(logits):
  exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
  return exponentials / exponentials.sum(axis=1, keepdims=True)


def batch_of(images, labels, weights=None, first_id=0, epoch=0):
  size = len(images)
  return {
    "image": tf.constant(images, tf.float32),
    "label": tf.constant(labels, tf.int64),
    "weight": tf.ones(size) if weights is None else tf.constant(weights, tf.float32),
    "example_id": tf.range(first_id, first_id + size, dtype=tf.int64),
    "epoch": tf.fill([size], tf.constant(epoch, tf.int64)),
  }


def dataset_of(*batches):
  return tf.data.Dataset.from_generator(
    lambda: iter(batches),
    output_signature={
      k: tf.TensorSpec(v.shape, v.dtype) for k, v in batches[0].items()
    },
  )
