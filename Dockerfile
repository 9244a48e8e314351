# DAT-TF with a Python and a TensorFlow that go together.
#
#   docker build -t dat-tf .                               TensorFlow 2.21, Python 3.13
#   docker build -t dat-tf --build-arg PYTHON=3.11 .       TensorFlow 2.15, Python 3.11
#
#   mkdir -p data runs
#   docker run --rm -u "$(id -u):$(id -g)" \
#     -v "$PWD/data:/opt/dat-tf/data" -v "$PWD/runs:/opt/dat-tf/runs" \
#     dat-tf --flagfile=flags/NAME.flags
#
# Another program than run_dat.py, such as tfrecords/build_digits.py or two workers:
#
#   docker run ... --entrypoint python dat-tf tfrecords/build_digits.py ...
#   docker run ... --entrypoint python dat-tf \
#     -m dat_tf.launch --num_workers=2 -- run_dat.py --flagfile=flags/NAME.flags
#
# With CUDA's libraries, for `docker run --gpus all`:
#
#   docker build -t dat-tf:gpu --build-arg EXTRAS=quickstart,gpu .
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

ARG EXTRAS=quickstart

RUN useradd --uid 1000 --create-home dat
WORKDIR /opt/dat-tf

# Before the rest, so that another flagfile does not install everything anew.
COPY setup.py pyproject.toml ./
COPY dat_tf ./dat_tf
RUN pip install --no-cache-dir --editable ".[${EXTRAS}]"

COPY . .
USER 1000
ENTRYPOINT ["python", "run_dat.py"]
