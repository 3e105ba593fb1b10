"""The report as a person finds it: it opens without a request, sorts, filters, fades, and is reached by keyboard."""

import re
from html import escape
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from milcore.evaluation.report import render
from milcore.evaluation.report.regression_page import render_regression
from milcore.evaluation.report.survival_page import render_survival
from tests.chromium import check, complaints, focusable, open_page, overflow_px, press_tab, requested, tab_stops
from tests.evaluation.report.example import example, of_many
from tests.evaluation.report.regression_example import regression_example
from tests.evaluation.report.survival_example import survival_example

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=[24, 500])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(example(request.param)), encoding="utf-8")
    return request.param, path


def shown(browser: Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, "#slides tbody tr:not([hidden])")


def column(browser: Chrome, place: int) -> list[str]:
    script = (
        "return Array.from(document.querySelectorAll('#slides tbody tr')).map(r => r.cells[arguments[0]].textContent)"
    )
    return [text.strip() for text in browser.execute_script(script, place)]


def press(browser: Chrome, title: str) -> WebElement:
    """Reach a heading by keyboard and press it; returns the heading."""
    head = next(h for h in browser.find_elements(By.CSS_SELECTOR, "#slides th") if h.text.startswith(title))
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    return head


def test_a_report_works_and_asks_nobody(page: tuple[int, Path], browser: Chrome) -> None:
    slides, path = page
    browser.get(path.as_uri())
    assert {url for url in requested(browser) if not url.startswith("data:")} == {path.as_uri()}
    assert len(shown(browser)) == slides

    errors = [float(text) for text in column(browser, 5)]
    assert errors == sorted(errors, reverse=True)
    assert press(browser, "Slide").get_attribute("aria-sort") == "ascending"
    assert column(browser, 0) == sorted(column(browser, 0), key=lambda name: int(name.split("-")[1]))
    press(browser, "Patches")
    assert press(browser, "Patches").get_attribute("aria-sort") == "descending"
    patches = [int(text) for text in column(browser, 6)]
    assert patches == sorted(patches, reverse=True)

    box = browser.find_element(By.ID, "filter-text")
    box.send_keys("case-03")
    assert [row.get_attribute("data-slide") for row in shown(browser)] == ["case-03-s1"]
    assert browser.find_element(By.ID, "shown").text == f"1 of {slides} slides"
    assert len(browser.find_elements(By.CSS_SELECTOR, ".slide:not([hidden])")) == 1
    box.send_keys(Keys.BACKSPACE * 7)
    Select(browser.find_element(By.ID, "filter-call")).select_by_value("wrong")
    wrong = shown(browser)
    assert 0 < len(wrong) < slides
    assert {row.find_elements(By.TAG_NAME, "td")[3].text for row in wrong} == {"wrong"}
    Select(browser.find_element(By.ID, "filter-call")).select_by_value("")

    card = browser.find_element(By.ID, "slide-case-03-s1")
    browser.execute_script("arguments[0].scrollIntoView()", card)
    slider = card.find_element(By.CSS_SELECTOR, "input[type=range]")
    slider.send_keys(Keys.HOME)
    assert card.find_element(By.CSS_SELECTOR, ".heat").value_of_css_property("opacity") == "0"
    slider.send_keys(Keys.ARROW_RIGHT)
    assert card.find_element(By.CSS_SELECTOR, ".heat").value_of_css_property("opacity") == "0.01"
    assert slider.get_attribute("aria-valuetext") == "1 percent"
    pictures = "return Array.from(arguments[0].querySelectorAll('img')).every(i => i.complete && i.naturalWidth > 0)"
    for picture in card.find_elements(By.TAG_NAME, "img"):
        browser.execute_script("return arguments[0].decode()", picture)
    assert browser.execute_script(pictures, card)

    assert complaints(browser) == []
    assert all(url.startswith("data:") for url in requested(browser))


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_table_of_many_slides_is_paged_sorted_and_filtered_by_keyboard(
    tmp_path: Path, browser: Chrome, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(of_many(example(6), 1200, 8)), encoding="utf-8")
    open_page(browser, path, width, scheme)
    assert overflow_px(browser) <= 0
    assert [check(browser, name) for name in ("outside", "lowContrast")] == [[], []]
    above, below = browser.find_elements(By.CSS_SELECTOR, "#table .pages")
    assert len(shown(browser)) == 500
    assert above.find_element(By.TAG_NAME, "span").text == "Rows 1 to 500 of 1200"
    stops = tab_stops(browser)
    assert len(stops) == focusable(browser)
    assert [stop for stop in stops if stop.outline_px < 2 or stop.contrast < 3 or not stop.visible] == []

    press(browser, "Slide")
    assert column(browser, 0) == [f"m-{k:05d}" for k in range(500)]
    following = below.find_elements(By.TAG_NAME, "button")[1]
    for pressed in range(3):
        following.send_keys(Keys.ENTER)
        assert column(browser, 0)[0] == f"m-{(500, 1000, 1000)[pressed]:05d}"
    assert following.get_attribute("aria-disabled") == "true"
    assert browser.execute_script("return document.activeElement === arguments[0]", following)
    assert [bar.find_element(By.TAG_NAME, "span").text for bar in (above, below)] == ["Rows 1001 to 1200 of 1200"] * 2

    browser.find_element(By.ID, "filter-text").send_keys("m-00777")
    assert column(browser, 0) == ["m-00777"]
    assert browser.find_element(By.ID, "shown").text == "1 of 1200 slides"
    assert not above.is_displayed()
    assert browser.find_elements(By.CSS_SELECTOR, ".slide:not([hidden])") == []
    assert complaints(browser) == []


def test_a_sandboxed_frame_shows_it_as_the_kubeflow_ui_does(tmp_path: Path, browser: Chrome) -> None:
    """The viewer hands the page over as ``srcdoc``, in which a link to a place would lead to the frame's own page."""
    framed = f'<iframe sandbox="allow-scripts" width="900" height="700" srcdoc="{escape(render(example(4)))}">'
    (tmp_path / "frame.html").write_text(framed, encoding="utf-8")
    browser.get((tmp_path / "frame.html").as_uri())
    browser.switch_to.frame(0)
    browser.find_element(By.CSS_SELECTOR, "#slides tbody a").send_keys(Keys.ENTER)
    assert browser.execute_script("return document.title").endswith("slide report")
    slide = browser.find_element(By.CSS_SELECTOR, ".slide")
    WebDriverWait(browser, 20).until(
        lambda _: abs(browser.execute_script("return arguments[0].getBoundingClientRect().top", slide)) < 200
    )
    press(browser, "Patches")
    patches = [int(text) for text in column(browser, 6)]
    assert patches == sorted(patches)
    assert complaints(browser) == []


@pytest.fixture
def small_page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render(example(4)), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_read_on_a_phone_and_a_screen_in_light_and_dark(
    small_page: Path, browser: Chrome, width: int, scheme: str
) -> None:
    open_page(browser, small_page, width, scheme)
    assert overflow_px(browser) <= 0
    assert check(browser, "outside") == []
    assert check(browser, "collisions") == []
    assert check(browser, "lowContrast") == []
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 60) == (scheme == "dark")
    assert complaints(browser) == []


def test_text_of_low_contrast_and_what_leaves_its_card_are_noticed(small_page: Path, browser: Chrome) -> None:
    open_page(browser, small_page, 390, "light")
    browser.execute_script("document.querySelector('.lead').style.color = '#999'")
    browser.execute_script("document.querySelector('.confusion').style.width = '500px'")
    assert any(text.startswith("On 4 test slides") for text in check(browser, "lowContrast"))
    assert check(browser, "outside") != []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_everything_is_reached_by_tab_and_shows_that_it_is(
    small_page: Path, browser: Chrome, width: int, scheme: str
) -> None:
    open_page(browser, small_page, width, scheme)
    stops = tab_stops(browser)
    assert stops[0].name.endswith("Skip to content")
    assert len(stops) == focusable(browser)
    assert [stop for stop in stops if stop.outline_px < 2 or stop.contrast < 3] == []
    assert [stop.name for stop in stops if not stop.visible] == []


def test_the_skip_link_passes_over_the_sections_and_wide_tables_scroll_by_arrows(
    small_page: Path, browser: Chrome
) -> None:
    open_page(browser, small_page, 390, "light")
    assert press_tab(browser).visible
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    press_tab(browser)
    assert browser.execute_script("return document.activeElement.closest('main') !== null")
    table = browser.find_element(By.CSS_SELECTOR, "#table .scroll")
    assert table.get_attribute("tabindex") == "0"
    table.send_keys(Keys.ARROW_RIGHT * 3)
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script("return arguments[0].scrollLeft", table) > 0)


def test_ids_and_the_marks_of_sorting_do_not_break(small_page: Path, browser: Chrome) -> None:
    open_page(browser, small_page, 1280, "light")
    for selector in ("#slides tbody a", "#slides th button"):
        for element in browser.find_elements(By.CSS_SELECTOR, selector):
            assert browser.execute_script("return arguments[0].getClientRects().length", element) == 1, element.text


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_report_on_survival_is_read_sorted_and_reached_by_tab(
    tmp_path: Path, browser: Chrome, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_survival(survival_example(24)), encoding="utf-8")
    open_page(browser, path, width, scheme)
    assert overflow_px(browser) <= 0
    assert [check(browser, name) for name in ("outside", "collisions", "lowContrast")] == [[], [], []]
    assert {url for url in requested(browser) if not url.startswith("data:")} == {path.as_uri()}
    stops = tab_stops(browser)
    assert len(stops) == focusable(browser)
    assert [stop for stop in stops if stop.outline_px < 2 or stop.contrast < 3] == []
    press(browser, "Risk")
    risks = [float(text) for text in column(browser, 4)]
    assert risks == sorted(risks)
    Select(browser.find_element(By.ID, "filter-call")).select_by_value("censored")
    assert {row.find_elements(By.TAG_NAME, "td")[2].text for row in shown(browser)} == {"censored"}
    assert complaints(browser) == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_report_on_regression_is_read_sorted_and_reached_by_tab(
    tmp_path: Path, browser: Chrome, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_regression(regression_example(24)), encoding="utf-8")
    open_page(browser, path, width, scheme)
    assert overflow_px(browser) <= 0
    assert [check(browser, name) for name in ("outside", "collisions", "lowContrast")] == [[], [], []]
    assert {url for url in requested(browser) if not url.startswith("data:")} == {path.as_uri()}
    stops = tab_stops(browser)
    assert len(stops) == focusable(browser)
    assert [stop for stop in stops if stop.outline_px < 2 or stop.contrast < 3] == []
    press(browser, "Error")
    errors = [float(text) for text in column(browser, 4)]
    assert errors == sorted(errors)
    assert errors[0] < 0.0 < errors[-1]
    Select(browser.find_element(By.ID, "filter-call")).select_by_value("below")
    assert all(float(row.find_elements(By.TAG_NAME, "td")[3].text) < 0.0 for row in shown(browser))
    assert complaints(browser) == []
