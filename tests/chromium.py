"""A headless Chromium, and what a person would see on a page in it: width, contrast, focus, order of Tab."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1280,900",
)  # fmt: skip
MOST_STOPS = 300
CHECKS = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


class Stop(NamedTuple):
    """An element that Tab reaches: what it is, and how its focus shows."""

    name: str
    outline_px: float
    contrast: float
    visible: bool


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


def open_page(browser: Chrome, path: Path, width: int, scheme: str) -> None:
    """Open a page in a window of so many px, in light or dark, with its details unfolded."""
    preferences = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = {"features": [{"name": name, "value": value} for name, value in preferences.items()]}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")


def overflow_px(browser: Chrome) -> int:
    """Px by which the page is wider than its window."""
    root = "document.documentElement"
    return int(browser.execute_script(f"return {root}.scrollWidth - {root}.clientWidth"))


def check(browser: Chrome, name: str) -> list[str]:
    """Faults of the page by a function of ``chromium.js``: lowContrast, outside or collisions."""
    faults: list[str] = browser.execute_script(f"{CHECKS} return {name}()")
    return faults


def press_tab(browser: Chrome) -> Stop:
    """Press Tab; what has the focus then."""
    ActionChains(browser).send_keys(Keys.TAB).perform()
    return Stop(*browser.execute_script(f"{CHECKS} return focus()"))


def tab_stops(browser: Chrome) -> list[Stop]:
    """Everything that Tab reaches from the top of the page until it leaves it."""
    stops: list[Stop] = []
    while len(stops) < MOST_STOPS:
        stop = press_tab(browser)
        if not stop.name or (stops and stop.name == stops[0].name):
            return stops
        stops.append(stop)
    raise AssertionError(f"{MOST_STOPS} times Tab did not leave the page; last {stops[-1].name}")


def focusable(browser: Chrome) -> int:
    """Number of elements that are operable."""
    return int(browser.execute_script(f"{CHECKS} return focusable()"))
