"""DAT-TF: distributed adversarial training of robust image classifiers.

    import dat_tf as dat

    attack = dat.PGD(dat.LInfinity(8 / 255), step_size=2 / 255, steps=10)
    model = dat.AdversarialModel(network, attack)
    model.compile(optimizer=dat.LAMB(0.01))

All public names of the rooms below are names of the package too. Importing it is
cheap: TensorFlow is imported by the rooms that compute, when one of their names is
first used, so that flags and TF_CONFIG can be checked before TensorFlow starts.
"""

import importlib.util
from typing import Any

from dat_tf.base import stack

__version__ = "0.1.0"

_ROOMS = (
  "base.errors",
  "base.hashing",
  "attacks",
  "objectives",
  "communication",
  "optimizers",
  "models",
  "evaluation",
  "adversarial_model",
)

stack.prepare()


def __getattr__(name: str) -> Any:
  if not name.startswith("_"):
    if importlib.util.find_spec(f"dat_tf.{name}"):
      return importlib.import_module(f"dat_tf.{name}")
    for room in _ROOMS:
      module = importlib.import_module(f"dat_tf.{room}")
      if name in module.__all__:
        return getattr(module, name)
  raise AttributeError(f"module 'dat_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
  modules = [importlib.import_module(f"dat_tf.{room}") for room in _ROOMS]
  return sorted(
    {
      *globals(),
      *filter(str.isidentifier, _ROOMS),
      *(name for m in modules for name in m.__all__),
    }
  )
