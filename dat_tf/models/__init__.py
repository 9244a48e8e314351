"""Classifiers: plain Keras models from images in [0, 1] to logits."""

from dat_tf.models.registry import make_model, make_pretrained

__all__ = ["make_model", "make_pretrained"]
