"""What was measured of one or several runs, as a page that people look at."""

from dat_tf.reporting.page import write_report

__all__ = ["write_report"]
