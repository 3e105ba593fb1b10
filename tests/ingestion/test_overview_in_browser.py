"""The cohort page as a person finds it: on a phone and a screen, in light and dark, by keyboard."""

from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from milcore.config import IngestConfig
from milcore.ingestion.cohort import ingest, plan_cohort
from milcore.ingestion.overview import write_cohort_page
from milcore.slides.write_pyramid import write_pyramid
from tests.chromium import browser, check, complaints, focusable, open_page, overflow_px, press_tab, tab_stops

__all__ = ["browser"]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides that are ok, one without tissue, one that is not there."""
    folder = tmp_path_factory.mktemp("cohort")
    pixels = np.full((256, 256, 3), (243, 242, 244), np.uint8)
    write_pyramid(folder / "blank.tiff", pixels, 0.5, 1)
    lines = ["slide_id,uri,label,patient_id", "slide-0003,blank.tiff,normal,patient-0003", "slide-0004,c.tiff,tumour,p"]
    for k in range(3):
        pixels[:, : 128 + 64 * (k % 2)] = (200, 120, 170)
        write_pyramid(folder / f"{k}.tiff", pixels, 0.5, 1, quality=95)
        lines.append(f"slide-000{k},{k}.tiff,tumour,patient-000{k}")
    (folder / "m.csv").write_text("\n".join([*lines, ""]))
    plan_cohort(str(folder / "m.csv"), str(folder / "store"))
    list(ingest(str(folder / "store"), IngestConfig(patch_size=64), 0))
    return Path(write_cohort_page(str(folder / "store")))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_read_on_a_phone_and_a_screen_in_light_and_dark(
    page: Path, browser: Chrome, width: int, scheme: str
) -> None:
    open_page(browser, page, width, scheme)
    assert overflow_px(browser) <= 0
    assert check(browser, "lowContrast") == []
    assert complaints(browser) == []
    for head in browser.find_elements(By.CSS_SELECTOR, "tbody th"):
        lines = head.text.split("\n")
        assert 1 <= len(lines) <= 2, "an id does not break"


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_is_sorted_and_scrolled_by_keyboard(page: Path, browser: Chrome, width: int, scheme: str) -> None:
    open_page(browser, page, width, scheme)
    stops = tab_stops(browser)
    assert len(stops) == focusable(browser) >= 11
    assert [stop for stop in stops if stop.outline_px < 2 or stop.contrast < 3 or not stop.visible] == []

    open_page(browser, page, width, scheme)
    while not press_tab(browser).name.strip().endswith("slide"):
        pass
    for order in (sorted, lambda ids: sorted(ids, reverse=True)):
        ActionChains(browser).send_keys(Keys.ENTER).perform()
        ids = [head.text.split("\n")[0] for head in browser.find_elements(By.CSS_SELECTOR, "tbody th")]
        assert ids == order(ids)
