"""Every file of ``tests/cases``, and of the cases beside the project, stands in the table of the test that reads it."""

from pathlib import Path

from tests.cohort.test_annotations import AREAS, ERRORS
from tests.cohort.test_manifest import REFUSALS, TABLES
from tests.ingestion.imports.test_parquet import NOISE
from tests.ingestion.imports.test_pt import TENSORS
from tests.slides.test_cases import CASES as SLIDES
from tests.slides.test_tile_forms import CASES as TILES

IN_THE_CLONE = Path(__file__).resolve().parent / "cases"
SMALL_KB = 100
TENSOR_FILES = {f"10/{case}/{name}.pt": why for case, (good, bad, why) in TENSORS.items() for name in (*good, *bad)} | {
    f"10/{case}.csv": why for case, (_, _, why) in TENSORS.items()
}
# file -> why what is read of it is right
ROWS = {
    **{f"csv/{name}": why for name, (_, why) in (TABLES | REFUSALS).items()},
    **{name: why for name, (_, _, why) in AREAS.items()},
    **{name: why for name, (_, why) in ERRORS.items()},
    **{f"12/{name}": why for name, (_, why) in NOISE.items()},
    **TENSOR_FILES,
    **{name: case.why for name, case in SLIDES.items()},
    **{case.name: case.reason for case in TILES},
}


def files_of(folder: Path) -> dict[str, Path]:
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in files.items() if name != "README.md"}


def test_no_file_of_the_clone_is_without_a_row() -> None:
    assert files_of(IN_THE_CLONE).keys() - ROWS.keys() == set()
    assert all(ROWS.values())


def test_no_file_beside_the_project_is_without_a_row(shared_cases: Path) -> None:
    """Small ones are in every clone, byte for byte."""
    beside = files_of(shared_cases)
    assert beside.keys() == ROWS.keys()
    small = {name: path.read_bytes() for name, path in beside.items() if path.stat().st_size < SMALL_KB * 1000}
    assert small == {name: path.read_bytes() for name, path in files_of(IN_THE_CLONE).items()}
