"""The flags: every setting of a run, with its unit and range, checked before it starts.

    config = parse(sys.argv)        # absl flags, --flagfile=flags/NAME.flags included
    config.epsilon                  # 0.1

A run keeps its settings in MODEL_DIR/config.flags, itself a flagfile. A later run in
the same directory must agree with it except in `MAY_CHANGE`.
"""

from dat_tf.config.settings import (
  MAY_CHANGE,
  check_against_saved,
  check_same,
  decay_epochs,
  input_range,
  load,
  parse,
  profile_steps,
  save,
  to_text,
)

__all__ = [
  "MAY_CHANGE",
  "check_against_saved",
  "check_same",
  "decay_epochs",
  "input_range",
  "load",
  "parse",
  "profile_steps",
  "save",
  "to_text",
]
