"""Debian's Chromium, driven by Debian's chromedriver, for tests of pages; nothing is ever downloaded for it.

`.ci/run` installs both and axe-core where they are missing, and sets HFTL_BROWSER=required, so that it never skips.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# .ci/run reads it here.
AXE_VERSION = "4.14.1"
AXE = Path(__file__).parent.parent / ".axe" / AXE_VERSION / "node_modules" / "axe-core" / "axe.min.js"


def missing() -> str:
    """Why pages cannot be looked at; empty where they can."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if absent:
        return f"no {' and no '.join(absent)} here: apt-get install chromium chromium-driver"
    if not AXE.is_file():
        return f"no axe-core here: npm install --prefix .axe/{AXE_VERSION} axe-core@{AXE_VERSION}"
    return ""


def need_a_browser() -> None:
    """Skip with the reason where there is none; where one is required its absence is a failure."""
    if why := missing():
        if os.environ.get("HFTL_BROWSER") == "required":
            pytest.fail(why)
        pytest.skip(why)


class Browser:
    """A browser and what a test asks of the page that it shows."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def show(self, page: Path, *, width: int = 1280, dark: bool = False, scripts: bool = True) -> None:
        """Open a page from the disk."""
        self._cdp("Emulation.setScriptExecutionDisabled", value=not scripts)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._cdp("Emulation.setEmulatedMedia", features=[scheme])
        self._cdp("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.driver.get_log("performance")
        self.driver.get(page.absolute().as_uri())
        # Chromium says that it went there before the document of the new page stands.
        there = f"document.readyState === 'complete' && location.href === {json.dumps(page.absolute().as_uri())}"
        deadline = time.monotonic() + 30
        while not self.ask(there):
            assert time.monotonic() < deadline, f"{page} does not load"
            time.sleep(0.02)

    def ask(self, script: str) -> Any:
        """The value of an expression in the page, even of one whose own scripts may not run."""
        found = self._cdp("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened, itself and ``data:`` left out."""
        asked = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(message["params"]["request"]["url"])
        return [url for url in asked[1:] if not url.startswith("data:")]

    def faults(self) -> list[str]:
        """What axe-core finds serious or critical, with the place."""
        self._cdp("Runtime.evaluate", expression=AXE.read_text(encoding="utf-8"))
        found = self.ask("axe.run({resultTypes: ['violations']}).then(r => JSON.stringify(r.violations))")
        return [
            f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0].get('failureSummary', '')[:300]}"
            for each in json.loads(found)
            if each["impact"] in ("serious", "critical")
        ]

    def picture(self, file: Path) -> None:
        """The page from top to bottom as a PNG file."""
        size = self.ask("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        self._cdp(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )
        self.driver.save_screenshot(str(file))

    def _cdp(self, command: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser of its own profile, closed at the end."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    # As root, as in a container, Chromium has no sandbox to run in.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
