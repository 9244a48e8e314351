"""What the package uses of TensorFlow and Keras that they do not offer publicly.

All of it stands here, so that a new TensorFlow is read against one file. Each piece
says for which versions it holds, why it is needed, and what public way it waits for;
tests/test_compat.py fails when a name goes. (`tf.raw_ops`, `tf.compat.v1`,
`tf.distribute.StrategyExtended` and the methods that a subclass of
`tf.keras.optimizers.legacy.Optimizer` overrides are public.)

`from dat_tf.compat import keras` gives `tf.keras` where that is Keras 2, and an error
where it is not. TensorFlow is imported when something here is first used.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from dat_tf.base.stack import UnsuitableStack

if TYPE_CHECKING:
  import tensorflow as tf

T = TypeVar("T")
_NOTHING = re.compile(rb"(?!)")

# Lines on stderr that say nothing of a run. TensorFlow prints them on any machine: when
# it is imported its CUDA plug-ins register themselves twice, and oneDNN, the CPU's
# instructions and a lack of CUDA are announced; when data is distributed, tf.data says
# of tf.distribute's iterator that it will not be optimised; XLA announces its service,
# its device and its first use. Versions: all, with other words. Waits for a log level
# that tells these from warnings.
NOISE = re.compile(
  rb"Unable to register cu\w+ factory|computation placer already registered"
  rb"|oneDNN custom operations|cpu_feature_guard"
  rb"|To enable the following instructions|Could not find cuda drivers|TF-TRT Warning"
  rb"|Input of GeneratorDatasetOp::Dataset will not be optimized"
  rb"|log messages before absl::InitializeLog|XLA service|StreamExecutor device"
  rb"|Compiled cluster using XLA|SetPriority unimplemented|failed call to cuInit"
)


@contextlib.contextmanager
def quiet(noise: re.Pattern[bytes] = NOISE) -> Iterator[None]:
  """While it lasts, lines on stderr in which `noise` is found are dropped.

  By default it is what TensorFlow is known to print.

  Libraries below Python write to the file descriptor, so it is the descriptor that is
  caught; everything but noise is shown at the end, and all of it after an exception.
  """
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as caught:
    os.dup2(caught.fileno(), 2)
    try:
      yield
    except BaseException:
      noise = _NOTHING
      raise
    finally:
      sys.stderr.flush()
      os.dup2(stderr, 2)
      os.close(stderr)
      caught.seek(0)
      for line in caught:
        if not noise.search(line):
          os.write(2, line)


def __getattr__(name: str) -> Any:
  if name != "keras":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  import tensorflow as tf

  # Versions: all. Keras 2 names no version there, Keras 3 does. Waits for Keras 3 under
  # MultiWorkerMirroredStrategy (keras #20585).
  version = getattr(tf.keras, "__version__", "2")
  if version.startswith("3."):
    raise UnsuitableStack(
      f"tf.keras is Keras {version} here, which does not work under "
      'MultiWorkerMirroredStrategy: write "import dat_tf" above the first import of '
      "tensorflow, and unset TF_USE_LEGACY_KERAS or set it to 1."
    )
  return tf.keras


def bear_silence(num_workers: int, seconds: float) -> None:
  """Lets a worker be silent for so long before the others take it for dead.

  Versions: 2.15; from 2.16 to 2.21 the message's class stands elsewhere. Needed since
  TensorFlow's 10 s are little where processes share cores, or where a host swaps. Waits
  for a heartbeat among the arguments of MultiWorkerMirroredStrategy. Without it a run
  goes on with TensorFlow's 10 s, and says so.
  """
  try:
    from tensorflow.python.eager import context

    job = _coordinated_job()(name="worker", num_tasks=num_workers)
    # This is what the strategy would do otherwise.
    context.context().configure_coordination_service(
      service_type="standalone",
      service_leader="/job:worker/replica:0/task:0",
      heartbeat_timeout_in_ms=int(1000 * seconds),
      coordinated_jobs=[job],
    )
  except (ImportError, AttributeError, TypeError) as error:
    logging.getLogger(__name__).warning(
      "This TensorFlow takes no heartbeat of %g s (%s): a worker that is silent for "
      "10 s is taken for dead.",
      seconds,
      error,
    )


def _coordinated_job() -> Callable[..., Any]:
  for place in ("tensorflow.tsl", "tensorflow.compiler.xla.tsl"):
    name = f"{place}.protobuf.coordination_config_pb2"
    try:
      return importlib.import_module(name).CoordinatedJob
    except ModuleNotFoundError:
      continue
  raise ImportError("no CoordinatedJob")


def takes_tensors(callback: type[T]) -> type[T]:
  """A class decorator: Keras need not wait for each step's figures for this callback.

  Versions: Keras 2, all. Needed since otherwise every step ends with a copy of each
  figure to the host. Waits for `logs` that are read on demand; without it steps are
  slower, nothing else.
  """
  # A property, since Keras' own `__init__` sets the attribute of the instance to False.
  is_true = property(lambda self: True, lambda self, value: None)
  callback._supports_tf_logs = is_true  # type: ignore[attr-defined]
  return callback


def report_first_replica(model: tf.keras.Model) -> None:
  """Has `fit` and `evaluate` take the figures of the first replica for those of all.

  Versions: Keras 2, all. Needed since all replicas return the same figures, and to add
  them up Keras would send each through a collective of its own in every step. Waits for
  the attribute to be documented.
  """
  model.distribute_reduction_method = "first"


def begin_at_step(model: tf.keras.Model, step: int, fit: Callable[[], T]) -> T:
  """Runs `fit()`, whose first epoch begins at its step `step`, counted from 0.

  Versions: Keras 2, all. Needed since `fit` has an `initial_epoch` but no step in it;
  Keras asks this method where a run goes on. Waits for an `initial_step`.
  """
  hook = "_maybe_load_initial_counters_from_ckpt"
  if not hasattr(model, hook):
    raise AttributeError(f"Keras has no {hook}: no run can begin within an epoch.")
  object.__setattr__(model, hook, lambda steps, epoch: (epoch, step))
  try:
    return fit()
  finally:
    object.__delattr__(model, hook)


def make_slots(
  optimizer: tf.keras.optimizers.legacy.Optimizer, variables: list[tf.Variable]
) -> None:
  """Makes a legacy optimizer's slots now, rather than in its first step.

  Versions: Keras 2, all. Needed since slots that are made inside a step's graph are
  restored there, once for each trace. Waits for a public `build`, as Keras 2's newer
  optimizers have it.
  """
  optimizer._create_all_weights(variables)


def coefficients(
  optimizer: tf.keras.optimizers.legacy.Optimizer,
  variable: tf.Variable,
  apply_state: dict[Any, Any] | None,
) -> dict[str, tf.Tensor]:
  """What a legacy optimizer has prepared for a step of this variable.

  Versions: Keras 2, all. Needed in `_resource_apply_dense`, as Keras' own optimizers do
  it. Waits for nothing: legacy optimizers no longer change.
  """
  key = variable.device, variable.dtype.base_dtype
  return (apply_state or {}).get(key) or optimizer._fallback_apply_state(*key)


def name_of_all_copies(variable: tf.Variable) -> str:
  """A variable's name without the mark of a further replica: "conv2d/kernel:0".

  Versions: all. Needed since the copy of a mirrored variable on a further replica of a
  worker is called ".../replica_1". Waits for a way from a copy to the variable.
  """
  return re.sub(r"/replica_\d+(?=:)", "", variable.name)


def local_value(variable: tf.Variable) -> tf.Tensor:
  """The value on this worker's first replica, read without a collective.

  Versions: all. Needed since to read a batch-norm statistic under
  MultiWorkerMirroredStrategy is a collective, for which all workers must come. Waits
  for `experimental_local_results` outside of a strategy's scope.
  """
  return local_variables(variable)[0].read_value()


def local_variables(variable: tf.Variable) -> list[tf.Variable]:
  """The variables of this worker's replicas that make up a distributed one.

  Versions: all. Needed to give each replica the value that was its own. Waits for
  `experimental_local_results` outside of a strategy's scope.
  """
  return list(getattr(variable, "values", [variable]))


def local_replicas(strategy: tf.distribute.Strategy) -> int:
  """The number of replicas on this worker.

  Versions: all. `worker_devices` is documented, but not that it names this worker's
  devices alone. Waits for such a property.
  """
  return len(strategy.extended.worker_devices)


def quiet_iterator(
  dataset: tf.distribute.DistributedDataset, quiet: Callable[[], Any]
) -> tf.distribute.DistributedDataset:
  """The dataset, whose iterators are made inside the context manager `quiet()`.

  Versions: all. Needed since tf.data warns of tf.distribute's own kind of iterator, and
  Keras makes the iterator. Waits for that warning to go. It is a comfort: where the
  class cannot be changed the warning is shown.
  """

  class Quiet(type(dataset)):  # type: ignore[misc]
    def __iter__(self) -> Any:
      with quiet():
        return super().__iter__()

  try:
    dataset.__class__ = Quiet
  except TypeError as error:
    logging.getLogger(__name__).warning("TensorFlow's iterators stay loud: %s", error)
  return dataset


def layer_and_inputs(tensor: Any) -> tuple[tf.keras.layers.Layer, list[Any]]:
  """The layer of a functional model that gave a symbolic tensor, and what it took.

  Versions: Keras 2, all. Needed to follow a network layer by layer. Waits for a public
  walk over a functional model's graph.
  """
  import tensorflow as tf

  layer, node, _ = tensor._keras_history
  return layer, tf.nest.flatten(layer.inbound_nodes[node].keras_inputs)


def preprocess_input(constructor: Callable[..., Any]) -> Callable[[Any], Any]:
  """What one of `tf.keras.applications` wants done with pixels in [0, 255].

  Versions: Keras 2, all. Needed since the function is public by its module, but a
  constructor does not name that module. Waits for it to be an attribute of the latter.
  """
  return sys.modules[constructor.__module__].preprocess_input


def keras_metadata(saved_model: str) -> str:
  """The path at which Keras 2 describes its layers in a SavedModel.

  Versions: Keras 2, all. Needed to look for code in it before it is loaded. Waits for
  such a look in Keras.
  """
  return os.path.join(saved_model, "keras_metadata.pb")


def is_written_by_keras_2(saved_model: str) -> bool:
  """Whether a SavedModel is a whole Keras 2 model, which `load_model` opens.

  Versions: all. `load_model` refuses others only after it has loaded them. Waits for a
  public mark in a SavedModel.
  """
  import tensorflow as tf

  return tf.io.gfile.exists(keras_metadata(saved_model))


def saved_model_proto(content: bytes) -> Any:
  """What the file saved_model.pb holds, as a protocol buffer.

  Versions: all. Needed to see which operations a SavedModel has before it is loaded.
  Waits for such a look in `tf.saved_model`.
  """
  from tensorflow.core.protobuf import saved_model_pb2

  return saved_model_pb2.SavedModel.FromString(content)


def port(server: tf.data.experimental.service.WorkerServer) -> int:
  """The port at which a worker of tf.data's service listens.

  Versions: all. Needed since its port is chosen when it starts. Waits for a `target`,
  as a DispatchServer has it.
  """
  return int(server._address.rpartition(":")[2])
