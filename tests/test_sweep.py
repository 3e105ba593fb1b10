"""A sweep's trials follow from its config; its folder resumes the same sweep, refuses another, and names the best."""

import math
from pathlib import Path

import pytest

from milcore import storage
from milcore.config import SplitConfig, TrainConfig, TuneConfig
from milcore.errors import ClusterError, InputError, StoreError
from milcore.sweep import TrialResult, prepare_sweep, publish, read_best, read_sweep, trial_configs
from tests.cohorts import write_features, write_store

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=3)
SWEEP = TuneConfig(poolings=("max", "mean"), trials=3, train=TRAIN)


@pytest.fixture
def store_uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "store")
    write_features(write_store(uri))
    return uri


def result(trial: int, loss: float, area: float = 0.5, state: str = "ok") -> TrialResult:
    return TrialResult(trial, "max", 1e-3, 3, loss, area, state, None if state == "ok" else "RuntimeError: broke")


def test_the_same_seed_gives_the_same_trials_and_another_seed_others() -> None:
    rates = [[t.learning_rate for t in trial_configs(SWEEP.model_copy(update={"tune_seed": s}))] for s in (0, 0, 1)]
    assert rates[0] == rates[1]
    assert rates[0] != rates[2]


def test_trials_are_dealt_to_the_poolings_in_turn() -> None:
    assert [trial.pooling for trial in trial_configs(SWEEP)] == ["max", "mean", "max"]


def test_a_longer_sweep_begins_with_the_trials_of_a_shorter_one() -> None:
    assert trial_configs(SWEEP.model_copy(update={"trials": 9}))[:3] == trial_configs(SWEEP)


def test_learning_rates_are_log_uniform_in_their_range() -> None:
    """Of 2,000 draws between 1e-5 and 1e-1 half lie below the geometric mean, 1e-3."""
    wide = SWEEP.model_copy(update={"trials": 2000, "learning_rate_min": 1e-5, "learning_rate_max": 1e-1})
    rates = [trial.learning_rate for trial in trial_configs(wide)]
    assert 1e-5 <= min(rates) < 2e-5
    assert 5e-2 < max(rates) <= 1e-1
    assert sum(rate < 1e-3 for rate in rates) == pytest.approx(1000, abs=90)


def test_trials_share_every_other_setting() -> None:
    for trial in trial_configs(SWEEP):
        assert trial.model_copy(update={"pooling": TRAIN.pooling, "learning_rate": TRAIN.learning_rate}) == TRAIN


def test_the_highest_auroc_is_best_and_loss_breaks_ties(store_uri: str, tmp_path: Path) -> None:
    spec = prepare_sweep(store_uri, str(tmp_path / "out"), SWEEP, SplitConfig(), None)
    best = publish(str(tmp_path / "out"), spec, [result(2, 0.3, 0.9), result(0, 0.1, 0.7), result(1, 0.4, 0.9)])
    assert best == trial_configs(SWEEP)[2] == read_best(str(tmp_path / "out"))
    rows = storage.read_table(str(tmp_path / "out" / "trials.parquet")).to_pylist()
    assert [(row["trial"], row["val_loss"], row["state"]) for row in rows] == [
        (0, 0.1, "ok"),
        (1, 0.4, "ok"),
        (2, 0.3, "ok"),
    ]


def test_a_failed_trial_is_kept_with_its_reason_and_never_chosen(store_uri: str, tmp_path: Path) -> None:
    spec = prepare_sweep(store_uri, str(tmp_path / "out"), SWEEP, SplitConfig(), None)
    failed = result(1, 0.0, state="failed")
    best = publish(str(tmp_path / "out"), spec, [result(0, 0.5, math.nan), failed, result(2, 0.6, math.nan)])
    assert best == trial_configs(SWEEP)[0]
    rows = storage.read_table(str(tmp_path / "out" / "trials.parquet")).to_pylist()
    assert rows[1]["reason"] == "RuntimeError: broke"


def test_missing_trials_and_none_that_succeeded_are_errors(store_uri: str, tmp_path: Path) -> None:
    spec = prepare_sweep(store_uri, str(tmp_path / "out"), SWEEP, SplitConfig(), None)
    with pytest.raises(ClusterError, match=r"1 of 3 trials have no result \(\[1\]\)"):
        publish(str(tmp_path / "out"), spec, [result(0, 0.5), result(2, 0.5)])
    with pytest.raises(ClusterError, match="all 3 trials failed; the first: RuntimeError: broke"):
        publish(str(tmp_path / "out"), spec, [result(k, 0.0, state="failed") for k in range(3)])
    assert read_best(str(tmp_path / "out")) is None


def test_the_same_sweep_is_taken_up_and_another_is_refused(store_uri: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    spec = prepare_sweep(store_uri, out, SWEEP, SplitConfig(), None)
    assert prepare_sweep(store_uri, out, SWEEP, SplitConfig(), None) == spec == read_sweep(out)
    with pytest.raises(InputError, match=r"tune\.trials was 3, now 4"):
        prepare_sweep(store_uri, out, SWEEP.model_copy(update={"trials": 4}), SplitConfig(), None)
    with pytest.raises(InputError, match="splits_digest"):
        prepare_sweep(store_uri, out, SWEEP, SplitConfig(split_seed=1), None)


def test_a_sweep_without_validation_slides_or_features_is_refused(store_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="raise val_fraction"):
        prepare_sweep(store_uri, str(tmp_path / "out"), SWEEP, SplitConfig(val_fraction=0.0), None)
    other = SWEEP.model_copy(update={"train": TRAIN.model_copy(update={"features": "absent"})})
    with pytest.raises(StoreError, match="features/absent"):
        prepare_sweep(store_uri, str(tmp_path / "out"), other, SplitConfig(), None)


def test_a_folder_that_is_no_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run milcore tune first"):
        read_sweep(str(tmp_path))
