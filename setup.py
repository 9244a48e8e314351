"""Packaging of DAT-TF; the settings of its tools stand in pyproject.toml.

The Python decides which TensorFlow is installed (dat_tf/base/stack.py says why there
are two). DAT_TF_STACK in the environment chooses another:

    modern     TensorFlow 2.19 to 2.21 and tf_keras, whatever the Python
    2.19       that version of TensorFlow alone, from 2.18 (up to Python 3.11) to 2.21
    nightly    last night's TensorFlow and tf_keras
"""

import os
import pathlib
import re
import subprocess

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent

# Read, not imported: importing dat_tf refuses a Python that is unsuitable, and pip
# says that better, from python_requires.
VERSION = re.search(
  r'^__version__ = "(.+)"$',
  (ROOT / "dat_tf" / "__init__.py").read_text(),
  re.MULTILINE,
).group(1)

# TensorFlow Addons 0.23 is the last release. It goes with TensorFlow 2.15, which goes
# with NumPy 1, protobuf 4 and Python 3.9 to 3.11.
CLASSIC = [
  "numpy>=1.23,<2",
  # TensorBoard 2.15 imports pkg_resources, which setuptools 82 dropped.
  "setuptools<81",
  "tensorflow>=2.15,<2.16",
  "tensorflow-addons==0.23.0",
  # Later ones, which TensorFlow Datasets would take, need protobuf 5 without saying so.
  "tensorflow-metadata>=1.13,<1.18",
]
# tf_keras asks for the TensorFlow of its own minor version, so that both agree. Until
# TensorFlow 2.21 drops it, tensorboard comes with TensorFlow; it imports pkg_resources.
COMMON_OF_MODERN = ["numpy>=1.26", "setuptools<81", "tensorboard>=2.18"]
STACKS = {
  "modern": [
    *COMMON_OF_MODERN,
    "tensorflow>=2.19,<2.22",
    "tf_keras>=2.19,<2.22",
  ],
  "nightly": [*COMMON_OF_MODERN, "tf-nightly", "tf_keras-nightly"],
  **{
    f"2.{minor}": [
      *COMMON_OF_MODERN,
      f"tensorflow==2.{minor}.*",
      f"tf_keras==2.{minor}.*",
    ]
    for minor in range(18, 22)
  },
}


CHOSEN = os.environ.get("DAT_TF_STACK", "")
if CHOSEN and CHOSEN not in STACKS:
  raise SystemExit(f"DAT_TF_STACK={CHOSEN}: choose one of {', '.join(STACKS)}.")


def of_stack(classic, modern):
  """Requirements of the stack that was chosen, or else of that of each Python."""
  if CHOSEN:
    return modern
  return [f'{each}; python_version < "3.12"' for each in classic] + [
    f'{each}; python_version >= "3.12"' for each in modern
  ]


class BuildPy(build_py):
  """Writes the commit into what is installed, for it has no repository beside it."""

  def run(self):
    super().run()
    if self.editable_mode or not (ROOT / ".git").exists():
      return
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    if commit:
      (pathlib.Path(self.build_lib) / "dat_tf" / "COMMIT").write_text(commit)


BEAM = ["apache-beam>=2.60,<3"]
# ONNX 1.18 needs a later ml_dtypes than TensorFlow 2.15 takes.
ONNX = of_stack(
  ["onnx>=1.16,<1.18", "onnxruntime>=1.17,<2", "tf2onnx>=1.16.1,<2"],
  ["onnx>=1.18", "onnxruntime>=1.20,<2", "tf2onnx>=1.17,<2"],
)

# What `make docs` needs: it reads the sources, and imports dat_tf.config alone of them.
DOCS = [
  "mkdocs>=1.6,<2",
  "mkdocs-material>=9.5,<10",
  "mkdocstrings[python]>=0.26,<2",
]

# What `make quickstart` needs beyond the package: the digits come with scikit-learn.
QUICKSTART = ["scikit-learn>=1.2,<2", "tabulate>=0.9,<1"]

setup(
  name="dat-tf",
  version=VERSION,
  description="Distributed adversarial training of robust image classifiers",
  license="Apache-2.0",
  packages=find_packages(include=["dat_tf", "dat_tf.*"]),
  package_data={"dat_tf": ["py.typed"], "dat_tf.reporting": ["page.html", "page.css"]},
  entry_points={
    "console_scripts": ["dat-tf=dat_tf.__main__:run", "dat-tf-launch=dat_tf.launch:run"]
  },
  python_requires=">=3.9,<3.14",
  install_requires=[
    *of_stack(CLASSIC, STACKS[CHOSEN or "modern"]),
    "absl-py>=1.4,<3",
    "jinja2>=3,<4",
    "matplotlib>=3.7,<4",
    "pillow>=9,<13",
    "tensorflow-datasets>=4.9.2,<4.10",
    "tqdm>=4.64,<5",
  ],
  cmdclass={"build_py": BuildPy},
  extras_require={
    "quickstart": QUICKSTART,
    "docs": DOCS,
    "test": [
      *QUICKSTART,
      *DOCS,
      *BEAM,
      *ONNX,
      "build>=1,<2",
      "hypothesis>=6,<7",
      "mypy>=1.15,<3",
      "pytest>=8,<10",
      "pytest-xdist>=3.5,<4",
      "ruff>=0.17,<0.18",
      "selenium>=4.11,<5",
    ],
    # Converts data sets on many machines: tfrecords/build_*.py --runner.
    "beam": BEAM,
    # --export_formats=onnx
    "onnx": ONNX,
    "gpu": of_stack(
      ["tensorflow[and-cuda]>=2.15,<2.16"], ["tensorflow[and-cuda]>=2.19,<2.22"]
    ),
  },
)
