"""Opens pages in headless Chromium: Debian's chromium and chromium-driver."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Optional

from selenium import webdriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Why the tests that open pages are skipped; None if they are not.
MISSING: Optional[str] = (
  None
  if CHROMIUM and DRIVER
  else "no browser here: apt-get install chromium chromium-driver"
)


@contextlib.contextmanager
def opened(width: int = 1200, height: int = 900) -> Iterator[webdriver.Chrome]:
  """A browser whose page is so many pixels wide and high."""
  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM
  for argument in (
    "headless=new",
    "no-sandbox",  # which root cannot have
    "disable-gpu",
    "disable-dev-shm-usage",  # small in containers
    "hide-scrollbars",
    f"window-size={width},{height}",
  ):
    options.add_argument(f"--{argument}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  service = webdriver.ChromeService(executable_path=DRIVER)
  driver = webdriver.Chrome(options=options, service=service)
  try:
    resize(driver, width, height)
    yield driver
  finally:
    driver.quit()


def resize(driver: webdriver.Chrome, width: int, height: int) -> None:
  """The size of what the page sees, which a window cannot be smaller than 500."""
  driver.execute_cdp_cmd(
    "Emulation.setDeviceMetricsOverride",
    {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
  )


def prefer(driver: webdriver.Chrome, scheme: str, media: str = "screen") -> None:
  """Shows pages as to someone who prefers `light` or `dark`, or on `print`."""
  feature = {"name": "prefers-color-scheme", "value": scheme}
  driver.execute_cdp_cmd(
    "Emulation.setEmulatedMedia", {"media": media, "features": [feature]}
  )


def errors(driver: webdriver.Chrome) -> list[str]:
  """The errors on the console since it was last asked."""
  return [
    entry["message"]
    for entry in driver.get_log("browser")
    if entry["level"] == "SEVERE"
  ]


# `innerText` ends where a custom element's own tree begins; this goes on.
_ALL_TEXT = """
  const texts = [];
  const walk = node => {
    if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
    if (node.shadowRoot) walk(node.shadowRoot);
    if (!["STYLE", "SCRIPT"].includes(node.nodeName)) node.childNodes.forEach(walk);
  };
  walk(document.body);
  return texts.join(" ");
"""


def wait_for_text(
  driver: webdriver.Chrome, expected: Sequence[str], seconds: float = 60.0
) -> str:
  """All text of the page, once it has what is expected, or time is over."""
  last = time.monotonic() + seconds
  while True:
    text = driver.execute_script(_ALL_TEXT)
    if all(word in text for word in expected) or time.monotonic() > last:
      return text
    time.sleep(0.2)
