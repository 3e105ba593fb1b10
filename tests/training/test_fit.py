"""Training on bags at hand: the same weights as through a store, and settings as on the command line."""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import milcore
from milcore.cli.main import app
from milcore.config import ImportConfig, SplitConfig, TrainConfig
from milcore.errors import InputError
from milcore.ingestion.imports.import_cohort import import_source
from milcore.mil.bags.bags import Bags
from milcore.mil.inference import predict_bags
from milcore.mil.model import MILModel, make_model
from milcore.training.context import LocalContext
from milcore.training.fit import fit
from milcore.training.model_file import load_model
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run

WIDTH = 5
SETTINGS = {"hidden": 8, "attention_hidden": 4, "learning_rate": 0.02, "batch_size": 4}
CPU = torch.device("cpu")


def arrays_of(kind: str, bags: int = 24) -> list[np.ndarray]:
    """Bags of 1 to 9 instances; in every second bag one instance is shifted by 4.

    ``float16`` are values that float16 holds; ``float32`` lie so far from zero that a store keeps float32.
    """
    random = np.random.default_rng(0)
    arrays = []
    for index in range(bags):
        array = random.normal(size=(1 + 4 * index % 9, WIDTH)).astype(np.float16)
        array[0] += 4 * (index % 2)
        arrays.append(array if kind == "float16" else array.astype(np.float32) + 1000)
    return arrays


LABELS = [index % 2 for index in range(24)]


def same(weights: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_it_trains_the_weights_that_a_store_of_the_same_features_gives(tmp_path: Path, kind: str) -> None:
    arrays = arrays_of(kind)
    np.savez(
        tmp_path / "bags.npz",
        X=np.concatenate(arrays),
        bag=np.repeat(np.arange(24), [len(array) for array in arrays]),
        y=LABELS,
    )
    import_source(str(tmp_path / "bags.npz"), str(tmp_path / "store"), ImportConfig(format="bags-npz"))
    run = Run(str(tmp_path / "run"))
    config = TrainConfig(features="imported", epochs=6, seed=3, **SETTINGS)
    prepare_run(str(tmp_path / "store"), run.uri, config, SplitConfig())
    train_run(run.uri, LocalContext(None, CPU))
    splits = run.splits()
    assert set(splits["split"].to_pylist()) == {"train", "val", "test"}

    bags = Bags.from_arrays(arrays, LABELS, splits=splits["split"].to_pylist())
    assert [entry.bag_id for entry in bags.entries] == splits["slide_id"].to_pylist()
    model = fit(bags, epochs=6, seed=3, **SETTINGS)
    assert same(model.state_dict(), load_model(run.model_uri, config).state_dict())


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    bags = Bags.from_arrays(arrays_of("float16"), LABELS)
    first, second, other = (fit(bags, epochs=2, seed=seed, **SETTINGS).state_dict() for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, other)


def test_memory_maps_read_in_chunks_train_the_weights_of_arrays_in_memory(tmp_path: Path) -> None:
    arrays = arrays_of("float32")
    mapped = []
    for index, array in enumerate(arrays):
        np.save(tmp_path / f"{index}.npy", array)
        mapped.append(np.load(tmp_path / f"{index}.npy", mmap_mode="r"))
    whole = fit(Bags.from_arrays(arrays, LABELS), epochs=2, **SETTINGS).state_dict()
    bags = Bags.from_arrays(mapped, LABELS)
    assert same(fit(bags, epochs=2, cache_mb=1e-5, **SETTINGS).state_dict(), whole)
    assert bags[8].instances[:].shape == arrays[8].shape, "the caller's bags keep their own cache"


def test_without_splits_all_bags_train_and_the_last_epoch_is_kept() -> None:
    """An epoch more changes the weights, and so does any bag, though ``patience`` is 1."""
    arrays = arrays_of("float16")
    bags = Bags.from_arrays(arrays, LABELS)
    settings = {**SETTINGS, "schedule": "constant", "patience": 1}
    five, six = (fit(bags, epochs=epochs, **settings).state_dict() for epochs in (5, 6))
    assert not same(five, six)
    arrays[-1] = arrays[-1] + np.float16(1)
    assert not same(fit(Bags.from_arrays(arrays, LABELS), epochs=5, **settings).state_dict(), five)


def test_validation_selects_the_epoch_and_test_bags_change_nothing() -> None:
    """Validation bags of swapped labels rank the first epoch best; a test bag may be anything."""
    arrays = arrays_of("float16")
    splits = ["val" if index >= 16 else "test" if index >= 12 else "train" for index in range(24)]
    labels = [1 - label if split == "val" else label for label, split in zip(LABELS, splits, strict=True)]
    bags = Bags.from_arrays(arrays, labels, splits=splits)
    kept = fit(bags, epochs=12, schedule="constant", seed=0, **SETTINGS).state_dict()
    one = fit(bags, epochs=1, schedule="constant", seed=0, **SETTINGS).state_dict()
    assert same(kept, one)
    arrays[12] = np.full((3, WIDTH), 50.0, np.float16)
    assert same(
        fit(Bags.from_arrays(arrays, labels, splits=splits), epochs=1, schedule="constant", **SETTINGS).state_dict(),
        one,
    )


@pytest.mark.slow
def test_five_lines_learn_the_bags() -> None:
    arrays = arrays_of("float16")
    names = ["tumour" if label else "normal" for label in LABELS]

    bags = milcore.Bags.from_arrays(arrays, names)
    model = milcore.fit(bags, pooling="gated_attention", epochs=50, hidden=16, learning_rate=0.01)
    predictions = milcore.predict_bags([model], bags)

    assert bags.class_names == ("normal", "tumour")
    called = [predictions[index].likeliest for index in range(len(bags))]
    assert np.mean(np.array(called) == LABELS) > 0.9
    assert predictions[3].attention.shape == (len(arrays[3]),)
    assert predictions[3].attention.sum() == pytest.approx(1.0)
    assert predictions[3].probability.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("setting", "flag"),
    [({"epochs": 0}, "--epochs=0"), ({"hidden": "wide"}, None), ({"dropout": 1.5}, "--dropout=1.5")],
)
def test_a_setting_out_of_range_is_refused_in_the_command_line_s_words(
    setting: dict[str, object], flag: str | None, tmp_path: Path
) -> None:
    bags = Bags.from_arrays(arrays_of("float16"), LABELS)
    with pytest.raises(InputError, match=rf"^{next(iter(setting))}: expected .*, got ") as refused:
        fit(bags, **setting)
    if flag:
        shown = CliRunner().invoke(app, ["train", str(tmp_path / "store"), str(tmp_path / "run"), flag])
        assert str(shown.exception) == str(refused.value)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"epoch": 3}, "epoch: expected a setting, got 'epoch'; allowed: bags, "),
        ({"features": "uni2-h"}, "features: expected none in fit, got 'uni2-h'; the bags are read already"),
        ({"bag": "patient"}, "bag: expected none in fit, got 'patient'; the bags are made already"),
        ({"encoder": "conv"}, "encoder: expected one that takes features, got"),
        ({"pooling": "noisy_or"}, "level: expected level instance with pooling noisy_or"),
    ],
)
def test_a_setting_that_does_not_fit_bags_of_features_is_refused(settings: dict[str, object], error: str) -> None:
    with pytest.raises(InputError, match=re.escape(error)):
        fit(Bags.from_arrays(arrays_of("float16"), LABELS), **settings)


def test_training_bags_of_one_class_are_refused() -> None:
    arrays = arrays_of("float16", 4)
    with pytest.raises(InputError, match="labels: expected training bags of two or more classes, got none of 1; "):
        fit(Bags.from_arrays(arrays, [0, 0, 0, 1], splits=["train", "train", "train", "val"]))
    with pytest.raises(InputError, match="got none of a second; "):
        fit(Bags.from_arrays(arrays, ["tumour"] * 4))
    with pytest.raises(InputError, match="got none of 0, 1; "):
        fit(Bags.from_arrays(arrays, [0, 1, 0, 1], splits=["val"] * 4))


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(InputError, match="use_gpu: expected a CUDA device, got none here"):
        fit(Bags.from_arrays(arrays_of("float16"), LABELS), use_gpu=True)


def test_bags_of_another_width_are_not_predicted() -> None:
    model = fit(Bags.from_arrays(arrays_of("float16"), LABELS), epochs=1, **SETTINGS)
    wide = Bags.from_arrays([np.zeros((2, WIDTH + 1))], [0])
    with pytest.raises(InputError, match=r"bags: expected 5 features, as the model was trained on, got 6; allowed"):
        predict_bags([model], wide)


def test_some_bags_are_predicted_by_their_indices() -> None:
    bags = Bags.from_arrays(arrays_of("float16"), LABELS)
    model = fit(bags, epochs=1, **SETTINGS)
    every = predict_bags([model], bags)
    assert list(every) == list(range(24))
    some = predict_bags([model], bags, [5, 2])
    assert list(some) == [5, 2]
    assert some[5].probability == pytest.approx(every[5].probability, abs=1e-6)


def ensemble(bags: Bags) -> list[MILModel]:
    return [fit(bags, epochs=1, seed=seed, **SETTINGS) for seed in (0, 1)]


@pytest.mark.parametrize(
    "indices", [lambda: (index for index in (5, 2)), lambda: np.array([5, 2]), lambda: torch.tensor([5, 2])]
)
def test_models_and_indices_may_be_read_once(indices: Callable[[], Any]) -> None:
    bags = Bags.from_arrays(arrays_of("float16"), LABELS)
    models = ensemble(bags)
    listed = predict_bags(models, bags, [5, 2])
    once = predict_bags((model for model in models), bags, indices())
    assert list(once) == [5, 2]
    for index, prediction in once.items():
        assert np.array_equal(prediction.members, listed[index].members)
        assert prediction.members.shape == (2, 2)
        assert prediction.attention.sum() == pytest.approx(1.0)


def test_one_model_predicts_as_a_list_of_it() -> None:
    bags = Bags.from_arrays(arrays_of("float16"), LABELS)
    model = fit(bags, epochs=1, **SETTINGS)
    assert np.array_equal(predict_bags(model, bags)[3].members, predict_bags([model], bags)[3].members)


@pytest.mark.parametrize(
    ("indices", "got"),
    [
        ([3, 24], "24"),
        ([-1], "-1"),
        ([1.0], "1.0"),
        ([True, False], "True"),
        (np.ones(24, bool), "True"),
        ("test", "'t'"),
        ([[3, 4]], r"\[3, 4\]"),
        (5, "5"),
        (np.array(5), "5"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_an_index_of_no_bag_is_refused(indices: Any, got: str) -> None:
    bags = Bags.from_arrays(arrays_of("float16"), LABELS)
    model = make_model(TrainConfig(**SETTINGS), WIDTH, 2)
    with pytest.raises(
        InputError, match=rf"^indices: expected a list of indices of 24 bags, got {got}; allowed: .* from 0 to 23"
    ):
        predict_bags(model, bags, indices)


@pytest.mark.parametrize(("models", "got"), [([], "none"), ([3], "type int"), (None, "type NoneType")])
@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_model_predicts_nothing(models: Any, got: str) -> None:
    bags = Bags.from_arrays(arrays_of("float16"), LABELS)
    with pytest.raises(InputError, match=rf"^models: expected models, got {got}; allowed: one MILModel or several"):
        predict_bags(models, bags)


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_bags_is_refused() -> None:
    arrays = arrays_of("float16")
    expected = r"^bags: expected Bags, got type list; allowed: such as Bags.from_arrays\(arrays, labels\)"
    with pytest.raises(InputError, match=expected):
        fit(arrays)
    with pytest.raises(InputError, match=expected):
        predict_bags(make_model(TrainConfig(**SETTINGS), WIDTH, 2), arrays)


def test_models_made_in_threads_have_the_weights_of_their_seed() -> None:
    config = TrainConfig(hidden=64, attention_hidden=64, seed=7)
    alone = make_model(config, 256, 2).state_dict()
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: make_model(config, 256, 2).state_dict(), range(200)))
    assert all(same(weights, alone) for weights in made)


def test_as_many_threads_give_the_same_weights_to_the_bit() -> None:
    """A step of 8 bags of 90 x 1024 values has work for two threads."""
    random = np.random.default_rng(0)
    bags = Bags.from_arrays([random.normal(size=(90, 1024)).astype(np.float16) for _ in range(16)], [0, 1] * 8)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (fit(bags, epochs=2, hidden=64).state_dict() for _ in range(3))
    finally:
        torch.set_num_threads(before)
    assert all(same(first, other) for other in others)


SURVIVAL = {"target": "survival_cox", "time": "days", "event": "died", "hidden": 8, "attention_hidden": 4}


def test_survival_of_arrays_learns_who_dies_first() -> None:
    """Shifted bags have the shorter times: their risk is above that of the others, whose mean over training is 0."""
    times, events = [10.0 + k - 9 * (k % 2) for k in range(24)], [int(k % 5 > 0) for k in range(24)]
    bags = Bags.from_arrays(arrays_of("float16"), times=times, events=events)
    model = fit(bags, **SURVIVAL, epochs=30, learning_rate=0.02, dropout=0.0)
    risk = np.array([prediction.probability[0] for prediction in predict_bags(model, bags).values()])
    assert risk.mean() == pytest.approx(0.0, abs=1e-5)
    assert risk[1::2].min() > risk[::2].max()


def test_several_bags_of_a_patient_are_no_training_for_survival() -> None:
    bags = Bags.from_arrays(
        arrays_of("float16"), times=[9.0] * 24, events=[1] * 24, patients=["p0", "p0", *(f"p{k}" for k in range(2, 24))]
    )
    with pytest.raises(InputError, match=r"one bag per patient with a survival target, got several of p0 has 2"):
        fit(bags, **SURVIVAL, epochs=1)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "labels: expected labels, times and events, or values, got none"),
        ({"times": [1.0] * 24}, "events: expected values with times, got none"),
        ({"times": [0.0] * 24, "events": [1] * 24}, "times: expected times above 0: bag 0: got 0.0"),
        ({"times": [1.0] * 24, "events": [2] * 24}, "events: expected 0 or 1: bag 0: got 2"),
    ],
)
def test_follow_up_that_is_none_is_one_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as raised:
        Bags.from_arrays(arrays_of("float16"), **values)
    assert line in raised.value.line


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"labels": LABELS}, "bags: expected training bags with time and event, an event in one at least, got none of"),
        ({"times": [1.0] * 24, "events": [0] * 24}, "an event in one at least, got no event in 24"),
    ],
)
def test_bags_without_follow_up_or_events_are_not_trained_on(values: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        fit(Bags.from_arrays(arrays_of("float16"), **values), **SURVIVAL)
