"""The parts of a run that its flags name: attacks, objective, optimizer and so on."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Callable, Optional, Union

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
from dat_tf.compat import keras
from dat_tf.config import methods
from dat_tf.data import augment, pipeline
from dat_tf.models import transfer
from dat_tf.models.averaging import WeightAverage
from dat_tf.objectives import mixing


def make_attack(
  config: flags.FlagValues,
  classifier: keras.Model,
  batch_shape: tuple[int, ...],
  steps_per_epoch: int,
) -> Union[attacks.Attack, attacks.TrainingPass, None]:
  """The attack of training, made in the strategy's scope; None trains on clean images.

  Args:
    config: the settings.
    classifier: what is trained.
    batch_shape: (B, H, W, C) of a replica's images.
    steps_per_epoch: steps of training.

  Raises:
    UserError: the network does not go with the attack.
  """
  ball, name = make_ball(config), config.attack
  step_size, steps = config.step_size, config.attack_steps
  if config.objective == "llr":
    return attacks.PGD(ball, step_size, steps, gain=objectives.linearity_violation)
  if config.objective == "ig_norm":
    gain = functools.partial(
      objectives.attribution_norm, points=min(config.attribution_points, 10)
    )
    return attacks.PGD(ball, step_size, steps, gain=gain)
  if name == "none":
    return None
  if name == "nfgsm":
    return attacks.NFGSM(config.epsilon)
  if name == "momentum_pgd":
    return attacks.PGD(ball, step_size, steps, direction=attacks.Momentum())
  if name == "wrm":
    return attacks.WRM(config.wasserstein_penalty, steps)
  if name == "free":
    return attacks.Free(ball, batch_shape, step_size)
  if name == "yopo":
    return attacks.YOPO(classifier, ball, step_size, steps, config.inner_steps)
  start = attacks.from_image if name == "bim" else attacks.from_random
  pgd = attacks.PGD(ball, step_size, steps, start=start)
  if name == "warm_start_pgd":
    return attacks.WarmStart(pgd, batch_shape[1:])
  if name == "dynamic_pgd":
    falling = round(5 / 6 * config.epochs * steps_per_epoch)
    return attacks.DynamicPGD(pgd, max(falling, 1), config.convergence)
  growing = [
    round(epochs * steps_per_epoch)
    for epochs in (config.steps_growing_epochs, config.epsilon_growing_epochs)
  ]
  return attacks.Curriculum(pgd, *growing) if any(growing) else pgd


def make_evaluation_attack(config: flags.FlagValues) -> attacks.PGD:
  """The attack of evaluation."""
  return attacks.PGD(
    make_ball(config), config.evaluation_step_size, config.evaluation_attack_steps
  )


def make_ball(config: flags.FlagValues) -> attacks.Ball:
  """The allowed perturbations."""
  balls: dict[str, Callable[[float], attacks.Ball]]
  balls = {"linf": attacks.LInfinity, "l2": attacks.L2, "l1": attacks.L1}
  return balls[config.norm](config.epsilon)


def make_objective(
  config: flags.FlagValues, steps_per_epoch: int
) -> objectives.Objective:
  """What training minimises."""
  objective = _make_objective(config, steps_per_epoch)
  if config.gradient_alignment:
    objective = objectives.Regularized(
      objective,
      objectives.GradientAlignment(
        make_ball(config).random_start, config.gradient_alignment
      ),
      training=config.attack_in_training_mode,
    )
  if config.weight_perturbation:
    objective = objectives.WeightPerturbation(objective, config.weight_perturbation)
  return objective


def _make_objective(
  config: flags.FlagValues, steps_per_epoch: int
) -> objectives.Objective:
  name, weight = config.objective, config.penalty_weight
  if config.unlabeled_data:
    return objectives.SemiSupervised(
      config.clean_weight,
      config.unlabeled_weight,
      pseudo_labels=config.unlabeled_loss != "consistency",
      consistency=config.unlabeled_loss != "pseudo_label",
      label_smoothing=config.pseudo_label_smoothing,
      consistency_growing=round(config.consistency_growing_epochs * steps_per_epoch),
    )
  if name == "at" and config.attack == "none":
    return objectives.CleanTraining()
  if name == "at":
    return objectives.AdversarialTraining(config.clean_weight)
  if name == "trades":
    return objectives.TRADES(weight)
  if name == "mart":
    return objectives.MART(weight)
  if name == "alp":
    return objectives.AdversarialLogitPairing(weight, config.clean_weight)
  if name == "clp":
    return objectives.CleanLogitPairing(weight, config.pairing_noise)
  if name in methods.CERTIFIED:
    ramp = max(round(config.epsilon_growing_epochs * steps_per_epoch), 1)
    # A fifth of the ramp goes before it, as in Gowal et al.'s schedule for MNIST.
    return objectives.CertifiedTraining(
      config.epsilon,
      ramp // 5,
      ramp,
      config.certified_clean_weight,
      crown=name == "crown_ibp",
    )
  penalties: dict[str, objectives.Penalty] = {
    "input_gradient": objectives.InputGradient(weight),
    "cure": objectives.Curvature(weight, config.curvature_step),
    "llr": objectives.LocalLinearity(weight),
    "ig_norm": objectives.AttributionNorm(weight, config.attribution_points),
  }
  return objectives.Regularized(objectives.CleanTraining(), penalties[name])


def make_preparation(
  config: flags.FlagValues,
) -> Optional[Callable[[objectives.Batch], objectives.Batch]]:
  """What changes images and labels of a batch together; None leaves them."""
  changes: list[Callable[[objectives.Batch], objectives.Batch]] = []
  if config.label_smoothing:
    changes.append(mixing.LabelSmoothing(config.num_classes, config.label_smoothing))
  if config.mixing != "none":
    mix = mixing.Mixup if config.mixing == "mixup" else mixing.CutMix
    changes.append(mix(config.num_classes, config.mixing_alpha))
  if not changes:
    return None
  return lambda batch: functools.reduce(lambda b, change: change(b), changes, batch)


def make_average(
  config: flags.FlagValues, classifier: keras.Model, steps_per_epoch: int
) -> Optional[WeightAverage]:
  """The average of the weights, made in the strategy's scope; None keeps none."""
  if config.weight_average == "exponential":
    start = round(config.average_from_epoch * steps_per_epoch)
    return WeightAverage(classifier, config.average_decay, start)
  if config.weight_average == "stochastic":
    # Of the first epoch that lies behind the start as a whole.
    first = math.ceil(config.average_from_epoch) + 1
    return WeightAverage(classifier, 1.0, first * steps_per_epoch - 1, steps_per_epoch)
  return None


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
  config: flags.FlagValues, classifier: keras.Model, steps_per_epoch: int
) -> keras.optimizers.legacy.Optimizer:
  """The optimizer, its learning rates scaled to batch and layer, and scheduled."""
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
  optimizer = optimizers.make_optimizer(
    config.optimizer,
    schedule,
    weight_decay=config.weight_decay,
    momentum=config.momentum,
    beta_1=config.beta_1,
    beta_2=config.beta_2,
    norm_bounds=(config.min_weight_norm, config.max_weight_norm),
  )
  if 0 < config.layer_decay < 1:
    optimizer.rate_factors = transfer.layer_rate_factors(classifier, config.layer_decay)
  return optimizer
