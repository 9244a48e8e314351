"""Every method of training on two real workers, with quantized gradients.

In one pair of processes each maximiser is trained with the cross-entropy, and each
objective with PGD, for two steps, twice with one seed; in another one, once, every pair
that flags can name.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf import objectives
from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import (
  L1,
  L2,
  NFGSM,
  PGD,
  WRM,
  YOPO,
  Curriculum,
  DynamicPGD,
  Free,
  LInfinity,
  Momentum,
  WarmStart,
  fgsm,
  from_image,
)
from dat_tf.base.errors import UserError
from dat_tf.communication import BucketQuantizer, FullPrecision, QuantizedAllReduce
from dat_tf.data.mixture import replayed
from dat_tf.models import batch_norm
from dat_tf.models.averaging import WeightAverage
from dat_tf.objectives.mixing import CutMix, LabelSmoothing, Mixup
from dat_tf.workers import cluster as cluster_lib
from dat_tf.workers import joined
from workers import run_workers

SHAPE, SIZE, CLASSES = (6, 6, 1), 8, 3
BALL = LInfinity(0.1)
_PGD = PGD(BALL, 0.05, 2)
_AT = objectives.AdversarialTraining()

# Made in the strategy's scope, of the classifier.
MAXIMIZERS = {
  "none": lambda classifier: None,
  "fgsm": lambda classifier: fgsm(BALL),
  "noise_fgsm": lambda classifier: NFGSM(0.1),
  "pgd_linf": lambda classifier: _PGD,
  "pgd_l2": lambda classifier: PGD(L2(0.5), 0.2, 2),
  "pgd_l1": lambda classifier: PGD(L1(2.0), 1.0, 2),
  "bim": lambda classifier: dataclasses.replace(_PGD, start=from_image),
  "momentum": lambda classifier: PGD(BALL, 0.05, 2, direction=Momentum()),
  "llr": lambda classifier: PGD(BALL, 0.05, 2, gain=objectives.linearity_violation),
  "ig_norm": lambda classifier: PGD(BALL, 0.05, 1, gain=objectives.attribution_norm),
  "wrm": lambda classifier: WRM(steps=2),
  "convergence": lambda classifier: DynamicPGD(_PGD, 10),
  "curriculum": lambda classifier: Curriculum(_PGD, 2, 2),
  "warm_start": lambda classifier: WarmStart(_PGD, SHAPE),
  "free": lambda classifier: Free(BALL, (SIZE, *SHAPE)),
  "yopo": lambda classifier: YOPO(classifier, BALL, 0.05, passes=2, inner_steps=2),
}
OBJECTIVES = {
  "clean": objectives.CleanTraining(),
  "trades": objectives.TRADES(),
  "mart": objectives.MART(),
  "alp": objectives.AdversarialLogitPairing(),
  "clp": objectives.CleanLogitPairing(),
  "input_gradient": objectives.Regularized(
    objectives.CleanTraining(), objectives.InputGradient(0.1)
  ),
  "curvature": objectives.Regularized(
    objectives.CleanTraining(), objectives.Curvature()
  ),
  "grad_align": objectives.Regularized(
    _AT, objectives.GradientAlignment(BALL.random_start), training=False
  ),
  "llr": objectives.Regularized(
    objectives.CleanTraining(), objectives.LocalLinearity()
  ),
  "ig_norm": objectives.Regularized(
    objectives.CleanTraining(), objectives.AttributionNorm(points=3)
  ),
  "awp": objectives.WeightPerturbation(_AT),
  "awp_trades": objectives.WeightPerturbation(objectives.TRADES()),
  "ibp": objectives.CertifiedTraining(0.01, ramp_steps=4),
  "crown_ibp": objectives.CertifiedTraining(0.01, ramp_steps=4, crown=True),
}
# Where the ball is another than BALL, or none: noise of 2 epsilon goes before the step
# of N-FGSM, and WRM has a price on the distance instead.
REACH = {
  "none": LInfinity(1e-9),  # none at all
  "noise_fgsm": LInfinity(3 * BALL.epsilon),
  "pgd_l2": L2(0.5),
  "pgd_l1": L1(2.0),
  "wrm": LInfinity(1.0),
}
AROUND = {
  "parts": {"accumulation": 2},
  "clipped": {"clip_norm": 0.01},
  "clipped beside padding": {"clip_norm": 0.01, "weights": [1.0, 0.0]},
  "compiled": {"jit_compile": True},
  "smoothed": {"prepare": LabelSmoothing(CLASSES, 0.1)},
  "mixup": {"prepare": Mixup(CLASSES)},
  "cutmix": {"prepare": CutMix(CLASSES)},
}


def _classifier():
  layers = tf.keras.layers
  return tf.keras.Sequential(
    [
      tf.keras.Input(SHAPE),
      layers.Conv2D(3, 3, 2),
      layers.BatchNormalization(),
      layers.ReLU(),
      layers.Flatten(),
      layers.Dense(CLASSES),
    ]
  )


class _Seen(objectives.Objective):
  """An objective that notes the longest perturbation; inf if one is not finite."""

  def __init__(self, objective, norm):
    self._objective, self._norm = objective, norm
    self.attack_targets = objective.attack_targets
    self.attack_loss = objective.attack_loss
    self.longest = tf.Variable(
      0.0,
      trainable=False,
      synchronization=tf.VariableSynchronization.ON_READ,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )

  def __call__(self, classifier, batch, adversarial):
    norms = self._norm(adversarial - batch.images)
    is_finite = tf.reduce_all(tf.math.is_finite(norms))
    longest = tf.where(is_finite, tf.reduce_max(norms), np.inf)
    self.longest.assign(tf.maximum(self.longest, longest))
    return self._objective(classifier, batch, adversarial)


class _Run:
  """A model, its data and its initial weights."""

  def __init__(
    self,
    worker,
    strategy,
    attack,
    *,
    objective=_AT,
    reach=BALL,
    weights=(1.0, 1.0),
    **kwargs,
  ):
    """weights: of each worker's examples."""
    tf.keras.utils.set_random_seed(worker)  # the chief's initial weights must win
    self.strategy = strategy
    with strategy.scope():
      self.classifier = _classifier()
      self.seen = _Seen(objective, reach.norm)
      self.average = WeightAverage(self.classifier, decay=1.0)
      self.model = AdversarialModel(
        self.classifier,
        attack(self.classifier),
        objective=self.seen,
        all_reduce=QuantizedAllReduce(
          BucketQuantizer(8, 32), full_precision=FullPrecision(below=0)
        ),
        evaluation_attack=_PGD,
        average=self.average,
        **kwargs,
      )
      self.model.compile(optimizer=tf.keras.optimizers.legacy.SGD(0.1))
    rng = np.random.default_rng(worker)
    data = tf.data.Dataset.from_tensors(
      {
        "image": rng.random((SIZE, *SHAPE), "f4"),
        "label": rng.integers(0, CLASSES, size=SIZE),
        "weight": np.full(SIZE, weights[worker], "f4"),
        "example_id": np.arange(SIZE) + SIZE * worker,
        "epoch": np.zeros(SIZE, "i8"),
      }
    )
    data = replayed(data, 2)
    self.data = strategy.distribute_datasets_from_function(lambda context: data)
    self.before = self.values()

  def values(self):
    return [w.numpy() for w in self.classifier.trainable_weights]

  def train(self):
    """Two steps; returns the loss, and weights as they were, are, and on average."""
    history = self.model.fit(self.data, steps_per_epoch=2, verbose=0).history
    statistics = batch_norm.statistics(self.classifier)
    (longest,) = self.strategy.experimental_local_results(self.seen.longest)
    result = {
      "loss": history["loss"][0],
      "quantization_error": history["quantization_error"][0],
      "longest": float(longest),
      "before": self.before,
      "weights": self.values(),
      "statistics": [w.numpy() for w in statistics],
    }
    with self.average.applied():
      result["averages"] = self.values()
    return {**result, "restored": self.values()}

  def reset(self):
    """As it was, but for what the attack has kept."""
    for weight, value in zip(self.classifier.trainable_weights, self.before):
      weight.assign(value)
    for layer in self.classifier.layers:
      if isinstance(layer, tf.keras.layers.BatchNormalization):
        layer.moving_mean.assign(tf.zeros_like(layer.moving_mean))
        layer.moving_variance.assign(tf.ones_like(layer.moving_variance))
    self.model.optimizer.iterations.assign(0)
    self.average._counted.assign(0)


def _twice(*args, **kwargs):
  run = _Run(*args, **kwargs)
  first = run.train()
  if isinstance(run.model.attack, (Free, WarmStart)):
    run = _Run(*args, **kwargs)
  else:  # spares building it again
    run.reset()
  return [first, run.train()]


def _conform(chosen=None):
  """{method: its two runs}."""
  cluster = cluster_lib.Cluster.from_environment()
  options = joined.communication_options("ring", 0, 600)
  strategy = joined.join(cluster, options).strategy
  pgd = MAXIMIZERS["pgd_linf"]
  methods = {
    f"{name} x at": (maximizer, {"reach": REACH.get(name, BALL)})
    for name, maximizer in MAXIMIZERS.items()
  }
  for name, objective in OBJECTIVES.items():
    methods[f"pgd x {name}"] = (pgd, {"objective": objective})
  for name, kwargs in AROUND.items():
    methods[name] = (pgd, kwargs)
  methods["yopo x awp"] = (MAXIMIZERS["yopo"], {"objective": OBJECTIVES["awp"]})
  return {
    name: _twice(cluster.index, strategy, attack, **kwargs)
    for name, (attack, kwargs) in methods.items()
    if chosen is None or name in chosen
  }


def _config(attack, objective):
  """The settings of this pair; None if it is refused."""
  given = {"model_dir": "m", "train_data": "a", "test_data": "b", "epochs": 2}
  given |= {"attack": attack, "objective": objective, "epsilon": BALL.epsilon}
  own = {"ig_norm": {"attribution_points": 3}, "yopo": {"inner_steps": 2}}
  given |= {**own.get(attack, {}), **own.get(objective, {})}
  if config_lib.training_objective(objective).certified:
    given["epsilon_growing_epochs"] = 1
  if attack not in ("none", "fgsm", "nfgsm"):
    given["attack_steps"] = 2
  try:
    return config_lib.parse(["", *(f"--{n}={v}" for n, v in given.items())])
  except UserError:
    return None


def _conform_by_flags(chosen=None):
  """{pair of names: its run}, of all pairs that flags may name."""
  cluster = cluster_lib.Cluster.from_environment()
  options = joined.communication_options("ring", 0, 0)
  strategy = joined.join(cluster, options).strategy
  results = {}
  for attack, objective in itertools.product(config_lib.ATTACKS, config_lib.OBJECTIVES):
    config = _config(attack, objective)
    if config is None or (chosen and (attack, objective) not in chosen):
      continue
    run = _Run(
      cluster.index,
      strategy,
      lambda classifier, config=config: config_lib.make_attack(
        config, config_lib.Trained(classifier, (SIZE, *SHAPE), 2)
      ),
      objective=config_lib.make_objective(config, 2),
    )
    results[attack, objective] = run.train()
  return results


@pytest.mark.long
class FlagsConformanceTest(tf.test.TestCase):
  def test_every_pair_of_names_on_two_workers(self):
    chief, other = run_workers(_conform_by_flags, 2)
    self.assertGreater(len(chief), 40)
    self.assertEqual(chief.keys(), other.keys())
    reach = {"nfgsm": REACH["noise_fgsm"], "wrm": REACH["wrm"], "none": REACH["none"]}
    for pair, first in chief.items():
      with self.subTest(pair):
        for result in (first, other[pair]):
          self.assertTrue(np.isfinite(result["loss"]))
          farthest = reach.get(pair[0], BALL).epsilon
          self.assertLessEqual(result["longest"], 1.0001 * farthest)
          self.assertEqual(result["longest"] > 0, pair[0] != "none")
        self.assertFalse(np.array_equal(first["before"][0], first["weights"][0]))
        for key in ("weights", "statistics"):
          for a, b in zip(first[key], other[pair][key]):
            self.assertAllEqual(a, b)


@pytest.mark.long
class ConformanceTest(tf.test.TestCase):
  def test_every_method_on_two_workers(self):
    chief, other = run_workers(_conform, 2)
    self.assertLen(chief, len(MAXIMIZERS) + len(OBJECTIVES) + len(AROUND) + 1)
    for name, runs in chief.items():
      with self.subTest(name):
        first, again = runs
        self.assertTrue(np.isfinite(first["loss"]))
        self.assertGreater(first["quantization_error"], 0)
        attack = name.removesuffix(" x at")
        for result in (first, other[name][0]):
          farthest = REACH.get(attack, BALL).epsilon
          self.assertLessEqual(result["longest"], 1.0001 * farthest)
          self.assertEqual(result["longest"] > 0, attack != "none")
        self.assertEqual(first["loss"], other[name][0]["loss"])
        self.assertFalse(np.array_equal(first["before"][0], first["weights"][0]))
        for key in ("weights", "statistics", "averages"):
          for a, b, c in zip(first[key], other[name][0][key], again[key]):
            self.assertAllEqual(a, b)  # the same on both workers
            self.assertAllEqual(a, c)  # and again with the same seed
        self.assertFalse(np.array_equal(first["averages"][0], first["weights"][0]))
        for a, b in zip(first["weights"], first["restored"]):
          self.assertAllEqual(a, b)
