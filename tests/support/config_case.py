"""What the tests of flags share."""

from __future__ import annotations

import pathlib
import tempfile

from absl.testing import parameterized

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError, with_flags
from dat_tf.config.declaring import declarations

REQUIRED = {"model_dir": "m", "train_data": "a-*", "test_data": "b-*"}

DECLARED = declarations(config_lib.Settings)
_VALUES = "0.3", "3", "100", "10,20", "true", "false"


def _another(declared):
  """A value of a setting that is not its default, as it is written."""
  parser = declared.parser
  default = None if declared.default is None else parser.parse(declared.default)
  for text in (*getattr(parser, "names", ()), *_VALUES):
    try:
      if parser.parse(text) != default:
        return text
    except ValueError:
      pass
  raise ValueError(f"Write a value into OTHER beside the default {default!r}.")


def _company(name):
  """What a setting that belongs to some options needs beside it to play a part."""
  for family, declared in DECLARED.items():
    owners = [option for option in declared.options.values() if name in option.own]
    if owners and declared.options[declared.default] not in owners:
      return {family: owners[0].name} | needs(owners[0])
  return {}


def needs(option):
  """What an option needs beside it: an objective without an attack is to say so."""
  alone = {} if getattr(option, "attacked", True) else {"attack": "none"}
  growing = {"epsilon_growing_epochs": 1}
  return alone | (growing if getattr(option, "certified", False) else {})


# Another value than the default, or than REQUIRED's, for each flag; those below are
# where not any value will do, or where the way it is written is worth a test.
OTHER = {name: _another(declared) for name, declared in DECLARED.items()} | {
  "bucket_size": "512",
  "decay_epochs": "75,90.5",
  "epsilon": "3/255",
  "export_formats": "keras,onnx",
  "full_precision_names": "logits|hidden/.*",
  "input_range": "-1,1",
  "train_data": "c-*,d e/f-*",
}

_EVALUATED = {"model_path": "m", "mode": "evaluate", "attacks": "fgsm"}
_UNLABELED = {"unlabeled_data": "u"}
_BOTH = {**_UNLABELED, "unlabeled_loss": "both"}
# What a flag needs beside it to play a part.
COMPANY = {name: _company(name) for name in DECLARED} | {
  "overwrite": {"mode": "train"},
  "export_formats": {"mode": "export"},
  **dict.fromkeys(["model_path", "input_range", "logits", "probabilities"], _EVALUATED),
  **dict.fromkeys(
    ["source_input_range", "source_probabilities"], {"source_model_path": "m"}
  ),
  "early_stopping": {"evaluate_every": 1, "validation_data": "v"},
  "average_from_epoch": {"weight_average": "stochastic"},
  **dict.fromkeys(
    ["unlabeled_fraction", "unlabeled_loss", "unlabeled_weight"], _UNLABELED
  ),
  **dict.fromkeys(["consistency_growing_epochs", "pseudo_label_smoothing"], _BOTH),
  "decay_epochs": {"decay": "step", "decay_epochs": "2,3"},
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
