"""The report and model card on survival: self-contained, escaped, complete, and drawn where the numbers say."""

import dataclasses
import math
import re

import numpy as np
import pyarrow as pa
import pytest
from markdown_it import MarkdownIt

from milcore.evaluation.report import SweepTable
from milcore.evaluation.report.charts import HEIGHT, LEGEND_LINE, Axes, Series, TickRow, chart
from milcore.evaluation.report.page import DASH
from milcore.evaluation.report.survival_contents import SurvivalReport
from milcore.evaluation.report.survival_page import p_or_number, render_survival, survival_model_card
from milcore.metrics.survival.outcome import Outcome
from milcore.metrics.survival.summary import RiskPredictions, survival_metrics
from tests.evaluation.report.survival_example import risk_predictions, survival_example
from tests.evaluation.report.test_report import Page


@pytest.fixture(scope="module")
def data() -> SurvivalReport:
    return survival_example(12)


@pytest.fixture(scope="module")
def html(data: SurvivalReport) -> str:
    return render_survival(data)


def test_nothing_is_fetched_every_link_has_its_place_and_every_picture_words(html):
    page = Page(html)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"@import|url\(|https?://|fetch\(", html)
    assert len(page.ids) == len(set(page.ids))
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids)
    assert page.unlabelled == []


def test_every_metric_site_and_model_is_there(data, html):
    for words in ("Harrell&#39;s C", "Mean dynamic AUC", "at risk", "north", "south", "embedding-mean pooling"):
        assert words in html
    assert "&lt;made-up&gt; warning" in html
    for estimate in data.metrics.overall.values():
        if estimate.value >= 0.001:
            assert f"{estimate.value:.3f}" in html
    assert "tau is the last" in html
    for time in data.metrics.times:
        assert f"{time:.4g}" in html


def test_slides_stand_in_the_order_of_their_residuals(data, html):
    listed = re.findall(r'<th scope="row"><a href="#slide-([^"]+)"[^>]*>', html)
    residuals = {slide.view.slide_id: abs(slide.residual) for slide in data.slides}
    assert listed == sorted(residuals, key=lambda name: (-residuals[name], name))


def test_patients_at_risk_stand_under_the_ticks_of_time(data, html):
    low = data.metrics.groups[0]
    at_risk = re.search(r">at risk</text><line[^>]*/>((?:<text[^>]*>\d+</text>)+)", html)
    counts = [int(n) for n in re.findall(r">(\d+)</text>", at_risk.group(1))]
    assert counts[0] == low.patients
    assert counts == sorted(counts, reverse=True)


def test_a_split_without_events_or_patients_still_reports(data):
    training = risk_predictions(100, 2)
    for patients in (0, 5):
        censored = Outcome.of(np.arange(1.0, patients + 1), np.zeros(patients, bool))
        test = RiskPredictions(censored, np.zeros(patients), [f"p{k}" for k in range(patients)])
        metrics = survival_metrics(test, training, seed=0)
        counts = () if patients == 0 else data.counts
        page = render_survival(dataclasses.replace(data, metrics=metrics, slides=(), counts=counts))
        assert "no pair of patients whose order of events is known" in page
        assert ("There is no test patient." in page) == (patients == 0)


def test_an_interval_without_width_is_explained(data, html):
    time = np.arange(1.0, 13.0)
    test = RiskPredictions(Outcome.of(time, np.ones(12, bool)), -time, [f"p{k}" for k in range(12)])
    metrics = survival_metrics(test, test, seed=0)
    words = "With 12 patients it does not mean certainty."
    assert words in render_survival(dataclasses.replace(data, metrics=metrics))
    assert words not in html


def test_the_trial_of_the_highest_harrell_c_is_marked(data):
    rows = [
        {"trial": k, "state": "ok", "val_loss": 3.0, "val_harrell_c": c, "val_harrell_c_se": 0.04}
        for k, c in enumerate((0.61, 0.72, 0.55))
    ]
    html = render_survival(dataclasses.replace(data, sweep=SweepTable(pa.Table.from_pylist(rows), "trial 1 is first")))
    assert "highest validation Harrell&#39;s C, among equals" in html
    assert '<th scope="col">validation Harrell&#39;s C</th><th scope="col">its standard error</th>' in html
    assert re.findall(r'<tr class="ours"><td>(\d)</td>', html) == ["1"]


def test_the_model_card_is_markdown_with_the_figures(data):
    card = survival_model_card(data)
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    assert sum(token.type == "table_open" for token in tokens) == 4
    assert f"{data.metrics.overall['harrell_c'].value:.3f}" in card
    assert "proportional over time" in card


def test_a_small_p_is_told_as_that():
    assert p_or_number("log_rank_p", 1e-9) == "< 0.001"
    assert p_or_number("log_rank_p", 0.04) == "0.040"
    assert p_or_number("harrell_c", 0.0) == "0.000"
    assert p_or_number("log_rank_p", math.nan) == DASH


def test_rows_under_a_chart_make_it_higher():
    axes = Axes("t", "s", (0.0, 2.0), (0.0, 1.0), (0.0, 1.0, 2.0), (0.0, 1.0), diagonal=False)
    picture = chart(
        axes, [Series("a", "line-model", [(0.0, 1.0), (2.0, 0.0)])], "a", rows=[TickRow("a", "x", (9, 5, 1))]
    )
    assert f'viewBox="0 0 360 {HEIGHT + 2 * LEGEND_LINE}"' in picture
    assert re.findall(r">(\d)</text>", picture)[-3:] == ["9", "5", "1"]
