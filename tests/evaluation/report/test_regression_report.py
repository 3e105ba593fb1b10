"""The report and model card on regression: self-contained, escaped, complete, and drawn where the numbers say."""

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pytest
from markdown_it import MarkdownIt

from milcore.evaluation.report import SweepTable
from milcore.evaluation.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, steps, ticks
from milcore.evaluation.report.regression_contents import RegressionReport
from milcore.evaluation.report.regression_page import MOST_POINTS, regression_model_card, render_regression
from milcore.metrics.regression.summary import ValuePredictions, regression_metrics
from milcore.runtime.progress import format_quantity
from tests.evaluation.report.regression_example import regression_example, value_predictions
from tests.evaluation.report.test_report import Page


@pytest.fixture(scope="module")
def data() -> RegressionReport:
    return regression_example(12)


@pytest.fixture(scope="module")
def html(data: RegressionReport) -> str:
    return render_regression(data)


def figure(page: str, title: str) -> str:
    return re.search(rf"<strong>{title}</strong>.*?</svg>", page, re.DOTALL)[0]


def circles(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle class="dot-model" cx="([^"]+)" cy="([^"]+)"', text)]


def test_nothing_is_fetched_every_link_has_its_place_and_every_picture_words(html):
    page = Page(html)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"@import|url\(|https?://|fetch\(", html)
    assert len(page.ids) == len(set(page.ids))
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids)
    assert page.unlabelled == []


def test_every_metric_site_and_model_is_there(data, html):
    for words in ("Mean absolute error", "Spearman&#39;s rho", "north", "south", "training mean", "age years"):
        assert words in html
    assert "&lt;made-up&gt; warning" in html
    for name, estimate in data.metrics.overall.items():
        text = f"{estimate.value:.3f}" if name in {"r2", "pearson", "spearman"} else format_quantity(estimate.value)
        assert f'<span class="value">{text}</span>' in html
    assert "all predicted values of the split are equal" in html


def test_slides_stand_in_the_order_of_their_errors(data, html):
    listed = re.findall(r'<th scope="row"><a href="#slide-([^"]+)"[^>]*>', html)
    errors = {slide.view.slide_id: abs(slide.predicted - slide.true) for slide in data.slides}
    assert listed == sorted(errors, key=lambda name: (-errors[name], name))


def test_a_perfect_prediction_lies_on_the_diagonal(data):
    """Both axes have one range: from the lower left to the upper right corner."""
    true = np.array([3.0, 5.0, 9.0])
    test = ValuePredictions(true, true, ["a", "b", "c"])
    page = render_regression(dataclasses.replace(data, test=test, metrics=regression_metrics(test, 0)))
    for x, y in circles(figure(page, "Predicted against true")):
        along_x = (x - LEFT) / (WIDTH - LEFT - RIGHT)
        along_y = (HEIGHT - 42 - y) / (HEIGHT - TOP - 42)
        assert along_x == pytest.approx(along_y, abs=0.002)


def test_bias_and_limits_are_lines_over_the_whole_width_and_points_their_differences(data, html):
    """Heights are linear in the difference: those of the lines follow from two of the points."""
    drawn = figure(html, "Bland-Altman")
    points, difference = circles(drawn), data.test.difference
    assert len(points) == 12
    first, last = int(np.argmin(difference)), int(np.argmax(difference))
    slope = (points[last][1] - points[first][1]) / (difference[last] - difference[first])
    heights = [
        points[first][1] + slope * (data.metrics.overall[name].value - difference[first])
        for name in ("bias", "lower_limit", "upper_limit")
    ]
    lines = re.findall(r'<polyline class="line-(?:model|train)" points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"/>', drawn)
    assert [float(y) for _, y, _, _ in lines] == pytest.approx(heights, abs=0.3)
    assert all((float(a), float(b)) == (LEFT, WIDTH - RIGHT) for a, _, b, _ in lines)


def test_a_negative_r2_while_training_stays_in_its_chart(html):
    drawn = figure(html, "R2 while training")
    (points,) = re.findall(r'<polyline class="line-val[^"]*" points="([^"]+)"/>', drawn)
    heights = [float(pair.split(",")[1]) for pair in points.split()]
    assert min(heights) >= TOP
    assert max(heights) <= HEIGHT - 42


def test_of_many_bags_a_part_is_drawn_and_told(data):
    test = value_predictions(2 * MOST_POINTS + 1, 0)
    page = render_regression(dataclasses.replace(data, test=test))
    drawn = figure(page, "Predicted against true")
    assert len(circles(drawn)) == -(-len(test.true) // 3)
    assert f"{len(circles(drawn))} of {len(test.true)} slides." in drawn


@pytest.mark.parametrize("bags", [0, 1])
def test_a_split_with_few_bags_still_reports(data, bags):
    test = ValuePredictions(np.ones(bags), np.zeros(bags), [f"p{k}" for k in range(bags)])
    counts = data.counts if bags else ()
    page = render_regression(
        dataclasses.replace(data, test=test, metrics=regression_metrics(test, 0), slides=(), counts=counts)
    )
    assert ("There is no test slide." in page) == (bags == 0)
    assert ("the split holds one bag" in page) == (bags == 1)
    assert ("Bland-Altman" in page) == (bags == 1)


def test_the_trial_of_the_highest_r2_is_marked(data):
    rows = [
        {"trial": k, "state": "ok", "val_loss": 0.3, "val_r2": value, "val_r2_se": 0.04}
        for k, value in enumerate((0.61, 0.72, -0.55))
    ]
    html = render_regression(
        dataclasses.replace(data, sweep=SweepTable(pa.Table.from_pylist(rows), "trial 1 is first"))
    )
    assert "highest validation R2, among equals" in html
    assert '<th scope="col">validation R2</th><th scope="col">its standard error</th>' in html
    assert re.findall(r'<tr class="ours"><td>(\d)</td>', html) == ["1"]


def test_the_model_card_is_markdown_with_the_figures(data):
    card = regression_model_card(data)
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    assert sum(token.type == "table_open" for token in tokens) == 4
    assert f"{data.metrics.overall['r2'].value:.3f}" in card
    assert "age\\_years" in card or "age_years" in card


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-3.0, 7.0, (-2.0, 0.0, 2.0, 4.0, 6.0)),
        (0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (-2.5e-9, -1e-9, (-2.5e-9, -2e-9, -1.5e-9, -1e-9)),
        (99_900.0, 100_400.0, (99_900.0, 100_000.0, 100_100.0, 100_200.0, 100_300.0, 100_400.0)),
    ],
)
def test_ticks_are_round_and_within_their_range(low, high, expected):
    assert ticks(low, high, 5) == expected
    assert steps(1.0, 5) == ticks(0.0, 1.0, 5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000123456, "0.0001235"),
        (-2.5, "-2.5"),
        (61.2345, "61.23"),
        (12345.6, "12,346"),
        (9999.7, "10,000"),
        (0.0, "0"),
        (None, "undefined"),
    ],
)
def test_numbers_with_a_unit_have_four_digits(value, text):
    assert format_quantity(value) == text
