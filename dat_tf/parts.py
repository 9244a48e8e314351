"""The parts of a run that its flags name: attacks, objective, optimizer and so on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import tensorflow as tf
from absl import flags

from dat_tf import attacks, objectives, optimizers, startup
from dat_tf import config as config_lib
from dat_tf.communication import (
  AllReduce,
  BucketQuantizer,
  FullPrecision,
  MeanAllReduce,
  QuantizedAllReduce,
  choice,
  quantizers,
)
from dat_tf.data import augment, pipeline


def make_attack(config: flags.FlagValues) -> Optional[attacks.PGD]:
  """The attack of training; None trains on clean images."""
  if config.attack == "none":
    return None
  return attacks.PGD(_ball(config), config.step_size, config.attack_steps)


def make_evaluation_attack(config: flags.FlagValues) -> attacks.PGD:
  """The attack of evaluation."""
  return attacks.PGD(
    _ball(config), config.evaluation_step_size, config.evaluation_attack_steps
  )


def _ball(config: flags.FlagValues) -> attacks.Ball:
  ball = attacks.LInfinity if config.norm == "linf" else attacks.L2
  return ball(config.epsilon)


def make_objective(config: flags.FlagValues) -> objectives.Objective:
  """What training minimises."""
  if not config.unlabeled_data:
    return objectives.AdversarialTraining(config.clean_weight)
  return objectives.SemiSupervised(
    config.clean_weight,
    config.unlabeled_weight,
    pseudo_labels=config.unlabeled_loss != "consistency",
    consistency=config.unlabeled_loss != "pseudo_label",
    label_smoothing=config.pseudo_label_smoothing,
  )


def make_augmentation(config: flags.FlagValues) -> Optional[pipeline.Augmentation]:
  """What training does to its images; None leaves them as they are."""
  if config.augmentation == "pad_crop_flip":
    return augment.PadCropFlip(4)
  if config.augmentation == "random_resized_crop":
    return augment.RandomResizedCrop(config.image_size)
  return make_crop(config)


def make_crop(config: flags.FlagValues) -> Optional[pipeline.Augmentation]:
  """What brings images of any size to one; None leaves them as they are."""
  return augment.CentreCrop(config.image_size) if config.image_size else None


def make_all_reduce(
  config: flags.FlagValues,
  variables: Sequence[tf.Variable],
  strategy: tf.distribute.Strategy,
  options: tf.distribute.experimental.CommunicationOptions,
) -> AllReduce:
  """What averages the gradients of these variables. All workers must call it."""
  plain = MeanAllReduce(options)
  if config.all_reduce == "fp32":
    return plain
  full_precision = FullPrecision(
    config.full_precision_below, config.full_precision_names
  )
  if config.all_reduce == "fp16":
    return MeanAllReduce(options, tf.float16, full_precision)
  with startup.quiet():
    quantizers.start_compiler()
  quantized = QuantizedAllReduce(
    BucketQuantizer(
      int(config.bits),
      config.bucket_size,
      getattr(quantizers, config.quantization_scale),
      quantizers.nearest if config.error_feedback else quantizers.stochastic,
    ),
    options,
    two_sided=config.all_reduce != "one_sided",
    error_feedback=config.error_feedback,
    full_precision=full_precision,
    seed=config.seed,
  )
  with strategy.scope():
    quantized.build([v.shape for v in variables], [v.name for v in variables])
  if config.all_reduce != "auto":
    return quantized
  candidates: dict[str, AllReduce] = {"fp32": plain, "two_sided": quantized}
  times = choice.milliseconds(candidates, variables, strategy)
  fastest = min(times, key=times.__getitem__)
  if strategy.extended.should_checkpoint:  # the chief
    figures = ", ".join(f"{name} {time:.3g} ms" for name, time in times.items())
    print(f"--all_reduce=auto: {figures} a step; {fastest} it is.", flush=True)
  return candidates[fastest]


def make_optimizer(
  config: flags.FlagValues, steps_per_epoch: int
) -> tf.keras.optimizers.legacy.Optimizer:
  """The optimizer, its learning rate scaled to the batch and scheduled."""
  schedule = optimizers.WarmupDecay(
    optimizers.scaled_learning_rate(
      config.learning_rate,
      config.reference_batch_size,
      config.global_batch_size,
      config.learning_rate_scaling,
    ),
    warmup_steps=round(config.warmup_epochs * steps_per_epoch),
    decay=config.decay,
    total_steps=config.epochs * steps_per_epoch,
    boundaries=[
      round(epoch * steps_per_epoch) for epoch in config_lib.decay_epochs(config)
    ],
  )
  return optimizers.make_optimizer(
    config.optimizer,
    schedule,
    weight_decay=config.weight_decay,
    momentum=config.momentum,
    beta_1=config.beta_1,
    beta_2=config.beta_2,
    norm_bounds=(config.min_weight_norm, config.max_weight_norm),
  )
