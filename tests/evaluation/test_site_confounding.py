"""A cohort whose labels go with the site: what a split by patient promises does not hold at new sites, and it is told.

Settings and seeds were fixed before any result was seen: 16 sites of 12 patients, 11 or 1 of them positive by turns, a
stain of each site drawn from N(0, 9) in 16 features and no difference between the classes; seeds 11, 12 and 13. The
interval at new sites held 0.5 in two of the three (seed 11: 0.203, 0.077 to 0.404). It does so in 19 of 20 cohorts at
best: ``test_resampled_sites_cover_chance_at_new_sites`` counts over sixty.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import milcore as mc
from milcore.store.store import PatchStore
from tests.cohorts import write_store

# checks of annotations would take most of the time of training
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_type_checks")]

SITES, INSTANCES, FEATURES = 16, 6, 16
SETTINGS = {"features": "f", "hidden": 32, "attention_hidden": 16, "learning_rate": 0.003}
FOLDS = {"folds": 4, "val_fraction": 0.0, "test_fraction": 0.0}
WHOLE = {"patients": 12, "epochs": 30}
SMALL = {"patients": 8, "epochs": 15}


def site_cohort(uri: str, seed: int, patients: int, *, confounded: bool) -> PatchStore:
    """Slides whose features show their site, or else their class."""
    store = write_store(uri, slides=SITES * patients, patches=INSTANCES)
    random = np.random.default_rng(seed)
    stain = 3 * random.normal(size=(SITES, FEATURES))
    slides = []
    for k, slide in enumerate(store.manifest().slides):
        site, place = divmod(k, patients)
        label = int((place > 0) == (site % 2 == 0)) if confounded else place % 2
        features = random.normal(size=(INSTANCES, FEATURES))
        features += stain[site] if confounded else 3 * label * np.eye(FEATURES)[0]
        store.slide(slide.slide_id).write_features("f", features.astype(np.float16), {"imported": True})
        slides.append(replace(slide, label=label, site=f"site {site:02d}"))
    store.write_manifest(replace(store.manifest(), slides=tuple(slides)))
    return store


def runs(folder: Path, seed: int, patients: int, epochs: int, *, confounded: bool) -> tuple[mc.Run, mc.Run]:
    """The same model of folds with patients kept whole, and with sites."""
    store = site_cohort(str(folder / "store"), seed, patients, confounded=confounded)
    settings = SETTINGS | FOLDS | {"epochs": epochs, "seed": seed}
    of_patients, of_sites = (mc.train(store, folder / name, **settings, split_by=name) for name in ("patient", "site"))
    return of_patients, of_sites


def check_confounded(folder: Path, seed: int, size: dict[str, int]) -> tuple[mc.Run, bool]:
    """The claims on one confounded cohort.

    Returns:
        The run whose report tells of it, and True where the interval at new sites holds 0.5.
    """
    of_patients, of_sites = runs(folder, seed, **size, confounded=True)
    evaluation = mc.evaluate(of_sites, compare_with=of_patients, baselines=False, attention_formats=())
    content = json.loads(Path(of_sites.metrics_uri).read_text())["site_confounding"]
    comparison = content["comparison"]
    assert (comparison["split_by"], comparison["other_split_by"]) == ("site", "patient")
    assert (comparison["bags"], comparison["sites"]) == (SITES * size["patients"], SITES)
    assert comparison["other_auroc"] >= 0.8
    assert comparison["intervals"]["difference"][0] > 0
    assert "does not hold at new sites" in evaluation.warnings[0]
    assert evaluation.site_confounding["probe_balanced_accuracy"].low > content["probe_chance"]
    assert evaluation.site_confounding["robustness_index"].high < content["robustness_chance"]
    low, high = comparison["intervals"]["auroc"]
    return of_sites, low <= 0.5 <= high


def test_a_figure_that_does_not_hold_at_new_sites_is_told_first(tmp_path: Path) -> None:
    run, _ = check_confounded(tmp_path, 12, SMALL)
    report = Path(run.report_uri).read_text()
    assert report.index("does not hold at new sites") < report.index('<dl class="tiles">')
    assert report.count("site 07") == 1
    assert "| `site 07` | 8 |" in Path(run.model_card_uri).read_text()


@pytest.mark.long
@pytest.mark.parametrize(("seed", "holds_chance"), [(11, False), (12, True), (13, True)])
def test_chance_lies_within_the_interval_at_new_sites(tmp_path: Path, seed: int, holds_chance: bool) -> None:
    assert check_confounded(tmp_path, seed, WHOLE)[1] == holds_chance


@pytest.mark.long
def test_a_split_by_patient_alone_shows_that_pairs_of_one_site_are_not_told_apart(tmp_path: Path) -> None:
    run, _ = runs(tmp_path, 11, **WHOLE, confounded=True)
    evaluation = mc.evaluate(run, baselines=False, attention_formats=())
    assert evaluation.site_confounding["auroc_within_sites"].low < 0.5
    assert evaluation.site_confounding["difference"].low > 0
    assert "the model may read the site" in evaluation.warnings[0]
    assert len(evaluation.sites) == SITES


def test_a_cohort_without_confounding_has_no_warning(tmp_path: Path) -> None:
    of_patients, of_sites = runs(tmp_path, 11, patients=4, epochs=15, confounded=False)
    evaluation = mc.evaluate(of_sites, compare_with=of_patients, baselines=False, attention_formats=())
    assert not [warning for warning in evaluation.warnings if "site" in warning]
    assert evaluation.site_confounding["auroc_within_sites"].value > 0.9
    assert min(each["auroc"].value for each in evaluation.sites.values()) > 0.8


def test_runs_that_cannot_be_compared_are_refused_in_one_line(tmp_path: Path) -> None:
    store = site_cohort(str(tmp_path / "store"), 11, 4, confounded=False)
    small = SETTINGS | {"epochs": 1}
    run = mc.train(store, tmp_path / "run", **small, split_by="site")
    other = mc.train(store, tmp_path / "other", **small, folds=2, test_fraction=0.0)
    with pytest.raises(mc.InputError, match=r"compare_with: expected a finished run, got .*none; finish it"):
        mc.evaluate(other, compare_with=tmp_path / "none", baselines=False, attention_formats=())
    plain = mc.train(store, tmp_path / "plain", **small)
    with pytest.raises(mc.InputError, match=r"compare_with: expected a run with predictions, got none in .*plain; run"):
        mc.evaluate(other, compare_with=plain, baselines=False, attention_formats=())
    slides = tuple(replace(slide, site="") for slide in store.manifest().slides)
    store.write_manifest(replace(store.manifest(), slides=slides))
    with pytest.raises(mc.InputError, match=r"compare_with: expected bags of two sites or more.*column site"):
        mc.evaluate(run, compare_with=other, baselines=False, attention_formats=())
