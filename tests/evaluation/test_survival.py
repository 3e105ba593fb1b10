"""Evaluation of survival end to end on a small store: files, figures from independent formulas, objects, baselines."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sksurv.metrics import concordance_index_censored, concordance_index_ipcw, integrated_brier_score
from sksurv.util import Surv

from milcore.cli.info import damage
from milcore.config import TrainConfig
from milcore.evaluation.baselines import shuffle_outcomes
from milcore.evaluation.evaluate import evaluate
from milcore.evaluation.evaluation import Evaluation
from milcore.evaluation.run_predictions import open_run
from milcore.evaluation.survival_baselines import compare_risks
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.device import compute_device
from milcore.training.run_folder import Run
from tests.docs.test_formats import NOT_MADE, table
from tests.evaluation.survival_store import TRAIN, survival_store, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("survival")
    store = survival_store(str(folder / "store"), patients=60, sites=True)
    uri = train(store, str(folder / "run"))
    evaluate(uri, with_leave_one_out=True)
    return uri


@pytest.fixture(scope="module")
def summary(run: str) -> dict:
    return json.loads(Path(run, "metrics.json").read_text())


def test_figures_are_those_of_the_predictions(run, summary):
    rows = pq.read_table(f"{run}/predictions.parquet").to_pylist()
    training, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    time, event, risk = (np.array([row[name] for row in test]) for name in ("time", "event", "risk"))
    surv = [Surv.from_arrays([r["event"] for r in part], [r["time"] for r in part]) for part in (training, test)]
    assert summary["harrell_c"] == pytest.approx(concordance_index_censored(event == 1, time, risk)[0])
    tau = summary["survival"]["tau"]
    assert summary["uno_c"] == pytest.approx(concordance_index_ipcw(*surv, risk, tau)[0])
    assert summary["survival"]["risk_cut"] == pytest.approx(np.median([row["risk"] for row in training]))
    assert summary["splits"]["test"] == {"patients": len(test), "events": int(event.sum())}
    groups = {group["name"]: group["patients"] for group in summary["survival"]["groups"]}
    assert groups["high"] == (risk > summary["survival"]["risk_cut"]).sum()
    low, high = summary["intervals"]["harrell_c"]
    assert low < summary["harrell_c"] < high


@pytest.fixture(scope="module")
def hazards(run: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("hazards") / "run")
    settings = TRAIN.model_dump(exclude={"bag"}) | {"target": "survival_hazard", "hazard_intervals": 3}
    train(Run(run).store, uri, TrainConfig.model_validate(settings))
    evaluate(uri)
    return uri


def test_hazards_are_measured_by_their_own_survival_curve(hazards):
    """Survival between cut points by geometric interpolation, the score by scikit-survival."""
    summary = json.loads(Path(hazards, "metrics.json").read_text())
    rows = pq.read_table(f"{hazards}/predictions.parquet").to_pylist()
    training, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    cut_points = summary["survival"]["cut_points"]
    columns = [f"survival_at_{time:g}" for time in cut_points]
    assert list(rows[0])[-4:] == ["risk", *columns]
    assert test[0]["risk"] == pytest.approx(-sum(test[0][name] for name in columns))
    knots, times = np.array([0.0, *cut_points]), np.array(summary["survival"]["times"])
    at_knots = np.array([[1.0, *(row[name] for name in columns)] for row in test])
    survival = np.array([np.exp(np.interp(times, knots, np.log(row))) for row in at_knots])
    # scikit-survival refuses patients followed beyond those of training, who are at risk at every time all the same
    last = max(row["time"] for row in training) - 1e-6
    assert last > times[-1]
    surv = [
        Surv.from_arrays([r["event"] for r in part], [min(r["time"], longest) for r in part])
        for part, longest in ((training, np.inf), (test, last))
    ]
    assert summary["integrated_brier_score"] == pytest.approx(integrated_brier_score(*surv, survival, times))
    risk = np.array([row["risk"] for row in test])
    assert summary["uno_c"] == pytest.approx(concordance_index_ipcw(*surv, risk, summary["survival"]["tau"])[0])
    assert summary["target"] == "survival_hazard"
    assert len(summary["comparison"]) == 4


def test_report_and_card_say_what_the_risk_of_hazards_is(hazards):
    report, card = Path(hazards, "report.html").read_text(), Path(hazards, "MODEL_CARD.md").read_text()
    for page in (report, card):
        assert "minus the expected number of intervals of time survived" in page
        assert "The intervals end at" in page
        assert "Breslow" not in page
        assert "baseline hazard" not in page
    assert "proportional" not in card
    assert damage(hazards) == []
    slide = next(iter(Evaluation(hazards).slides.values()))
    assert -3.0 < slide.risk < 0.0


def test_a_slide_without_a_site_has_that_of_the_patient_and_a_patient_without_is_in_none(tmp_path):
    store = survival_store(str(tmp_path / "store"), patients=60, sites=True)
    manifest = store.manifest()
    pairs = [f"p{k // 2:02d}" for k in range(60)]
    # of each patient the first slide names no site; of every fifth patient the second neither
    sites = ["" if k % 2 == 0 or k // 2 % 5 == 0 else slide.site for k, slide in enumerate(manifest.slides)]
    slides = tuple(
        replace(slide, patient_id=patient, site=site)
        for slide, patient, site in zip(manifest.slides, pairs, sites, strict=True)
    )
    columns = {name: tuple(values[k // 2 * 2] for k in range(60)) for name, values in manifest.columns.items()}
    store.write_manifest(replace(manifest, slides=slides, columns=columns))
    uri = train(store, str(tmp_path / "run"), TRAIN.model_copy(update={"epochs": 1}))
    evaluate(uri, baselines=False, attention_formats=())
    of_sites = json.loads(Path(uri, "metrics.json").read_text())["sites"]
    assert set(of_sites) == {"north", "south"}
    rows = pq.read_table(f"{uri}/predictions.parquet").to_pylist()
    test = {row["patient_id"] for row in rows if row["split"] == "test"}
    assert sum(each["patients"] for each in of_sites.values()) == sum(int(patient[1:]) % 5 != 0 for patient in test)


def test_metrics_say_by_what_they_were_measured(summary):
    assert (summary["target"], summary["time"], summary["event"]) == ("survival_cox", "os_days", "os_event")
    assert summary["survival"]["times"][-1] == summary["survival"]["tau"]
    assert summary["survival"]["estimated_of"] == "the training patients"
    assert set(summary["sites"]) == {"north", "south"}
    assert [row["name"] for row in summary["comparison"]] == [
        "gated attention pooling, embedding level",
        "embedding-mean pooling",
        "slide colour",
        "shuffled training follow-up",
    ]
    curve = summary["survival"]["groups"][0]["curve"]
    assert len(curve["time"]) == len(curve["survival"]) == len(curve["at_risk"])


def test_the_formats_name_what_is_written(run, summary):
    assert table("Survival: keys of `metrics.json`").keys() - NOT_MADE.keys() == set(summary)
    columns = pq.read_table(f"{run}/predictions.parquet").column_names
    assert list(table("Survival: columns of `predictions.parquet`")) == columns


def test_every_file_is_there_and_undamaged(run):
    report, card = Path(run, "report.html").read_text(), Path(run, "MODEL_CARD.md").read_text()
    for words in ("Kaplan-Meier", "at risk", "Uno&#39;s C", "Research use only"):
        assert words in report
    assert "the log hazard ratio relative" in card
    assert "{{" not in report + card
    assert damage(run) == []


def test_leave_one_out_is_the_signed_change_of_the_risk(run):
    """Against the model run on the bag without each patch."""
    opened = open_run(run, compute_device(use_gpu=False))
    model, bag = opened.models[0], opened.bags[opened.bags.split("test")[0]]
    entry = opened.bags.entries[opened.bags.split("test")[0]]
    table = pq.read_table(f"{run}/attention/{entry.slides[0]}.parquet")
    rows = torch.as_tensor(bag.instances)
    without = [Bag(str(k), "", 0, torch.cat([rows[:k], rows[k + 1 :]])) for k in range(len(rows))]
    with torch.no_grad():
        whole, *others = model(pack([Bag("x", "", 0, rows), *without], range(len(rows) + 1)), None)[:, 0].tolist()
    np.testing.assert_allclose(table["leave_one_out"].to_numpy(), whole - np.array(others), atol=1e-5)
    assert "instance_probability" not in table.column_names


def test_the_object_shows_risks(run):
    evaluation = Evaluation(run)
    assert evaluation.line.startswith("harrell_c 0.")
    assert "Harrell's C" in repr(evaluation)
    slide = next(iter(evaluation.slides.values()))
    assert slide.risk is not None
    assert slide.predicted is None
    assert slide.time > 0
    assert "risk" in slide._repr_html_()
    assert evaluation.metrics["uno_c"].low < evaluation.metrics["uno_c"].value
    assert set(evaluation.comparison) >= {"embedding-mean pooling", "slide colour"}
    assert evaluation.roc.threshold == []
    assert "Uno" in evaluation._repr_html_()


def test_models_are_compared_at_the_times_of_the_run(run):
    """Times of the caller count, also where the training patients of the baselines would give others."""
    opened, device = open_run(run, compute_device(use_gpu=False)), compute_device(use_gpu=False)
    scores = [
        next(iter(compare_risks(opened.spec.train, opened.as_split, opened.catalogue, times, device)))
        for times in ((20.0, 60.0), (20.0, 200.0))
    ]
    assert scores[0].harrell_c == scores[1].harrell_c
    assert scores[0].integrated_brier_score.value < scores[1].integrated_brier_score.value


def test_a_baseline_whose_events_end_too_few_intervals_is_told_and_stops_nothing(run):
    """Follow-up dealt out anew may leave training with fewer events than the run had."""
    opened, device = open_run(run, compute_device(use_gpu=False)), compute_device(use_gpu=False)
    config = opened.spec.train.model_copy(update={"target": "survival_hazard", "hazard_intervals": 99})
    rows = compare_risks(config, opened.as_split, opened.catalogue, (20.0, 60.0), device)
    mean, colour, shuffled = rows
    for row in (mean, shuffled):
        assert math.isnan(row.harrell_c.value)
        assert row.harrell_c.reason.startswith("hazard_intervals: expected 99 intervals")
    assert colour.harrell_c.value > 0.0


def test_shuffling_keeps_test_patients_and_the_set_of_the_others(run):
    bags = open_run(run, compute_device(use_gpu=False)).bags
    again = shuffle_outcomes(bags, 0)
    for split in ("train", "val", "test"):
        before, after = ([each.entries[k].follow_up for k in bags.split(split)] for each in (bags, again))
        assert sorted(before) == sorted(after)
        assert (before == after) == (split == "test")


def test_folds_take_risks_of_the_models_that_left_a_patient_out(tmp_path):
    store = survival_store(str(tmp_path / "store"), patients=36)
    uri = train(store, str(tmp_path / "run"), folds=2)
    summary = evaluate(uri, baselines=False)
    assert "fold that was not trained on them" in summary["survival"]["estimated_of"]
    assert not math.isnan(summary["harrell_c"])
    assert summary["sites"] == {}
    assert Run(uri).predictions().column("fold").to_pylist().count(-1) == summary["slides"]["test"]
