"""What the tests of reports share."""

from __future__ import annotations

import pathlib

import report_files
from folder_case import FolderCase

from dat_tf.reporting import runs, theme, write_report


def drawn(some):
  """{name: matplotlib's figure}."""
  return {plot.name: plot.draw(theme.LIGHT) for plot in some}


class ReportCase(FolderCase):
  """A whole run in the directory `at`, and what is reported of it."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.outcomes = report_files.write_run(cls.folder / "at")

  @classmethod
  def report(cls, into, *others):
    """The page that is written into a directory."""
    others = [str(cls.folder / name) for name in others]
    return pathlib.Path(write_report(str(cls.folder / into), others)).read_text()

  @classmethod
  def read(cls, *names):
    return runs.read_runs([str(cls.folder / name) for name in names])
