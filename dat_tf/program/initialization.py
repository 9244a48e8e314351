"""Transfer learning: the weights that a run begins with."""

from __future__ import annotations

import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf import models
from dat_tf.base.errors import UserError, one_line
from dat_tf.base.run_directory import RunDirectory
from dat_tf.compat import keras
from dat_tf.models.stored import UnopenedError, load_keras
from dat_tf.program import checkpoint_files


def source_model(
  initialize_from: str,
  name: str,
  image_shape: tuple[int, ...],
  *,
  unsafe: bool = False,
) -> keras.Model:
  """A plain Keras model with the weights that --initialize_from stands for.

  Args:
    initialize_from: the model_dir of a run, of which the export counts or, as long as
      there is none, the newest checkpoint; a saved Keras model; or `imagenet`.
    name: of the network that is to have the weights (--model).
    image_shape: (height, width, channels).
    unsafe: whether it may run code of its own (`models.stored`).

  Raises:
    UserError: nothing of the kind is there, or it holds code of its own.
  """
  if initialize_from == "imagenet":
    try:
      return models.make_pretrained(name, image_shape)
    except UserError as error:
      raise UserError(f"--initialize_from=imagenet: {error}") from error
  checkpoints = RunDirectory(initialize_from).checkpoints
  export = RunDirectory(initialize_from).export
  is_run = tf.io.gfile.exists(export)
  newest = None
  if not is_run:
    newest = checkpoint_files.newest_whole(
      checkpoints, remedy="or give an exported model"
    )
  if newest:
    settings = config_lib.load(initialize_from)
    if settings is None:
      raise UserError(
        f"--initialize_from={initialize_from} has checkpoints but no config.flags, "
        "which says what network they are of: put it back, or give an export."
      )
    if ":" in settings.model and settings.model != name:
      # Another run's settings do not say what is imported here.
      raise UserError(
        f"--initialize_from={initialize_from} was trained with --model="
        f"{settings.model}, a function outside this package: set the same --model, or "
        "give its export, which --mode=export makes."
      )
    model = models.make_model(settings.model, image_shape, settings.num_classes)
    if not checkpoint_files.may_hold(newest, model):
      raise UserError(
        f"--initialize_from={initialize_from} has the weights of another network than "
        f"{settings.model} for images of shape {tuple(image_shape)}: bring the images "
        "to the size that it was trained with."
      )
    tf.train.Checkpoint(classifier=model).restore(newest).expect_partial()
    return model
  try:
    model = load_keras(export if is_run else initialize_from, unsafe=unsafe)
    if not isinstance(model, keras.Model):
      raise ValueError("a SavedModel that Keras did not write")
  except UnopenedError as error:
    raise UserError(f"--initialize_from={error}") from None
  except Exception as error:  # a model's own layers may fail in any way
    raise UserError(
      f"--initialize_from={initialize_from} is neither a run's --model_dir nor a Keras "
      f"model ({one_line(error)}): give one of these, or imagenet."
    ) from None
  return model
