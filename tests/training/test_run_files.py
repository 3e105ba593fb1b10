"""A file of a run that changed, or was exchanged with another run's, is an error that names it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from milcore.api import download_model
from milcore.cli.info import damage
from milcore.config import SplitConfig, TrainConfig
from milcore.errors import DamageError, MILError
from milcore.runtime import storage
from milcore.store.store import PatchStore
from milcore.training.checkpoints import is_intact
from milcore.training.context import LocalContext
from milcore.training.cross_validation import train_folds
from milcore.training.model_file import load_model, model_bytes
from milcore.training.run import prepare_run, train_run
from milcore.training.run_files import FILES, damage_of, publish, read_file, record
from milcore.training.run_folder import Run, read_metrics
from tests.cohorts import write_features, write_store

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=2, batch_size=4, checkpoint_every=1)
CPU = torch.device("cpu")

READS: dict[str, Callable[[Run], object]] = {
    "config.json": lambda run: run.spec(),
    "splits.parquet": lambda run: run.splits(),
    "history.parquet": lambda run: run.history(),
    "model.safetensors": lambda run: run.models(),
    FILES: lambda run: run.spec(),
}


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("store"))
    write_features(write_store(uri))
    return uri


def _train(store_uri: str, folder: Path, seed: int = 0) -> Run:
    prepare_run(store_uri, str(folder), TRAIN.model_copy(update={"seed": seed}), SplitConfig())
    train_run(str(folder), LocalContext(str(folder / "checkpoints"), CPU))
    return Run(str(folder))


@pytest.fixture
def run(store_uri: str, tmp_path: Path) -> Run:
    return _train(store_uri, tmp_path / "run")


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))


def test_every_published_file_has_its_sha256(run: Run) -> None:
    files = json.loads(Path(run.uri, FILES).read_text())["files"]
    there = {file.name: file for file in Path(run.uri).iterdir() if file.is_file() and file.name != FILES}
    assert files == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in there.items()}


@pytest.mark.parametrize("name", READS)
def test_a_changed_byte_is_an_error_that_names_the_file(run: Run, name: str) -> None:
    READS[name](run)
    _flip(Path(run.uri, name))
    with pytest.raises(DamageError, match=str(Path(run.uri, name))):
        READS[name](run)
    assert [line for line in damage(run.uri) if str(Path(run.uri, name)) in line]


@pytest.mark.parametrize("name", READS)
def test_a_file_of_another_run_is_an_error_that_names_it(store_uri: str, run: Run, tmp_path: Path, name: str) -> None:
    """The two runs have the same store and splits, and differ by the seed."""
    other = _train(store_uri, tmp_path / "other", seed=1)
    data = Path(other.uri, name).read_bytes()
    if data == Path(run.uri, name).read_bytes():
        assert name == "splits.parquet"
        return
    Path(run.uri, name).write_bytes(data)
    with pytest.raises(DamageError, match=str(Path(run.uri))):
        READS[name](run)


def test_models_of_two_folds_in_each_other_s_place_are_refused(store_uri: str, tmp_path: Path) -> None:
    prepare_run(store_uri, str(tmp_path), TRAIN, SplitConfig(folds=2))
    train_folds(str(tmp_path), "cpu")
    one, two = (Path(Run(str(tmp_path)).fold(fold).model_uri) for fold in (0, 1))
    data = one.read_bytes()
    assert damage(str(tmp_path)) == []
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    with pytest.raises(DamageError, match=str(one)):
        Run(str(tmp_path)).models()
    assert len(damage(str(tmp_path))) == 2


def test_a_lost_file_is_told(run: Run) -> None:
    Path(run.history_uri).unlink()
    (line,) = damage(run.uri)
    assert line.startswith(f"{run.history_uri}: expected the file that was published, got no object")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_checkpoint_with_a_changed_byte_of_its_state_is_not_taken(run: Run, place: float) -> None:
    newest = max(Path(run.uri, "checkpoints").iterdir())
    assert is_intact(newest)
    data = bytearray((newest / "state.json").read_bytes())
    data[int(place * len(data))] ^= 1
    (newest / "state.json").write_bytes(bytes(data))
    assert not is_intact(newest)


def test_a_run_without_digests_is_read_and_told_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Versions of the first schema wrote none."""
    config = {**json.loads(Path(run.config_uri).read_text()), "schema_version": 1}
    Path(run.config_uri).write_text(json.dumps(config))
    Path(run.uri, FILES).unlink()
    run.models()
    run.spec()
    assert capsys.readouterr().err.count(f"{run.uri}: made by an earlier version, without {FILES}") == 1


def test_digests_that_are_lost_are_an_error_and_no_run_of_an_earlier_version(run: Run) -> None:
    """Else every other change of the run would pass."""
    Path(run.uri, FILES).unlink()
    with pytest.raises(DamageError, match=f"{run.uri}/{FILES}: expected the digests of the folder's files, got none"):
        run.spec()


def test_files_published_one_after_another_are_all_recorded(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    publish({one: b"1"})
    publish({two: b"2"})
    record({one: b"3"})
    assert read_file(two) == b"2"
    with pytest.raises(DamageError, match="expected the file that was published"):
        read_file(one)


def test_equal_models_are_equal_bytes_and_read_back(run: Run) -> None:
    model = load_model(run.model_uri, TRAIN)
    written = {model_bytes(model, 1, "classification") for _ in range(20)}
    assert len(written) == 1
    storage.write_bytes(run.model_uri, written.pop())
    record({run.model_uri: storage.read_bytes(run.model_uri)})
    again = load_model(run.model_uri, TRAIN).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_verify_lists_every_damaged_array_of_a_store_without_checksums_too(tmp_path: Path) -> None:
    store = write_store(str(tmp_path))
    write_features(store)
    assert damage(str(tmp_path)) == []
    for slide_id, array in (("s00", "features/mean_rgb"), ("s01", "coords"), ("s02", "patches")):
        _flip(min(path for path in Path(store.group_uri(slide_id), array, "c").rglob("*") if path.is_file()))
    Path(store.group_uri("s03"), "zarr.json").write_text("{")
    lines = sorted(damage(str(tmp_path)), reverse=True)
    record = f"{store.group_uri('s03')}/zarr.json"
    places = ("s03", record), ("s02", "patches"), ("s01", "coords"), ("s00", "features/mean_rgb")
    begins = [f"slide {slide_id!r}: {place}:" for slide_id, place in places]
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == begins
    with pytest.raises(MILError):
        PatchStore(str(tmp_path)).records()


@pytest.mark.parametrize("name", ["splits.parquet", "history.parquet"])
def test_a_read_of_a_lost_file_is_an_error_that_names_it(run: Run, name: str) -> None:
    Path(run.uri, name).unlink()
    with pytest.raises(DamageError, match=f"{run.uri}/{name}: expected the file that was published, got no object"):
        READS[name](run)


def test_a_lost_model_cannot_be_downloaded(run: Run, tmp_path: Path) -> None:
    Path(run.model_uri).unlink()
    with pytest.raises(DamageError, match=f"{run.model_uri}: expected the file that was published, got no object"):
        download_model(run.uri, str(tmp_path / "model"))


def test_lost_metrics_are_an_error_and_not_those_of_a_run_before_its_evaluation(run: Run) -> None:
    """Else predict would call no class without a word."""
    assert read_metrics(run) is None
    publish({run.metrics_uri: b"{}"})
    assert read_metrics(run) == {}
    Path(run.metrics_uri).unlink()
    with pytest.raises(DamageError, match=f"{run.metrics_uri}: expected the file that was published, got no object"):
        read_metrics(run)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"files": 3}', '{"files": {"config.json": 5}}'])
def test_other_json_in_place_of_the_digests_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    """Such as that of another file of the run in its place."""
    publish({str(tmp_path / "config.json"): b"{}"})
    (tmp_path / FILES).write_text(text)
    line = f"{tmp_path / FILES}: expected the digests of the folder's files, got other JSON; restore it"
    with pytest.raises(DamageError, match=line):
        read_file(str(tmp_path / "config.json"))
    assert damage_of(str(tmp_path)) == [line]


def test_verify_tells_of_a_record_and_of_features_that_are_lost(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=2)
    write_features(store)
    Path(store.group_uri("s00"), "zarr.json").unlink()
    Path(store.group_uri("s01"), "features/mean_rgb/zarr.json").unlink()
    record_line, features_line = damage(str(tmp_path))
    assert record_line.startswith(f"slide 's00': {store.group_uri('s00')}: expected a complete record, got none")
    assert "slide 's01': expected complete features/mean_rgb, got none" in features_line


@pytest.mark.parametrize("text", ["[]", "1", "[" * 100_000])
def test_a_config_that_is_no_object_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DamageError, match=f"{tmp_path}/config.json: expected "):
        Run(str(tmp_path)).spec()
