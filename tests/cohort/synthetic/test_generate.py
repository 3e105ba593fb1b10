"""Synthetic cohorts: their plan, their files, and that a seed is all they depend on."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import openslide
import pytest
from shapely import box, union_all
from shapely.geometry import shape

from milcore.cohort.synthetic.generate import SITES, plan_slides, synthesise, write_slide
from milcore.errors import InputError

SEED = 5


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    assert sorted(synthesise(str(folder), 4, SEED, workers=2)) == [f"slide-{k:04d}" for k in range(4)]
    return folder


@pytest.fixture(scope="module")
def rows(cohort: Path) -> list[dict[str, str]]:
    with (cohort / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("slides", "seed"), [(2, 0), (5, 1), (48, 0), (48, 2), (96, 7)])
def test_half_the_slides_are_positive_and_a_patient_has_one_label_and_site(slides: int, seed: int) -> None:
    plan = plan_slides(slides, seed)
    assert [slide.index for slide in plan] == list(range(slides))
    assert abs(sum(slide.label for slide in plan) - slides / 2) <= 1.5
    of_patient = defaultdict(set)
    for slide in plan:
        of_patient[slide.patient_id].add((slide.label, slide.site))
    assert all(len(facts) == 1 for facts in of_patient.values())


def test_some_patients_have_several_slides_and_sites_tell_nothing_of_the_label() -> None:
    plan = plan_slides(48, 0)
    slides_of = defaultdict(int)
    for slide in plan:
        slides_of[slide.patient_id] += 1
    assert {1, 2, 3} <= set(slides_of.values())
    for site in SITES:
        labels = [slide.label for slide in plan if slide.site == site]
        assert abs(np.mean(labels) - 0.5) < 0.15


def test_the_plan_hangs_on_the_seed() -> None:
    assert plan_slides(48, 0) == plan_slides(48, 0)
    assert plan_slides(48, 0) != plan_slides(48, 1)


def test_one_slide_is_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 slides"):
        list(synthesise(str(tmp_path), 1, 0, workers=0))


def test_the_manifest_names_files_that_are_there(cohort: Path, rows: list[dict[str, str]]) -> None:
    assert len(rows) == 4
    for row in rows:
        assert (cohort / row["uri"]).is_file()
        assert bool(row["annotation"]) == (row["label"] == "1")
        assert not row["annotation"] or (cohort / row["annotation"]).is_file()


def test_slides_are_pyramids_of_half_a_um_per_px(cohort: Path, rows: list[dict[str, str]]) -> None:
    for row in rows:
        with openslide.OpenSlide(str(cohort / row["uri"])) as slide:
            assert slide.dimensions[0] >= 4096
            assert slide.level_count == 4
            assert float(slide.properties["openslide.mpp-x"]) == 0.5


def test_the_same_seed_gives_the_same_bytes_in_this_process_as_in_others(cohort: Path, tmp_path: Path) -> None:
    for slide in plan_slides(4, SEED)[:2]:
        write_slide(str(tmp_path), SEED, slide)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 3  # two slides, one of each label, and one annotation
    for path in written:
        assert (tmp_path / path).read_bytes() == (cohort / path).read_bytes()


def test_lesions_fill_1_to_8_percent_of_a_positive_slides_tissue_patches(
    cohort: Path, rows: list[dict[str, str]]
) -> None:
    for row in rows:
        if row["label"] == "0":
            continue
        features = json.loads((cohort / row["annotation"]).read_text())["features"]
        lesion = union_all([shape(feature["geometry"]) for feature in features])
        assert lesion.is_valid
        assert box(0, 0, 4096, 3072).contains(lesion)
        share = np.mean([lesion.intersection(tile).area >= 0.25 * tile.area for tile in tissue_tiles(cohort, row)])
        assert 0.01 <= share <= 0.08


def tissue_tiles(cohort: Path, row: dict[str, str]) -> list:
    with openslide.OpenSlide(str(cohort / row["uri"])) as slide:
        small = np.array(slide.read_region((0, 0), 3, slide.level_dimensions[3]).convert("RGB")).astype(int)
    coloured = small.max(axis=2) - small.min(axis=2) > 18
    shares = coloured.reshape(12, 32, 16, 32).mean(axis=(1, 3))
    return [box(256 * c, 256 * r, 256 * c + 256, 256 * r + 256) for r, c in np.argwhere(shares >= 0.5)]
