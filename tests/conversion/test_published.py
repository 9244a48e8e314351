"""Known archives."""

import contextlib
import hashlib
import io
import os

import tensorflow as tf

from dat_tf.conversion import published


class OriginalTest(tf.test.TestCase):
  def warning(self, size, md5):
    path = os.path.join(self.get_temp_dir(), "a.tar")
    with open(path, "wb") as file:
      file.write(b"content")
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
      published.warn_of_other(path, published.Original(size, md5))
    return stderr.getvalue()

  def test_warns_of_another_size_or_sum(self):
    right = hashlib.md5(b"content").hexdigest()
    self.assertEqual(self.warning(7, right), "")
    self.assertRegex(self.warning(8, right), "^Warning: .*7 bytes, not 8.\n$")
    self.assertRegex(self.warning(7, "0" * 32), f"^Warning: .*{right}, not 000")


if __name__ == "__main__":
  tf.test.main()
