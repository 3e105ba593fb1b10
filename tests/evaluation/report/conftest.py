"""A headless Chromium that notes what a page asks the network for and what it says on its console."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1280,900",
)  # fmt: skip


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """A browser of its own, from Debian's packages chromium and chromium-driver."""
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.fail("no chromium and chromedriver on this machine; make test-browser installs them")
    options = ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(driver))
    chrome.set_page_load_timeout(120)
    yield chrome
    chrome.quit()


def requested(browser: Chrome) -> list[str]:
    """Every URL that pages have asked for since the last call; the browser's own start page is no page."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent if not params["documentURL"].startswith("chrome://")]


def complaints(browser: Chrome) -> list[str]:
    """What has been said on the console since the last call."""
    return [entry["message"] for entry in browser.get_log("browser")]
