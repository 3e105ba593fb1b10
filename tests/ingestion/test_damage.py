"""Whatever is wrong with a slide's bytes, it ends ok or quarantined with a reason a person understands."""

from pathlib import Path

import numpy as np
import pytest

from milcore.slides.write_pyramid import write_pyramid
from tests.ingestion.mutants import ingest_mutants

MUTANTS, MUTANTS_LONG = 200, 2000


@pytest.fixture
def sources(shared_data: Path, tmp_path: Path) -> list[Path]:
    """Small ones, so that many can be tried: real slides of every reader, and a pyramid of our own."""
    y, x = np.mgrid[:640, :640]
    stained = np.stack([200 - x % 60, 120 + y % 40, np.full_like(x, 170)], -1).astype(np.uint8)
    write_pyramid(tmp_path / "pyramid_small.tiff", stained, 0.5, 2)
    names = ("CMU-1-Small-Region.svs", "boxes.tiff", "sm_image.dcm")
    return [tmp_path / "pyramid_small.tiff", *(shared_data / "slides" / name for name in names)]


def _check(sources: list[Path], count: int) -> None:
    ended = list(ingest_mutants(sources, list(range(count))))
    assert len(ended) == count
    assert [mutant for mutant in ended if mutant.status is None] == []
    reasons = [mutant.reason for mutant in ended if mutant.status == "quarantined"]
    assert all(reason and len(reason) < 400 and "Traceback" not in reason for reason in reasons)
    assert {mutant.status for mutant in ended} == {"ok", "quarantined"}


@pytest.mark.slow
def test_no_mutant_crashes_hangs_or_takes_all_memory(sources: list[Path]) -> None:
    _check(sources, MUTANTS)


@pytest.mark.long
def test_no_mutant_of_two_thousand_does(sources: list[Path]) -> None:
    _check(sources, MUTANTS_LONG)
