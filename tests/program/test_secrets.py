"""What the environment holds reaches neither files nor output."""

from __future__ import annotations

import pytest
from program_case import ProgramCase, contents, run_dat

SECRET = "hunter2-f31c9d"


@pytest.mark.long
class SecretsTest(ProgramCase):
  def test_a_run_keeps_nothing_of_its_environment(self):
    model_dir = self.folder / "run"
    run = run_dat(
      {**self.flags, "model_dir": model_dir, "attacks": "fgsm", "probe_images": 8},
      num_workers=2,
      AWS_SECRET_ACCESS_KEY=SECRET,
      GOOGLE_API_KEY=SECRET,
      http_proxy=f"http://user:{SECRET}@127.0.0.1:9",
      DAT_TF_TOKEN=SECRET,
    )
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertNotIn(SECRET, run.stdout + run.stderr)
    written = contents(model_dir)
    self.assertIn("report.html", written)
    self.assertIn("config.flags", written)
    for path, content in written.items():
      self.assertNotIn(SECRET.encode(), content, path)
