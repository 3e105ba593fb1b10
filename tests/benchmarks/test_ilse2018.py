"""The reproduction in short: sets become folds, a fold is chosen, trained and tested without leaks, figures add up."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ilse2018.__main__ import arguments, main, measure, wanted
from benchmarks.ilse2018.protocol import FoldResult, bag_statistics, even_odds, inner_parts, read_bags, run_fold
from benchmarks.ilse2018.sets import MnistBags, bags_experiment, draw_bags, mnist_experiments, patches_experiment
from benchmarks.ilse2018.settings import CONFIGS, protocol_of
from benchmarks.ilse2018.table import markdown, mean_and_error, summary
from milcore.config import POOLING_NAMES
from milcore.errors import InputError

SHORT = {"epochs": 6}


def write_bags(path: Path, bags: int = 20, flip: slice = slice(0)) -> str:
    """Positive bags hold one instance far off; labels of the bags in ``flip`` are turned around."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 6, size=bags)
    bag = np.repeat(np.arange(bags), lengths).astype(np.int32)
    labels = (np.arange(bags) % 2).astype(np.uint8)
    features = random.normal(size=(len(bag), 5)).astype(np.float32)
    first = np.cumsum(lengths) - lengths
    features[first[labels == 1]] += 4.0
    labels[flip] = 1 - labels[flip]
    np.savez(path, X=features, bag=bag, y=labels)
    return str(path)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["ilse2018", *words])
    return arguments()


@pytest.mark.slow
def test_musk1_in_short_is_far_above_chance(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published folds of one repeat, two at a time; a fifth of the epochs. Chance is .51."""
    published = np.load(shared_data / "bags" / "musk1_folds5x10.npz")["test_fold"]
    np.savez(tmp_path / "folds.npz", test_fold=published[:1] // 2)
    sets = ["--bags", str(shared_data / "bags" / "musk1.npz"), "--folds", str(tmp_path / "folds.npz")]
    words = [*sets, "--repeats", "1", "--epochs", "6", "--members", "1", "--workers", "0"]
    (row,) = measure(command(monkeypatch, *words, "--out", str(tmp_path)))
    assert row["folds"] == 5
    assert row["accuracy"] >= 0.75
    assert row["auroc"] >= 0.85
    assert row["shuffled_auroc"] < 0.75


def test_the_same_command_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bags", write_bags(tmp_path / "set.npz"), "--repeats", "1", "--epochs", "1", "--members", "1"]
    command(monkeypatch, *words, "--workers", "0", "--json", "--out", str(tmp_path / "out"))
    main()
    first = capsys.readouterr().out
    files = sorted((tmp_path / "out").glob("folds/*/0-*.json"))
    assert len(files) == 10
    files[3].unlink()
    before = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    main()
    second = capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert files[3].exists()
    rows = [json.loads(text.strip().splitlines()[-1]) for text in (first, second)]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    assert {"dataset", "accuracy", "accuracy_se", "auroc", "auroc_se", "localisation_auroc", "seconds"} <= rows[
        0
    ].keys()
    assert rows[0]["localisation_auroc"] is None
    assert "| gated_attention, embedding |" in first


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--bags", "absent.npz"], "absent.npz cannot be read"),
        (["--bags", "text.npz"], "cannot be read as .npz"),
        (["--bags", "set.npz", "--folds", "text.npz"], "cannot be read as .npz"),
        (["--bags", "set.npz", "--pooling", "median"], "pooling: expected 'max'"),
        (["--bags", "set.npz", "--pooling", "noisy_or"], "level: expected level instance with pooling noisy_or"),
        (["--bags", "set.npz", "--encoder", "conv"], "--encoder conv with --bags; allowed: mlp, linear"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bags(tmp_path / "set.npz")
    (tmp_path / "text.npz").write_text("no archive")
    command(monkeypatch, *words, "--repeats", "1", "--workers", "0")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    lines = [text for text in capsys.readouterr().err.strip().splitlines() if not text.startswith("import:")]
    assert len(lines) == 1
    assert line in lines[0]


def test_a_fold_file_for_other_bags_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "folds.npz", test_fold=np.zeros((5, 3)))
    with pytest.raises(InputError, match=r"shape \(5, 3\); allowed: \(repeats, 20\)"):
        bags_experiment(write_bags(tmp_path / "set.npz"), str(tmp_path / "folds.npz"), 1, tmp_path)


def test_every_bag_is_tested_once_in_every_repeat_and_never_trained_on(tmp_path: Path) -> None:
    experiment = bags_experiment(write_bags(tmp_path / "set.npz"), None, 2, tmp_path)
    assert len(experiment.folds) == 20
    for repeat in (0, 1):
        mine = [fold for fold in experiment.folds if fold.repeat == repeat]
        tested = [name for fold in mine for name in fold.test]
        assert sorted(tested) == [f"bag-{k:04d}" for k in range(20)]
        assert all(not set(fold.train) & set(fold.test) and len(fold.train) == 18 for fold in mine)
    assert experiment.folds[0].test != experiment.folds[10].test


def test_labels_of_test_bags_change_nothing_but_the_score(tmp_path: Path) -> None:
    """Choice, training and predictions are the same when the labels of the test bags are turned around."""
    results = []
    for name, flip in (("as-is", slice(0)), ("flipped", slice(4, 6))):
        (tmp_path / name).mkdir()
        experiment = bags_experiment(write_bags(tmp_path / name / "set.npz", flip=flip), None, 1, tmp_path / name)
        fold = experiment.folds[0]._replace(
            train=tuple(f"bag-{k:04d}" for k in range(20) if k not in (4, 5)), test=("bag-0004", "bag-0005")
        )
        protocol = protocol_of("mlp", {**SHORT, "pooling": "attention"}, 1)
        protocol = dataclasses.replace(protocol, candidates=({"learning_rate": 1e-5}, {"learning_rate": 1e-2}))
        results.append(run_fold(protocol, fold))
    assert results[0].labels != results[1].labels
    for field in ("probability", "colour", "shuffled", "chosen", "left_out", "threshold", "validation"):
        assert getattr(results[0], field) == getattr(results[1], field), field
    assert results[0].chosen == {"learning_rate": 1e-2}, "the rate that learns nothing was chosen"
    assert sorted(results[0].left_out) == sorted(fold.train), "every training bag is left out once"


def test_even_odds_lie_where_the_labels_turn() -> None:
    """Labels drawn with odds of ``exp(2 logit p - 2)`` are even at logit p = 1; a scaling cannot be had from chance."""
    random = np.random.default_rng(0)
    logits = random.normal(scale=2.0, size=20_000)
    labels = (random.uniform(size=20_000) < 1 / (1 + np.exp(2.0 - 2.0 * logits))).astype(int)
    probability = 1 / (1 + np.exp(-logits))
    assert even_odds(labels, probability) == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.01)
    assert even_odds(labels, 1.0 - probability) == 0.5
    assert 0.6 < even_odds(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.95, 0.99])) < 0.95, "no fault divides them"


def test_members_hold_out_a_part_each_where_asked(tmp_path: Path) -> None:
    fold = bags_experiment(write_bags(tmp_path / "set.npz"), None, 1, tmp_path).folds[0]
    protocol = dataclasses.replace(protocol_of("mlp", SHORT, 3), validation_parts=3)
    result = run_fold(protocol, fold)
    assert len(result.epochs) == 3
    assert result.validation is not None


def test_inner_parts_are_a_stratified_partition_of_the_training_bags(tmp_path: Path) -> None:
    fold = bags_experiment(write_bags(tmp_path / "set.npz"), None, 1, tmp_path).folds[0]
    bags = read_bags(fold, protocol_of("mlp", {}, 1).config)
    parts = inner_parts(bags, 3, (0, 0))
    assert sorted(name for part in parts for name in part) == sorted(fold.train)
    assert [sum(int(name[-1]) % 2 for name in part) for part in parts] == [3, 3, 3]


def test_mnist_bags_are_half_positive_and_as_long_as_asked() -> None:
    digits = np.random.default_rng(0).integers(10, size=5000)
    chosen, bag, labels = draw_bags(digits, MnistBags("", 9, 10), 400, np.random.default_rng(1))
    assert labels.sum() == 200
    lengths = np.bincount(bag, minlength=400)
    # a positive bag of N(10, 2) is a little longer than a negative one; 400 bags: standard error 0.1
    assert abs(lengths.mean() - 10) < 0.5
    assert abs(lengths.std() - 2) < 0.3
    holds = np.array([np.any(digits[chosen[bag == k]] == 9) for k in range(400)])
    assert np.array_equal(holds, labels == 1)


def test_mnist_folds_test_on_other_images_and_small_sets_begin_larger_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.ilse2018.sets.TEST_BAGS", 6)
    random = np.random.default_rng(0)
    images = {f"x_{split}": np.full((60, 28, 28), grey, np.uint8) for split, grey in (("train", 50), ("test", 200))}
    classes = {f"y_{split}": random.integers(10, size=60) for split in ("train", "test")}
    np.savez(tmp_path / "mnist.npz", **images, **classes)
    small, large = mnist_experiments(MnistBags(str(tmp_path / "mnist.npz"), 9, 3), (4, 8), 1, tmp_path)
    assert large.folds[0].train[:4] == small.folds[0].train
    assert large.folds[0].test == small.folds[0].test
    bags = read_bags(large.folds[0], protocol_of("lenet5", {}, 1).config)
    for split, grey in (("train", 50), ("test", 200)):
        assert {int(bags[index].instances[:].unique()) for index in bags.split(split)} == {grey}


def test_a_short_run_from_pixels_localises(tmp_path: Path) -> None:
    """Positive bags hold one bright patch: attention must find it."""
    random = np.random.default_rng(0)
    bag = np.repeat(np.arange(20), 6)
    patches = random.integers(0, 90, size=(120, 12, 12, 3)).astype(np.uint8)
    positive = (np.arange(120) % 6 == 2) & (bag % 2 == 1)
    patches[positive] += 150
    np.savez(
        tmp_path / "set.npz", patches=patches, bag=bag, y=np.arange(20) % 2, cls=np.where(positive, 0, 1),
        xy=random.uniform(0, 100, size=(120, 2)), cls_names=np.array(["lesion", "normal"]),
    )  # fmt: skip
    fold = patches_experiment(str(tmp_path / "set.npz"), None, 1, None, tmp_path).folds[0]
    result = run_fold(protocol_of("conv", {"epochs": 8, "learning_rate": 1e-3, "hidden": 32}, 1), fold)
    assert list(result.localisation.values()) == [1.0]
    assert result.attention.keys() == result.localisation.keys()


def test_figures_are_those_worked_by_hand() -> None:
    """Fold 0 calls 3 of 4 right, fold 1 all; sd of (.75, 1) is .25 / sqrt(2), over sqrt(2) folds: .125."""
    blank = FoldResult(
        0,
        0,
        ["a", "b", "c", "d"],
        [1, 1, 0, 0],
        [0.9, 0.4, 0.3, 0.1],
        [0.5] * 4,
        None,
        {},
        {},
        {},
        {},
        0.5,
        None,
        [3],
        0,
        1,
    )
    other = blank._replace(
        number=1, probability=[0.9, 0.45, 0.3, 0.1], threshold=0.4, localisation={"a": 0.75}, validation=0.9
    )
    row = summary([blank, other])
    assert (row["accuracy"], row["accuracy_se"]) == (0.875, pytest.approx(0.125))
    assert (row["precision"], row["recall"]) == (1.0, 0.75)
    assert row["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert (row["auroc"], row["auroc_pooled"], row["colour_auroc"]) == (1.0, 1.0, 0.5)
    assert (row["localisation_auroc"], row["localisation_auroc_se"]) == (0.75, None)
    assert (row["shuffled_auroc"], row["validation_accuracy"], row["epochs"], row["folds"]) == (None, 0.9, 3.0, 2)


def test_standard_errors_leave_out_what_is_not_defined() -> None:
    assert mean_and_error([1.0, float("nan"), 3.0]) == (2.0, pytest.approx(1.0))
    assert mean_and_error([float("nan")]) == (None, None)


def test_the_table_shows_the_papers_rows_as_recalled() -> None:
    row = summary(
        [FoldResult(0, 0, ["a", "b"], [1, 0], [0.9, 0.1], [0.9, 0.1], None, {}, {}, {}, {}, 0.5, None, [3], 0, 1)]
    )
    text = markdown(
        [{"dataset": "musk1", "pooling": "attention", "level": "embedding", "note": "", "seconds": 1, **row}]
    )
    assert "| attention, embedding | 1.000 |" in text
    assert "*.892 ± .040*" in text


def test_all_poolings_are_those_that_the_level_allows() -> None:
    of_embeddings, of_instances = (wanted("all", level) for level in ("embedding", "instance"))
    assert set(POOLING_NAMES) - {name for name, _ in of_embeddings} == {"noisy_or", "noisy_and", "topk", "transmil"}
    assert {name for name, _ in of_embeddings} & {name for name, _ in of_instances} > {"max", "gated_attention"}
    assert wanted("all", "embedding,instance") == [*of_embeddings, *of_instances]
    assert wanted("max", "instance") == [("max", "instance")]


def test_statistics_of_patches_are_those_of_their_colours() -> None:
    patches = torch.zeros(2, 1, 2, 3, dtype=torch.uint8)
    patches[0, 0, 0] = torch.tensor([4, 8, 12])
    np.testing.assert_allclose(bag_statistics(patches), [1, 2, 3, np.sqrt(3), np.sqrt(12), np.sqrt(27)])


@pytest.mark.parametrize("encoder", CONFIGS)
def test_settings_are_valid_and_name_no_data_set(encoder: str) -> None:
    assert protocol_of(encoder, {"pooling": "max"}, None).config.pooling == "max"
