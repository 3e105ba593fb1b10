"""A sweep's trials follow from its config; its folder resumes the same sweep, refuses another, and names the best."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from milcore.config import SplitConfig, TrainConfig, TuneConfig
from milcore.errors import ClusterError, InputError, StoreError
from milcore.metrics.auroc import auroc_standard_error
from milcore.runtime import storage
from milcore.training.search_space import parse_axis, trial_configs
from milcore.training.sweep import Sweep, TrialResult, prepare_sweep, publish, sweep_verdict
from tests.cohorts import write_features, write_store

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=3)
SWEEP = TuneConfig(poolings=("max", "attention"), trials=3, train=TRAIN)


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
    assert [trial.pooling for trial in trial_configs(SWEEP)] == ["max", "attention", "max"]


def test_a_longer_sweep_begins_with_the_trials_of_a_shorter_one() -> None:
    assert trial_configs(SWEEP.model_copy(update={"trials": 9}))[:3] == trial_configs(SWEEP)


def test_learning_rates_are_log_uniform_in_their_range() -> None:
    """Of 2,000 draws between 1e-5 and 1e-1 half lie below the geometric mean, 1e-3."""
    wide = SWEEP.model_copy(update={"trials": 2000, "learning_rate_min": 1e-5, "learning_rate_max": 1e-1})
    rates = [trial.learning_rate for trial in trial_configs(wide)]
    assert 1e-5 <= min(rates) < 2e-5
    assert 5e-2 < max(rates) <= 1e-1
    assert sum(rate < 1e-3 for rate in rates) == pytest.approx(1000, abs=90)


def test_trials_share_every_other_setting_that_their_pooling_reads() -> None:
    for trial, attention_hidden in zip(trial_configs(SWEEP), (256, 4, 256), strict=True):
        drawn = {"pooling": trial.pooling, "learning_rate": trial.learning_rate}
        assert trial == TRAIN.model_copy(update=drawn | {"attention_hidden": attention_hidden})


def test_a_setting_is_drawn_for_the_poolings_that_read_it() -> None:
    search = SWEEP.model_copy(update={"search": ("attention_hidden=2,3", "dropout=0.1,0.2")})
    assert {(t.pooling, t.attention_hidden) for t in trial_configs(search.model_copy(update={"trials": 30}))} == {
        ("max", 256), ("attention", 2), ("attention", 3)
    }  # fmt: skip


def test_the_highest_auroc_is_best_and_loss_breaks_ties(store_uri: str, tmp_path: Path) -> None:
    spec = prepare_sweep(store_uri, str(tmp_path / "out"), SWEEP, SplitConfig())
    best = publish(str(tmp_path / "out"), spec, [result(2, 0.3, 0.9), result(0, 0.1, 0.7), result(1, 0.4, 0.9)])
    assert best == trial_configs(SWEEP)[2] == Sweep(str(tmp_path / "out")).best()
    rows = storage.read_table(str(tmp_path / "out" / "trials.parquet")).to_pylist()
    assert [(row["trial"], row["val_loss"], row["state"]) for row in rows] == [
        (0, 0.1, "ok"),
        (1, 0.4, "ok"),
        (2, 0.3, "ok"),
    ]


def test_a_failed_trial_is_kept_with_its_reason_and_never_chosen(store_uri: str, tmp_path: Path) -> None:
    spec = prepare_sweep(store_uri, str(tmp_path / "out"), SWEEP, SplitConfig())
    failed = result(1, 0.0, state="failed")
    best = publish(str(tmp_path / "out"), spec, [result(0, 0.5, math.nan), failed, result(2, 0.6, math.nan)])
    assert best == trial_configs(SWEEP)[0]
    rows = storage.read_table(str(tmp_path / "out" / "trials.parquet")).to_pylist()
    assert rows[1]["reason"] == "RuntimeError: broke"


def test_missing_trials_and_none_that_succeeded_are_errors(store_uri: str, tmp_path: Path) -> None:
    spec = prepare_sweep(store_uri, str(tmp_path / "out"), SWEEP, SplitConfig())
    with pytest.raises(ClusterError, match=r"1 of 3 trials have no result \(\[1\]\)"):
        publish(str(tmp_path / "out"), spec, [result(0, 0.5), result(2, 0.5)])
    with pytest.raises(ClusterError, match="all 3 trials failed; the first: RuntimeError: broke"):
        publish(str(tmp_path / "out"), spec, [result(k, 0.0, state="failed") for k in range(3)])
    assert Sweep(str(tmp_path / "out")).best() is None


def test_the_same_sweep_is_taken_up_and_another_is_refused(store_uri: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    spec = prepare_sweep(store_uri, out, SWEEP, SplitConfig())
    assert prepare_sweep(store_uri, out, SWEEP, SplitConfig()) == spec == Sweep(out).spec()
    with pytest.raises(InputError, match=r"tune\.trials was 3, now 4"):
        prepare_sweep(store_uri, out, SWEEP.model_copy(update={"trials": 4}), SplitConfig())
    with pytest.raises(InputError, match="splits_digest"):
        prepare_sweep(store_uri, out, SWEEP, SplitConfig(split_seed=1))


def test_a_sweep_without_validation_slides_or_features_is_refused(store_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="raise val_fraction"):
        prepare_sweep(store_uri, str(tmp_path / "out"), SWEEP, SplitConfig(val_fraction=0.0))
    other = SWEEP.model_copy(update={"train": TRAIN.model_copy(update={"features": "absent"})})
    with pytest.raises(StoreError, match="features/absent"):
        prepare_sweep(store_uri, str(tmp_path / "out"), other, SplitConfig())


def test_a_folder_that_is_no_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run milcore tune first"):
        Sweep(str(tmp_path)).spec()


def test_any_training_setting_is_drawn_by_name_and_changes_nothing_of_the_others() -> None:
    more = SWEEP.model_copy(update={"search": ("hidden=8..64", "weight_decay=1e-4..1e-1:log", "ema_decay=0,0.9")})
    trials = trial_configs(more.model_copy(update={"trials": 200}))
    assert [t.learning_rate for t in trials[:3]] == [t.learning_rate for t in trial_configs(SWEEP)]
    assert {type(t.hidden) for t in trials} == {int}
    assert 8 <= min(t.hidden for t in trials) < 14
    assert 58 < max(t.hidden for t in trials) <= 64
    assert {t.ema_decay for t in trials} == {0.0, 0.9}
    assert sum(t.weight_decay < 1e-2 for t in trials) == pytest.approx(200 * 2 / 3, abs=25)  # two of three decades
    fewer = trial_configs(more.model_copy(update={"search": ("hidden=8..64",)}))
    assert [t.hidden for t in fewer] == [t.hidden for t in trials[:3]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dropout", "allowed: NAME=A,B,C"),
        ("droput=0.1,0.2", "got droput; allowed: activation_mb"),
        ("pooling=max,mean", "expected a setting that can be drawn, got pooling"),
        ("dropout=0.5..0.1", "LOW below HIGH"),
        ("dropout=0..0.1:log", "above 0 with :log"),
        ("dropout=a..b", "expected a number, got 'a'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_axis(text)


def test_a_value_that_cannot_be_trained_is_refused_before_the_first_trial(store_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dropout"):
        prepare_sweep(
            store_uri,
            str(tmp_path / "out"),
            SWEEP.model_copy(update={"search": ("dropout=0.1,7",)}),
            SplitConfig(),
        )
    assert not (tmp_path / "out").exists()


def test_the_standard_error_of_an_auroc_is_hanley_and_mcneil_s() -> None:
    """A = 0.8 on 10 and 20, by hand: Q1 = 2/3, Q2 = 0.7111; var = (0.16 + 9 * 0.02667 + 19 * 0.07111) / 200."""
    assert auroc_standard_error(0.8, 10, 20) == pytest.approx(0.09357, abs=1e-5)
    assert auroc_standard_error(1.0, 10, 20) == auroc_standard_error(1.0 - 0.5 / 200, 10, 20) > 0.0
    assert auroc_standard_error(0.0, 10, 20) == auroc_standard_error(0.5 / 200, 10, 20) > 0.0
    assert auroc_standard_error(1.0, 2, 2) > 0.1, "one of four pairs wrong would be 0.75"
    assert math.isnan(auroc_standard_error(math.nan, 10, 20))


def test_the_winner_is_called_better_only_beyond_the_standard_error_of_the_difference() -> None:
    def trial(number: int, area: float, error: float) -> TrialResult:
        return result(number, 0.5, area)._replace(val_metric_se=error)

    near = sweep_verdict([trial(0, 0.90, 0.03), trial(1, 0.95, 0.04)])
    assert (near.best, near.next, near.separable) == (1, 0, False)
    assert near.standard_error == pytest.approx(0.05)
    assert "not separable" in near.line
    assert sweep_verdict([trial(0, 0.80, 0.03), trial(1, 0.95, 0.04)]).separable
    assert not sweep_verdict([trial(0, math.nan, math.nan), trial(1, math.nan, math.nan)]).separable
    assert sweep_verdict([trial(0, 0.8, 0.1)]).next is None


def test_settings_that_were_drawn_are_columns_of_the_table(store_uri: str, tmp_path: Path) -> None:
    spec = prepare_sweep(store_uri, str(tmp_path / "out"), SWEEP, SplitConfig())
    results = [result(k, 0.5)._replace(searched=(("hidden", 8 * k), ("ema_decay", 0.5))) for k in range(3)]
    publish(str(tmp_path / "out"), spec, results)
    rows = storage.read_table(str(tmp_path / "out" / "trials.parquet")).to_pylist()
    assert [(row["hidden"], row["ema_decay"]) for row in rows] == [(0, 0.5), (8, 0.5), (16, 0.5)]


def test_a_folder_with_trials_of_another_program_is_left_alone(store_uri: str, tmp_path: Path) -> None:
    (tmp_path / "project/trials").mkdir(parents=True)
    (tmp_path / "project/trials/mine.txt").write_text("x")
    with pytest.raises(InputError, match="got one with trials, where files would be removed"):
        prepare_sweep(store_uri, str(tmp_path / "project"), SWEEP, SplitConfig())
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["trials"]


def test_folds_whose_events_end_too_few_intervals_are_refused_before_a_trial(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"), slides=24)
    write_features(store)
    # five patients to train on have the event: enough for four intervals, but not without a fold
    events = tuple(str(int(k in {3, 7, 11, 15, 19})) for k in range(24))
    columns = {"days": tuple(str(k + 1) for k in range(24)), "died": events}
    splits = ["train"] * 20 + ["val"] * 2 + ["test"] * 2
    manifest = store.manifest()
    slides = tuple(replace(slide, split=split) for slide, split in zip(manifest.slides, splits, strict=True))
    store.write_manifest(replace(manifest, slides=slides, columns=columns))
    hazards = TrainConfig(**TRAIN.model_dump() | {"target": "survival_hazard", "time": "days", "event": "died"})
    sweep = TuneConfig(poolings=("attention",), trials=1, train=hazards.model_copy(update={"bag": "patient"}))
    prepare_sweep(store.uri, str(tmp_path / "out"), sweep, SplitConfig())
    with pytest.raises(InputError, match="hazard_intervals: expected 4 intervals"):
        prepare_sweep(
            store.uri, str(tmp_path / "folds"), sweep.model_copy(update={"objective_folds": 2}), SplitConfig()
        )
    assert not (tmp_path / "folds").exists()
