"""Measures a run's accuracy: by PGD inside Keras, or by attacks example by example."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from typing import Any, Optional

import tensorflow as tf

from dat_tf import config as config_lib
from dat_tf.base import files, stack
from dat_tf.base.errors import UserError, with_flags
from dat_tf.data import pipeline, records, shards
from dat_tf.evaluation import Survey, UserModel, checks, outcomes, survey
from dat_tf.models.view import attacked_view
from dat_tf.monitoring import Progress, read_results
from dat_tf.objectives import is_certified
from dat_tf.program import checkpointing
from dat_tf.program.run import Run
from dat_tf.program.trainee import Trainee

# Images on which a model is tried with pixels in other ranges.
_LARGEST_TRIAL = 200


def evaluate(run: Run, trainee: Optional[Trainee]) -> None:
  """Measures clean and robust accuracy, each test image counted once.

  Args:
    run: of which --attacks say how, if any are named.
    trainee: what is evaluated; None for the model of --model_path.
  """
  if run.config.attacks or trainee is None:  # that model always by name
    attack(run, trainee)
    return
  source = run.inputs.test
  assert source is not None
  progress = Progress(source.steps)
  with run.explained_errors(), contextlib.closing(progress):
    metrics = trainee.model.evaluate(
      run.distribute(run.inputs.evaluation_batches(source)),
      steps=source.steps,
      callbacks=[run.watchdog, *([progress] if run.workers.is_chief else [])],
      verbose=0,
      return_dict=True,
    )
  if not math.isfinite(metrics["loss"]):
    raise UserError(
      f"The loss of the test images is {metrics['loss']}: the network is broken; train "
      "again, from an earlier checkpoint or with a lower --learning_rate."
    )
  whole = _whole(run.config)
  if int(metrics["examples"]) != whole.num_examples:
    raise UserError(
      f"{int(metrics['examples'])} test images were counted, and the files of "
      f"{run.config.test_data} hold {whole.num_examples}: they changed, or a worker "
      "sees others; evaluate again once all see the same."
    )
  robust = {f"pgd-{run.config.evaluation_attack_steps}": metrics["robust_accuracy"]}
  with run.explained_errors(whole.paths):
    work = _survey(run, whole, trainee)
    if run.workers.is_chief:
      robust |= _measured_by_example(work, robust, int(metrics["examples"]))
      names = _write_accuracies(
        run,
        work,
        standard=metrics["accuracy"],
        robust=robust,
        test_examples=int(metrics["examples"]),
        certified=metrics.get("certified_accuracy"),
      )
      probes = work.probe(run.config.probe_images)
      checks.show(_write_warnings(run, work, names, probes))
    run.workers.wait()  # a worker that ends takes the cluster with it


def attack(run: Run, trainee: Optional[Trainee]) -> None:
  """Measures robust accuracy under each of --attacks, example by example."""
  workers, whole = run.workers, _whole(run.config)
  # All workers read all files, and any may meet a bad record.
  with run.explained_errors(whole.paths):
    work = _survey(run, whole, trainee)
    probes = work.probe(run.config.probe_images) if workers.is_chief else {}
    certified = _certified(run, work, trainee) if workers.is_chief else None
    warnings: checks.Warnings = []
    for name in dict.fromkeys(run.config.attacks):
      progress = Progress(work.steps(name))
      with contextlib.closing(progress):
        if workers.is_chief:
          progress.on_test_begin()
          work.attack(name, functools.partial(progress.on_test_batch_end, 0))
          progress.on_test_end()
        else:
          work.attack(name)
      run.workers.wait()
      if workers.is_chief:
        rows = work.merge(name)
        standard = float((rows["prediction"] == rows["label"]).mean())
        robust = float(outcomes.robust(rows).mean())
        count = len(rows["label"])
        print(
          f"{name}: {robust:.2%} of {count} images stay right, of {standard:.2%} "
          "without an attack.",
          flush=True,
        )
        names = _write_accuracies(
          run,
          work,
          standard=standard,
          robust={name: robust},
          test_examples=count,
          certified=certified,
        )
        warnings = _write_warnings(run, work, names, probes)
  checks.show(warnings)


def _whole(config: config_lib.Settings) -> shards.Shard:
  """All test data."""
  return shards.shard_files(
    records.match_files(config.test_data),
    0,
    1,
    skip_bad_records=config.skip_bad_records > 0,
  )


def _survey(run: Run, whole: shards.Shard, trainee: Optional[Trainee]) -> Survey:
  """This worker's part of the attacks."""
  config, cluster, source = run.config, run.workers.cluster, run.inputs.test
  assert source is not None

  def batches(shard: shards.Shard, batch_size: int) -> tf.data.Dataset:
    return pipeline.evaluation_dataset(
      shard,
      run.inputs.reading_of(source, config_lib.make_crop(config)),
      batch_size=batch_size,
      batches_per_epoch=-(-shard.num_examples // batch_size),
    )

  data = survey.Data(
    survey.first_examples(whole, config.evaluation_examples),
    batches,
    run.inference_batch_size,
  )
  if trainee is None:
    assert config.model_path is not None
    model = UserModel(
      config.model_path,
      config.input_range,
      probabilities=config.probabilities,
      flag="model_path",
      unsafe=config.unsafe_model,
    )
    model.check(data.first_batch(), config.num_classes)
    if cluster.is_chief:
      images, labels, _ = data.first(_LARGEST_TRIAL)
      accuracies = model.accuracies(images, labels, data.batch_size)
      checks.show(_with_flags(checks.from_ranges(accuracies, model.range)))
    classifier: Any = model
    weights = files.fingerprint(config.model_path)
  else:
    trainee.copy_final_weights()
    classifier = attacked_view(trainee.plain, "float32", training=False)()
    weights = checkpointing.fingerprint(trainee.plain)
  source_model = _source(config, data)
  if trainee is None and cluster.is_chief:  # now that all mistakes are seen
    config_lib.save(config)
  files_read = [
    [os.path.basename(path), files.fingerprint(path)] for path in whole.paths
  ]
  words = config.words()
  names = "image_size", "first_label", "input_range", "probabilities"
  return Survey(
    config.directory.evaluation,
    classifier,
    config_lib.make_ball(config),
    config.norm,
    data,
    config.seed,
    [weights, files_read, *(words.get(name, "") for name in names)],
    cluster.index,
    cluster.num_workers,
    *source_model,
  )


def _write_warnings(
  run: Run, work: Survey, names: list[str], probes: dict[str, Any]
) -> checks.Warnings:
  """What the probes and the outcomes of attacks, earlier ones too, warn of."""
  found = checks.from_probes(probes)
  found += checks.from_outcomes(work.done(names), probes, run.config.num_classes)
  found = _with_flags(found)
  count = len(probes["example_id"]) if probes else 0
  run.write_results({"warnings": found, "probed_images": count})
  return found


def _with_flags(warnings: checks.Warnings) -> checks.Warnings:
  return [
    {**each, "message": with_flags(each["message"], config_lib.FLAGS)}
    for each in warnings
  ]


def _source(
  config: config_lib.Settings, data: survey.Data
) -> tuple[Optional[UserModel], str]:
  """The model that transfer attacks are made on, and what tells it from others."""
  path = config.source_model_path
  if not path:
    return None, ""
  pixels = config.source_input_range
  model = UserModel(
    path,
    pixels,
    probabilities=config.source_probabilities,
    flag="source_model_path",
    unsafe=config.unsafe_model,
  )
  model.check(data.first_batch(), config.num_classes)
  names = "source_input_range", "source_probabilities"
  words = config.words()
  settings = [words.get(name, "") for name in names]
  return model, "-".join([files.fingerprint(path), *settings])


def _measured_by_example(
  work: Survey, robust: dict[str, float], count: int
) -> dict[str, float]:
  """Accuracies under those of the attacks that --attacks has measured on all images.

  That of one name is the stronger, for it takes any point of the way, not the last.
  """
  if work.data.whole.num_examples != count:
    return {}
  tables = work.done(robust).items()
  stronger = {name: float(outcomes.robust(rows).mean()) for name, rows in tables}
  for name, accuracy in stronger.items():
    print(
      f"{name}: the {accuracy:.2%} that --attacks={name} left of the same images stay "
      f"in results.json; under PGD's last points it is {robust[name]:.2%}.",
      flush=True,
    )
  return stronger


def _certified(run: Run, work: Survey, trainee: Optional[Trainee]) -> Optional[float]:
  """The share that training's bounds certify; None after training without any."""
  if not run.config.certifies or trainee is None:
    return None
  certify = tf.function(functools.partial(is_certified, trainee.plain))
  count = sum(
    tf.math.count_nonzero(
      certify(batch["image"], batch["label"], run.config.epsilon)
      & (batch["weight"] > 0)
    )
    for batch in work.data.batches(work.data.whole, work.data.batch_size)
  )
  return int(count) / work.data.whole.num_examples


def _write_accuracies(
  run: Run,
  work: Survey,
  *,
  standard: float,
  robust: dict[str, float],
  test_examples: int,
  certified: Optional[float],
) -> list[str]:
  """Puts accuracies beside those under other attacks on the same network and images.

  Returns:
    The names of all these attacks.
  """
  directory = run.config.model_dir
  path = run.config.directory.results
  there = read_results(path)
  count = there.get("test_examples")
  if count != test_examples:
    if there.get("robust_accuracy"):
      kept = f"results_{count}.json"
      files.write_text(os.path.join(directory, kept), files.read_text(path) or "")
      print(f"Accuracies on {count} test images, which were there, are in {kept} now.")
    there = read_results(os.path.join(directory, f"results_{test_examples}.json"))
  if there.get("fingerprint") != work.fingerprint:
    there = {}
  accuracies = {**there.get("robust_accuracy", {}), **robust}
  run.write_results(
    {
      "standard_accuracy": standard,
      "robust_accuracy": accuracies,
      **({} if certified is None else {"certified_accuracy": certified}),
      "evaluated_with": stack.versions(),
      "test_examples": test_examples,
      "norm": run.config.norm,
      "epsilon": run.config.epsilon,
      "fingerprint": work.fingerprint,
      "warnings": there.get("warnings", []),
      "probed_images": there.get("probed_images", 0),
    }
  )
  return list(accuracies)
