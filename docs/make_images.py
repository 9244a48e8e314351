"""Takes the README's pictures, docs/images/*.png, in headless Chromium.

    python docs/make_images.py RUN LOGDIR

RUN is the directory of an evaluated run, for its report; the custom scalars of
TensorBoard show the runs below LOGDIR. Needs the test extra, chromium and
chromium-driver.
"""

from __future__ import annotations

import io
import pathlib
import sys
import time

from PIL import Image
from tensorboard import program

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.append(str(DOCS.parent / "tests"))

import browser  # noqa: E402


def keep(name: str, page: bytes) -> None:
  """Few colours serve a page of text and lines, and make a small file."""
  picture = Image.open(io.BytesIO(page)).convert("RGB").quantize(128)
  picture.save(DOCS / "images" / f"{name}.png", optimize=True)


def main(run: str, logdir: str) -> None:
  server = program.TensorBoard()
  server.configure([None, "--logdir", logdir, "--port", "0", "--load_fast", "false"])
  url = server.launch()
  with browser.opened(870, 990) as driver:
    browser.prefer(driver, "light")
    driver.get((pathlib.Path(run).resolve() / "report.html").as_uri())
    keep("report", driver.get_screenshot_as_png())
    browser.resize(driver, 870, 487)
    driver.get(f"{url}#custom_scalars")
    browser.wait_for_text(driver, ["Clean and robust accuracy", "logs/test"])
    time.sleep(5)  # the lines come after the text
    keep("tensorboard", driver.get_screenshot_as_png())


if __name__ == "__main__":
  main(*sys.argv[1:])
