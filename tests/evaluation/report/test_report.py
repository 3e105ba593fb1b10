"""The report and model card: self-contained, escaped, complete, and drawn where the numbers say."""

import dataclasses
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import shapely
from markdown_it import MarkdownIt

from milcore.evaluation.report import ReportData, model_card, render
from milcore.evaluation.report.charts import HEIGHT, WIDTH, Axes, Series, chart, interval_bar, steps
from milcore.evaluation.report.page import DASH, interval, number
from milcore.evaluation.report.pictures import rings, scale_bar, shrink
from milcore.metrics.classification import Estimate
from milcore.metrics.wilson import ScoreIntervals
from tests.evaluation.report.example import example, of_many

NO_SCORE = ScoreIntervals({}, (), {})


@pytest.fixture(scope="module")
def data() -> ReportData:
    return example(6)


@pytest.fixture(scope="module")
def html(data: ReportData) -> str:
    return render(data)


class Page(HTMLParser):
    """Collects what the tests ask about a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.sources: list[str] = []
        self.unlabelled: list[str] = []
        self.labelled: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        self.targets += [values["href"]] if "href" in values else []
        self.sources += [values["src"]] if "src" in values else []
        if tag == "label" and "for" in values:
            self.labelled.add(values["for"])
        if tag == "img" and not values.get("alt"):
            self.unlabelled.append(str(values))


def test_nothing_is_fetched_from_anywhere(html):
    page = Page(html)
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert all(target.startswith("#") for target in page.targets)
    assert not re.search(r"@import|url\(|https?://|fetch\(", html)


def test_every_link_has_its_place_and_every_id_is_one(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids)


def test_every_picture_and_slider_has_words(html):
    page = Page(html)
    assert page.unlabelled == []
    sliders = [name for name in page.ids if name.startswith("opacity-")]
    assert set(sliders) <= page.labelled
    assert '<html lang="en">' in html


def test_names_from_outside_are_escaped(html):
    assert "camelyon-demo &lt;run 1&gt;" in html
    assert "<run 1>" not in html


def test_worst_predicted_slides_come_first(data, html):
    listed = re.findall(r'<th scope="row"><a href="#slide-([^"]+)"[^>]*>', html)
    errors = {view.slide_id: 1 - view.probabilities[view.label] for view in data.slides}
    assert listed == sorted(errors, key=lambda name: -errors[name])


def test_every_section_the_reader_needs_is_there(data, html):
    assert "Research use only" in html
    assert "3 of 130 tiles unreadable" in html
    assert "9f" * 32 in html
    for row in data.comparison:
        assert row.name in html
    for trial in data.sweep.trials.to_pylist():
        assert f"<td>{trial['pooling']}</td>" in html
    assert '<tr class="ours"><td>3</td><td>gated_attention</td>' in html
    assert '<th scope="col">reason</th>' not in html
    assert "Trial 3 is first but not separable; AUROC 0.000 above" in html


def test_a_run_without_sweep_pictures_or_test_slides_still_reports(data):
    bare = [
        dataclasses.replace(view, thumbnail=None, heat=None, patches=(), lowest=(), mpp=None) for view in data.slides
    ]
    undefined = {name: Estimate(math.nan, reason="the split holds one class only") for name in data.metrics}
    html = render(
        dataclasses.replace(
            data, sweep=None, slides=tuple(bare), metrics=undefined, score=NO_SCORE, roc=(), quarantined={}
        )
    )
    assert 'id="sweep"' not in html
    assert "the split holds one class only" in html
    assert "The store holds no picture of this slide." in html
    assert "None: every slide of the cohort was read." in html
    nothing = dataclasses.replace(data, slides=(), counts=(), metrics=undefined, score=NO_SCORE, roc=(), reliability=[])
    assert "There is no test slide." in render(nothing)


def test_a_report_of_many_slides_pages_and_says_what_it_leaves_out(data: ReportData) -> None:
    html = render(of_many(data, 1500, 20))
    page = Page(html)
    assert len(re.findall(r"<tr data-slide=", html)) == 1500
    assert len(re.findall(r"<tr data-slide=", html[: html.index('<template id="slides-more">')])) == 500
    assert html.count('<article class="slide"') == 20
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids), "no link to a slide without pictures"
    assert "Pages of 500 slides; without script and in print, one page." in html
    assert "All slides and their probabilities are in predictions.parquet, beside this file." in html
    assert "Pictures of 20 of 1500 slides" in html
    assert html.count("chosen: drawn at random") == 20
    assert "m-00019 (no annotation) and 730 more, all in metrics.json" in html
    assert '<template id="quarantined-more">' in html


def test_a_slide_without_pictures_takes_a_kilobyte_of_a_report_at_most(data: ReportData) -> None:
    sizes = [len(render(dataclasses.replace(of_many(data, slides, 5), quarantined={}))) for slides in (1000, 2000)]
    assert 300 < (sizes[1] - sizes[0]) / 1000 < 1000


def test_a_report_of_more_slides_than_a_browser_takes_thins_out(data: ReportData) -> None:
    html = render(dataclasses.replace(of_many(data, 20_100, 5), quarantined={}))
    assert html.count("<tr data-slide=") == 20_000
    assert "20000 of 20100 test slides are in this file." in html
    assert len(html) < 25e6


def test_a_curve_of_many_slides_is_drawn_by_few_points_within_a_quarter_of_a_px() -> None:
    """Distance of every point to the drawn line, by the formula of a segment."""
    x = np.sort(np.random.default_rng(0).uniform(0, 1, 10_000))
    y = np.maximum.accumulate(np.clip(np.sqrt(x) + np.random.default_rng(1).normal(0, 0.01, 10_000), 0, 1))
    axes = Axes("x", "y", (0.0, 1.0), (0.0, 1.0), (0.0,), (0.0,), diagonal=False)
    picture = chart(axes, [Series("roc", "line-model", list(zip(x.tolist(), y.tolist(), strict=True)))], "words")
    (text,) = re.findall(r'<polyline class="line-model" points="([^"]+)"', picture)
    line = np.array([pair.split(",") for pair in text.split()], float)
    assert len(line) < 400
    places = np.array([(axes.x(a), axes.y(b)) for a, b in zip(x, y, strict=True)])
    start, along = line[:-1], np.diff(line, axis=0)
    share = ((places[:, None] - start) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12)
    nearest = start + np.clip(share, 0, 1)[..., None] * along
    assert np.linalg.norm(places[:, None] - nearest, axis=-1).min(axis=1).max() <= 0.25 + 1e-9
    assert line[0].tolist() == places[0].tolist()
    assert line[-1].tolist() == places[-1].tolist()


def test_numbered_classes_are_given_words(data):
    assert "<h1>positive against negative</h1>" in render(dataclasses.replace(data, classes=("0", "1")))
    assert "<h1>tumour against normal</h1>" in render(data)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("auroc", "AUROC"),
        ("auprc", "AUPRC"),
        ("accuracy", "Accuracy"),
        ("balanced_accuracy", "Balanced accuracy"),
        ("sensitivity", "Sensitivity"),
        ("specificity", "Specificity"),
        ("f1", "F1"),
    ],
)
def test_a_perfect_metric_is_shown_with_an_interval_that_has_width(data, name, title):
    """Among the metrics and in the card; that of resampled patients stands beside it."""
    score = data.score.overall | {name: Estimate(1.0, 0.72, 1.0)}
    perfect = dataclasses.replace(
        data,
        metrics=data.metrics | {name: Estimate(1.0, 1.0, 1.0)},
        score=data.score._replace(overall=score),
        auroc_delong=Estimate(1.0, 1.0, 1.0),
    )
    html = render(perfect)
    tile = f'<dt>{title}</dt><dd><span class="value">1.000</span><span class="range">0.72 {DASH} 1.00</span>'
    assert tile in html
    cells = "".join(f'<td class="n">{text}</td>' for text in ("1.000", f"0.72 {DASH} 1.00", f"1.000 {DASH} 1.000"))
    assert f'<tr><th scope="row">{title}</th>{cells}</tr>' in html
    assert f"DeLong's interval of AUROC: 1.000 {DASH} 1.000" in html
    assert f"| {title} | 1.000 | 0.72 {DASH} 1.00 | 1.000 {DASH} 1.000 |" in model_card(perfect)
    assert (f"<strong>AUROC 1.000</strong> (95\N{NO-BREAK SPACE}% interval 0.72 {DASH} 1.00)" in html) == (
        name == "auroc"
    )


def test_patients_and_classes_are_shown_with_score_intervals(data):
    one, wide = Estimate(1.0, 0.987, 1.0), Estimate(1.0, 0.61, 1.0)
    names = ("auroc", "auprc", "balanced_accuracy", "sensitivity", "specificity", "f1")
    every = {"of_patients": dict.fromkeys(names, one), "of_class": (dict.fromkeys(names, one),) * 2}
    score = data.score._replace(of_patients=dict.fromkeys(names, wide), of_class=(dict.fromkeys(names, wide),) * 2)
    html = render(dataclasses.replace(data, score=score, **every))
    assert html.count(f"1.000<small>0.61 {DASH} 1.00</small>") == 5 + 2 * 5
    assert f"1.000<small>0.99 {DASH} 1.00</small>" not in html


def test_equal_data_gives_equal_bytes(data, html):
    assert render(data) == html


def test_the_model_card_states_use_metrics_and_limits(data):
    card = model_card(data)
    assert "Research use only" in card
    assert f"| AUROC | {data.metrics['auroc'].value:.3f} |" in card
    assert f"| embedding-mean pooling | 0.790 | {DASH} |" in card


HOSTILE = (
    "<img src=x onerror=alert(1)>", "a | b", "[x](javascript:alert(1))", "![i](http://x/y.png)", "# heading",
    "`code` ``", "**bold** _em_ ~~gone~~", "line\n\n# heading", "back\\slash", "&lt;b&gt;", "1. item", "https://x.y <http://x.y>",
)  # fmt: skip


def tokens(card: str) -> tuple[list[str], list[str], str]:
    """Kinds of blocks and of spans, and all text, as an independent parser of Markdown sees them."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card)
    spans = [span for block in blocks for span in block.children or []]
    kinds = [span.type for span in spans if span.type not in ("text", "text_special")]
    return [block.type for block in blocks], kinds, " ".join(span.content for span in spans)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("classes", [2, 3])
def test_what_comes_from_data_is_text_in_the_model_card(data: ReportData, name: str, classes: int) -> None:
    """A card with the name for title, class, model, encoder and warning has the structure of one with plain words."""

    def card(word: str) -> str:
        return model_card(
            dataclasses.replace(
                data,
                title=word,
                classes=(word, "other", "third")[:classes],
                comparison=tuple(dataclasses.replace(row, name=word) for row in data.comparison),
                provenance={"Encoder": word},
                warnings=(f"mind {word}",),
            )
        )

    blocks, spans, text = tokens(card(name))
    assert (blocks, spans) == tokens(card("plain"))[:2]
    assert text.count(" ".join(name.split())) >= 5 + len(data.comparison)


def test_what_a_run_s_history_holds_is_text_in_the_charts() -> None:
    hostile = Series("name", 'line-"><script>', [(0.0, 0.0), (1.0, 1.0)])
    dots = Series("name", 'dot-"><script>', [(0.0, 0.0)], (2.0,))
    axes = Axes("x", "y", (0.0, 1.0), (0.0, 1.0), (0.0,), (0.0,), diagonal=False)
    assert "<script>" not in chart(axes, [hostile, dots], "words", legend=True)


def test_numbers_and_intervals_are_written_for_people():
    assert (number(0.98765), number(None), number(math.nan)) == ("0.988", DASH, DASH)
    assert interval(Estimate(0.9, 0.812, 1.0)) == f"0.81 {DASH} 1.00"
    assert interval(Estimate(0.001, 0.0004, 0.0031)) == f"0.000 {DASH} 0.003"
    assert interval(Estimate(0.9)) == ""


def test_a_line_starts_and_ends_in_the_corners_of_its_axes():
    axes = Axes("x", "y", (0.0, 2.0), (0.0, 1.0), (0.0, 2.0), (0.0, 1.0), diagonal=False)
    picture = chart(axes, [Series("a", "line-model", [(0.0, 0.0), (2.0, 1.0)])], "a & b")
    assert f'points="56.0,{HEIGHT - 42.0} {WIDTH - 14.0},12.0"' in picture
    assert 'aria-label="a &amp; b"' in picture


def test_an_interval_bar_puts_one_half_in_the_middle():
    bar = interval_bar(Estimate(0.5, 0.0, 1.0))
    assert 'x1="4.0" x2="156.0"' in bar
    assert 'cx="80.0"' in bar


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1.0, (0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (23, (0, 5, 10, 15, 20)),
        (0.74, (0, 0.2, 0.4, 0.6)),
        (1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
    ],
)
def test_ticks_are_round(most, expected):
    assert steps(most, 5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("width", "mpp", "length", "text"),
    [(8000, 0.5, 2000.0, "1 mm"), (4096, 0.25, 800.0, "200 µm"), (100_000, 0.25, 20_000.0, "5 mm")],
)
def test_scale_bar_is_a_round_length_of_at_most_a_quarter(width, mpp, length, text):
    assert scale_bar(width, mpp) == (pytest.approx(length), text)


def test_rings_follow_holes_and_parts():
    region = shapely.union_all(
        [shapely.box(0, 0, 10, 10).difference(shapely.box(4, 4, 6, 6)), shapely.box(50, 50, 60, 60)]
    )
    outline = rings(region, 0.1)
    assert sorted(len(ring) for ring in outline) == [5, 5, 5]
    assert rings(shapely.Polygon(), 0.1) == ()


def test_shrinking_averages_and_never_enlarges():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, ::2] = 200
    assert shrink(pixels, 4).tolist() == [[[100] * 3] * 4] * 2
    assert shrink(pixels, 100).shape == (4, 8, 3)
