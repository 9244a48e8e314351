"""What the tests of flags share."""

from __future__ import annotations

import pathlib
import tempfile

from absl.testing import parameterized

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError, with_flags

REQUIRED = {"model_dir": "m", "train_data": "a-*", "test_data": "b-*"}

# Another value than the default, or than REQUIRED's, for each flag.
OTHER = {
  "mode": "evaluate",
  "model_dir": "elsewhere",
  "epochs": "11",
  "overwrite": "true",
  "seed": "1",
  "evaluate_every": "2",
  "export_formats": "keras,onnx",
  "early_stopping": "3",
  "accumulation": "2",
  "jit_compile": "true",
  "precision": "mixed_bfloat16",
  "initialize_from": "another/run",
  "unsafe_model": "true",
  "checkpoints_to_keep": "3",
  "log_every": "5",
  "pictures": "0",
  "train_data": "c-*,d e/f-*",
  "test_data": "g-*",
  "validation_data": "v-*",
  "num_classes": "1000",
  "first_label": "1",
  "global_batch_size": "256",
  "shuffle_buffer": "0",
  "augmentation": "random_resized_crop",
  "image_size": "160",
  "channels": "3",
  "data_is_local": "true",
  "skip_bad_records": "3",
  "data_service": "host:5050",
  "unlabeled_data": "u-*",
  "unlabeled_fraction": "0.25",
  "model": "ResNet50",
  "weight_average": "stochastic",
  "average_decay": "0.9",
  "average_from_epoch": "1.5",
  "attack": "bim",
  "norm": "l2",
  "epsilon": "3/255",
  "step_size": "1/300",
  "attack_steps": "4",
  "inner_steps": "2",
  "convergence": "0.25",
  "wasserstein_penalty": "2",
  "pairing_noise": "0.1",
  "curvature_step": "3",
  "certified_clean_weight": "0",
  "steps_growing_epochs": "2",
  "epsilon_growing_epochs": "3.5",
  "evaluation_attack_steps": "50",
  "evaluation_step_size": "1e-3",
  "attack_in_training_mode": "true",
  "attacks": "pgd-50x10,autoattack",
  "evaluation_examples": "1000",
  "probe_images": "0",
  "model_path": "model.keras",
  "input_range": "-1,1",
  "source_model_path": "source.keras",
  "source_input_range": "0,255",
  "source_probabilities": "true",
  "logits": "true",
  "probabilities": "true",
  "objective": "alp",
  "clean_weight": "1/3",
  "penalty_weight": "0.7",
  "attribution_points": "10",
  "gradient_alignment": "0.2",
  "weight_perturbation": "0.005",
  "label_smoothing": "0.1",
  "mixing": "mixup",
  "mixing_alpha": "0.2",
  "unlabeled_loss": "both",
  "unlabeled_weight": "0.5",
  "consistency_growing_epochs": "2.5",
  "pseudo_label_smoothing": "0.1",
  "pseudo_label_dir": "labelled",
  "pseudo_labels": "soft",
  "confidence_threshold": "0.9",
  "optimizer": "lars",
  "learning_rate": "0.1",
  "reference_batch_size": "64",
  "learning_rate_scaling": "sqrt",
  "layer_decay": "0.5",
  "clip_norm": "1",
  "warmup_epochs": "2.5",
  "decay": "constant",
  "decay_epochs": "75,90.5",
  "weight_decay": "5e-4",
  "momentum": "0.95",
  "beta_1": "0.8",
  "beta_2": "0.99",
  "min_weight_norm": "0.01",
  "max_weight_norm": "9",
  "communication": "ring",
  "all_reduce": "two_sided",
  "bits": "4",
  "bucket_size": "512",
  "quantization_scale": "l2_norm",
  "error_feedback": "true",
  "full_precision_below": "100",
  "full_precision_names": "logits|hidden/.*",
  "bytes_per_pack": "1048576",
  "collective_timeout": "30",
  "start_timeout": "60",
  "runs": "runs/a,runs/b",
  "profile_steps": "10,20",
}


_EVALUATED = {"model_path": "m", "mode": "evaluate", "attacks": "fgsm"}
_QUANTIZED = {"all_reduce": "one_sided"}
# What a flag needs beside it to play a part.
COMPANY = {
  "overwrite": {"mode": "train"},
  "export_formats": {"mode": "export"},
  **dict.fromkeys(["model_path", "input_range", "logits", "probabilities"], _EVALUATED),
  **dict.fromkeys(
    ["source_input_range", "source_probabilities"], {"source_model_path": "m"}
  ),
  "early_stopping": {"evaluate_every": 1, "validation_data": "v"},
  "average_decay": {"weight_average": "exponential"},
  "average_from_epoch": {"weight_average": "stochastic"},
  "augmentation": {"image_size": 160},
  **dict.fromkeys(["unlabeled_fraction", "unlabeled_weight"], {"unlabeled_data": "u"}),
  **dict.fromkeys(["unlabeled_loss"], {"unlabeled_data": "u"}),
  **dict.fromkeys(
    ["consistency_growing_epochs", "pseudo_label_smoothing"],
    {"unlabeled_data": "u", "unlabeled_loss": "both"},
  ),
  "inner_steps": {"attack": "yopo"},
  "convergence": {"attack": "dynamic_pgd"},
  "wasserstein_penalty": {"attack": "wrm"},
  "penalty_weight": {"objective": "alp"},
  "attribution_points": {"objective": "ig_norm"},
  "pairing_noise": {"objective": "clp", "attack": "none"},
  "curvature_step": {"objective": "cure", "attack": "none"},
  "certified_clean_weight": {
    "objective": "ibp",
    "attack": "none",
    "epsilon_growing_epochs": 1,
  },
  "mixing_alpha": {"mixing": "mixup"},
  "momentum": {"optimizer": "sgd"},
  "decay_epochs": {"decay": "step", "decay_epochs": "2,3"},
  "decay": {"decay_epochs": ""},
  **dict.fromkeys(
    ["bits", "bucket_size", "quantization_scale", "error_feedback"], _QUANTIZED
  ),
  **dict.fromkeys(["full_precision_below", "full_precision_names"], _QUANTIZED),
}


def parse(*arguments, **values):
  """Parses the required flags, then `arguments`, then --name=value."""
  given = {**REQUIRED, **values}
  written = [f"--{name}={value}" for name, value in given.items() if value is not None]
  return config_lib.parse(["run_dat.py", *arguments, *written])


def own_attack(settings, trained):
  """What --attack=config_case:own_attack names."""
  return settings, trained


def own(settings, steps_per_epoch):
  return settings, steps_per_epoch


class ConfigCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.folder = pathlib.Path(directory.name)
    self.model_dir = self.folder / "run"

  def assert_refused(self, *arguments, names, **values):
    with self.assertRaises(UserError) as caught:
      parse(*arguments, **values)
    message = with_flags(str(caught.exception), config_lib.FLAGS)  # as it is printed
    self.assertEqual(len(message.splitlines()), 1, message)
    for name in names:
      self.assertIn(name, message)
