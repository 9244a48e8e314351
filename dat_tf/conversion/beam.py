"""Converts images on many machines, as an Apache Beam pipeline.

The same files come out as from `dat_tf.conversion.convert` in threads, bit for bit. The
images must lie where all machines reach them, and so must the directory that the files
go to.
"""

from __future__ import annotations

import functools
import json
import os
import re
import uuid
from collections.abc import Sequence
from typing import Any, Callable, Optional

import tensorflow as tf

from dat_tf.base.errors import UserError
from dat_tf.conversion.convert import (
  MakeRecord,
  Plan,
  Written,
  write_in_threads,
  write_shard,
)
from dat_tf.conversion.items import Item
from dat_tf.data import writing

# A file's path, and where the list of its images begins and how long it is, in bytes.
Task = tuple[str, int, int]


def writer(
  runner: Optional[str], arguments: Sequence[str]
) -> Callable[[Plan], Written]:
  """What writes a conversion's files: threads, or Beam's runner of the given name.

  Args:
    runner: For example "DirectRunner" or "DataflowRunner"; None is no runner.
    arguments: Flags for Beam's PipelineOptions.

  Raises:
    UserError: Apache Beam is not installed, it has no such runner, or there are
      arguments and no runner.
  """
  if runner is None:
    if arguments:
      raise UserError(f"'{arguments[0]}' is no flag: only `runner` takes more of them.")
    return write_in_threads
  try:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import create_runner
  except ImportError:
    raise UserError(
      "`runner` needs Apache Beam: pip install 'dat-tf[beam]', or leave it out."
    ) from None
  try:
    create_runner(runner)
  except (ImportError, ValueError) as error:
    raise UserError(f"`runner={runner}`: {error}") from error
  options = PipelineOptions([f"--runner={runner}", *arguments])
  return functools.partial(write_with_beam, options)


def write_with_beam(options: Any, plan: Plan) -> Written:
  """Writes the missing files, each as one element of a pipeline.

  Args:
    options: Beam's PipelineOptions, the runner among them.
    plan: What is to be written. Its images lie in files, not in memory.

  Raises:
    UserError: As for `write_shard`, or the images lie in memory.
  """
  import apache_beam as beam
  from apache_beam.metrics import MetricsFilter

  if not plan.items[0].path:
    raise UserError(
      "`runner` needs images that lie in files as they are (folders, tars, .npz "
      "without compression), not in memory: leave it out."
    )
  directory, name = os.path.split(plan.paths[plan.missing[0]])
  # The lists go to a file, since a pipeline's description must be small.
  lists = os.path.join(directory, f".{name}.{uuid.uuid4().hex}")
  try:
    with writing.explain_failed_writing(directory):
      tasks = _write_lists(plan, lists)
    pipeline = beam.Pipeline(options=options)
    _ = (
      pipeline
      | beam.Create(tasks)
      | beam.Reshuffle()
      | beam.Map(_write, lists, plan.make_record, skip_bad_images=plan.skip_bad_images)
    )
    result = pipeline.run()
    result.wait_until_finish()
  except Exception as error:  # Runners wrap what a worker raised in their own ways.
    if found := re.search(r"(?:UserError|BadImages): ([^\n]+)", str(error)):
      raise UserError(found[1].split(" [while running")[0]) from error
    raise
  finally:
    if tf.io.gfile.exists(lists):
      tf.io.gfile.remove(lists)

  def count(name: str) -> int:
    counters = result.metrics().query(MetricsFilter().with_name(name))["counters"]
    return sum(counter.result for counter in counters)

  return Written(*map(count, Written._fields))


def _write_lists(plan: Plan, path: str) -> list[Task]:
  """Writes each missing file's images to one file, and says where each list lies."""
  tasks, offset = [], 0
  with tf.io.gfile.GFile(path, "wb") as file:
    for shard in plan.missing:
      content = json.dumps(plan.items_of(shard)).encode()
      file.write(content)
      tasks.append((plan.paths[shard], offset, len(content)))
      offset += len(content)
  return tasks


def _write(
  task: Task, lists: str, make_record: MakeRecord, *, skip_bad_images: bool
) -> None:
  """Writes one file; runs on a worker."""
  from apache_beam.metrics import Metrics

  path, offset, size = task
  with tf.io.gfile.GFile(lists, "rb") as file:
    file.seek(offset)
    items = [Item(*fields) for fields in json.loads(file.read(size))]
  written = write_shard(path, items, make_record, skip_bad_images=skip_bad_images)
  for name, number in written._asdict().items():
    Metrics.counter("dat_tf", name).inc(number)
