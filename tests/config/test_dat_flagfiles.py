"""The flagfiles of DAT's own experiments against its authors' program."""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dat_tf import config as config_lib
from dat_tf.models.registry import make_model

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "flags"
STEPS = 3  # of an epoch, here


def parse(name, *more):
  return config_lib.parse(["run_dat.py", f"--flagfile={FOLDER / name}.flags", *more])


# dat-2022/dat, main.py: es, sigma, milestones, the optimizer's arguments, and train(),
# whose first branch is PGD and whose second, `fast`, is FGSM.
SHARED = {
  "optimizer": "lamb",
  "learning_rate": 0.01,
  "weight_decay": 1e-4,
  "beta_1": 0.9,
  "beta_2": 0.999,
  "min_weight_norm": 0.0,
  "max_weight_norm": 10.0,
  "global_batch_size": 2048,
  "all_reduce": "fp32",
  "objective": "at",
  "norm": "linf",
}
CIFAR = {
  "model": "preact_resnet18",
  "epsilon": 8 / 255,
  "epochs": 5 + 100,
  "augmentation": "pad_crop_flip",
}
IMAGENET = {
  "model": "imagenet_resnet50",
  "epsilon": 2 / 255,
  "epochs": 5 + 30,
  "augmentation": "random_resized_crop",
  "image_size": 224,
}
PGD = {"attack": "pgd", "step_size": 2 / 255, "clean_weight": 1.0}
PGD |= {"attack_in_training_mode": False}
FGSM = {"attack": "fgsm", "attack_steps": 1, "clean_weight": 0.0}
FGSM |= {"attack_in_training_mode": True}


class FlagfilesTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ("cifar10_dat_pgd", {**CIFAR, **PGD, "attack_steps": 10}),
    ("imagenet_dat_pgd", {**IMAGENET, **PGD, "attack_steps": 4}),
    ("cifar10_dat_fgsm", {**CIFAR, **FGSM, "step_size": 1.25 * 8 / 255}),
    ("imagenet_dat_fgsm", {**IMAGENET, **FGSM, "step_size": 1.25 * 2 / 255}),
  )
  def test_the_settings_of_dat(self, name, expected):
    config = parse(name)
    for flag, value in {**SHARED, **expected}.items():
      found = getattr(config, flag)
      if isinstance(value, float):
        self.assertAlmostEqual(found, value, places=12, msg=flag)
      else:
        self.assertEqual(found, value, flag)

  @parameterized.product(
    case=[("cifar10", 100, (75, 90, 95)), ("imagenet", 30, (20, 25, 28))],
    attack=["pgd", "fgsm"],
    workers=[1, 6],
  )
  def test_the_rates_of_dat(self, case, attack, workers):
    """Five epochs of warm-up, then epochs counted anew, of any number of workers."""
    dataset, epochs, milestones = case
    batch = f"--global_batch_size={2048 * workers}"
    config = parse(f"{dataset}_dat_{attack}", batch)
    network = make_model("small_cnn", (8, 8, 3), 10)
    schedule = config_lib.make_optimizer(config, network, STEPS).learning_rate
    expected = [0.01 * (t + 1) / (5 * STEPS) for t in range(5 * STEPS)]
    for epoch in range(epochs):
      passed = sum(epoch >= milestone for milestone in milestones)
      expected += STEPS * [0.01 * 0.1**passed]
    rates = [float(schedule(t)) for t in range(config.epochs * STEPS)]
    self.assertAllClose(rates, np.array(expected), rtol=1e-5)


if __name__ == "__main__":
  tf.test.main()
