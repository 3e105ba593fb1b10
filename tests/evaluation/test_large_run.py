"""Evaluation of more slides than a report shows pictures of: figures of all, pictures of some, everything named."""

import re
from pathlib import Path

import pytest

from milcore.evaluation.evaluate import evaluate
from milcore.evaluation.report.choice import ALL_UP_TO, CHOSEN
from milcore.ingestion.overview import write_cohort_page
from milcore.runtime import storage
from tests.evaluation.large_run import OUTSIDE_TEST, write_large_run

LARGEST_PAGE_MB = 100


def check_pages(folder: Path, slides: int) -> None:
    """Evaluate a run of so many test slides and look at all that tells of them."""
    run = write_large_run(str(folder), slides, pictures_every=5, quarantined=3)
    summary = evaluate(run, baselines=False, attention_formats=("parquet",))
    page = Path(run, "report.html").read_text()
    assert sum(sum(row) for row in summary["confusion"]) == slides
    assert page.count("<tr data-slide=") == slides
    assert page.count('<article class="slide"') == CHOSEN
    assert f"Pictures of {CHOSEN} of {slides} slides" in page
    assert len(re.findall("chosen: (largest error|least certain call|likeliest|drawn)", page)) == CHOSEN
    assert page.count('class="heat"') == CHOSEN
    index = storage.read_json(f"{run}/attention/index.json")
    expected = [f"slide-{k + OUTSIDE_TEST:05d}" for k in range(slides)]
    assert [row["slide_id"] for row in index] == expected
    names = [name for name in storage.names(f"{run}/attention") if name.endswith(".parquet")]
    assert names == [f"{slide_id}.parquet" for slide_id in expected]
    cohort = Path(write_cohort_page(f"{folder}/store"))
    assert cohort.read_text().count('<th scope="row"') == slides + OUTSIDE_TEST + 3
    for path in (Path(run, "report.html"), cohort):
        assert path.stat().st_size < LARGEST_PAGE_MB * 1e6


def test_a_run_of_more_slides_than_are_shown_is_reported_whole(tmp_path: Path) -> None:
    check_pages(tmp_path, ALL_UP_TO + 20)


@pytest.mark.long
def test_a_report_and_a_cohort_page_of_ten_thousand_slides_stay_below_100_mb(tmp_path: Path) -> None:
    check_pages(tmp_path, 10_000)
