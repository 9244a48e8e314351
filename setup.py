"""Packaging of DAT-TF; the settings of its tools stand in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

# Read, not imported: importing dat_tf refuses a Python that is unsuitable, and pip
# says that better, from python_requires.
VERSION = re.search(
  r'^__version__ = "(.+)"$',
  pathlib.Path(__file__).with_name("dat_tf").joinpath("__init__.py").read_text(),
  re.MULTILINE,
).group(1)

BEAM = ["apache-beam>=2.60,<3"]
# ONNX 1.18 needs a later ml_dtypes than TensorFlow 2.15 takes.
ONNX = ["onnx>=1.16,<1.18", "onnxruntime>=1.17,<2", "tf2onnx>=1.17,<2"]

# What `make quickstart` needs beyond the package: the digits come with scikit-learn.
QUICKSTART = ["scikit-learn>=1.2,<2", "tabulate>=0.9,<1"]

setup(
  name="dat-tf",
  version=VERSION,
  description="Distributed adversarial training of robust image classifiers",
  license="Apache-2.0",
  packages=find_packages(include=["dat_tf", "dat_tf.*"]),
  package_data={"dat_tf.reporting": ["page.html", "page.css"]},
  # TensorFlow Addons 0.23 is the last release; it goes with TensorFlow 2.15, which
  # goes with NumPy 1 and Python 3.9 to 3.11.
  python_requires=">=3.9,<3.12",
  install_requires=[
    "absl-py>=1.4,<3",
    "jinja2>=3,<4",
    "matplotlib>=3.7,<4",
    "numpy>=1.23,<2",
    "pillow>=9,<13",
    # TensorBoard 2.15 imports pkg_resources, which setuptools 82 dropped.
    "setuptools<81",
    "tensorflow>=2.15,<2.16",
    "tensorflow-addons==0.23.0",
    "tensorflow-datasets>=4.9.2,<4.10",
    # Later ones, which TensorFlow Datasets would take, need protobuf 5 without
    # saying so; TensorFlow 2.15 needs protobuf 4.
    "tensorflow-metadata>=1.13,<1.18",
    "tqdm>=4.64,<5",
  ],
  extras_require={
    "quickstart": QUICKSTART,
    "test": [
      *QUICKSTART,
      *BEAM,
      *ONNX,
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
    "gpu": ["tensorflow[and-cuda]>=2.15,<2.16"],
  },
)
