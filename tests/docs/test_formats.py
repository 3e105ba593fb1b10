"""The tables of docs/formats.md name what a store, runs, a sweep and a folder of predictions really hold."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from typer.testing import CliRunner

from milcore.cli.main import app
from milcore.config import SplitConfig, TrainConfig, TuneConfig
from milcore.slides.write_pyramid import write_pyramid
from milcore.training.sweep import TrialResult, prepare_sweep, publish

PAGE = (Path(__file__).resolve().parents[2] / "docs/formats.md").read_text()
SLIDES = 8
pytestmark = pytest.mark.slow
TRAIN = ["--level", "instance", "--hidden", "4", "--attention-hidden", "2", "--epochs", "1", "--checkpoint-every", "1"]
# what a test of seconds does not make, and why
NOT_MADE = {
    "tune/": "the Kubeflow pipeline makes it",
    "status.json": "the Kubeflow pipeline makes it",
    "logs/<step>-r<attempt>.log": "a step on a cluster makes it",
    "labels_from": "only where labels changed",
    "label_changes": "only where labels changed",
    "retry": "only where storage failed",
    "no_picture": "only where an import's slide cannot be read",
}


def table(heading: str) -> dict[str, tuple[str, ...]]:
    """The other cells of the first table below a heading, by the name in the first cell."""
    section = re.split(r"^#+ ", PAGE.partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    # a line that is no row ends a table
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE).group().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    return {first.strip("`"): tuple(rest) for first, *rest in rows[2:]}


def run(*arguments: str) -> None:
    ended = CliRunner().invoke(app, list(arguments))
    assert ended.exit_code == 0, ended.output


def write_cohort(folder: Path) -> str:
    """Slides of noise on white, half of them positive with their left part annotated, and one that is no slide."""
    rows = ["slide_id,uri,label,site,annotation", "bad,bad.tiff,0,,"]
    (folder / "bad.tiff").write_bytes(b"no slide")
    ring = [[0, 0], [64, 0], [64, 192], [0, 192], [0, 0]]
    (folder / "left.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    for k in range(SLIDES):
        pixels = np.full((192, 256, 3), 244, np.uint8)
        noise = np.random.default_rng(k).normal((200, 110 + 10 * (k % 2), 170), 25, (192, 192, 3))
        pixels[:, :192] = np.clip(noise, 0, 255)
        write_pyramid(folder / f"s{k}.tiff", pixels, 0.5, 2, quality=95)
        rows.append(f"s{k},s{k}.tiff,{k % 2},{'AB'[k % 2]},{'left.geojson' if k % 2 else ''}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return str(folder / "manifest.csv")


def write_sweep(store: str, out: str) -> None:
    """A sweep of one trial whose result is given."""
    train = TrainConfig(hidden=4, epochs=1)
    spec = prepare_sweep(store, out, TuneConfig(poolings=("max",), trials=1, train=train), SplitConfig())
    publish(out, spec, [TrialResult(0, "max", 2e-4, 1, 0.5, 1.0, "ok", None)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stores, runs, a sweep and predictions."""
    folder = tmp_path_factory.mktemp("formats")
    store, run_uri, folds = (str(folder / name) for name in ("store", "run", "folds"))
    run("ingest", write_cohort(folder), store, "--patch-size", "64")
    run("encode", store)
    run("train", store, run_uri, *TRAIN)
    run("evaluate", run_uri, "--without-each")
    run("train", store, folds, *TRAIN, "--folds", "2")
    run("evaluate", folds, "--no-baselines")
    write_sweep(store, str(folder / "sweep"))
    run("predict", run_uri, str(folder / "s1.tiff"), str(folder / "predictions"))
    run("predict", folds, str(folder / "of-store"), "--store", store, "--attention", "parquet")
    patches = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    which = np.repeat(np.arange(4), 2)
    np.savez(
        folder / "patches.npz", patches=patches, bag=which, y=np.arange(4) % 2, xy=np.array([[8, 8], [24, 8]] * 4),
        cls=np.array(["tumour", "stroma"] * 4),
    )  # fmt: skip
    source, imported = str(folder / "patches.npz"), str(folder / "imported")
    run("import", source, imported, "--format", "patches-npz", "--positive-instances", "tumour")
    vectors = np.random.default_rng(0).normal(size=(8, 3))
    np.savez(folder / "bags.npz", X=vectors, bag=which, y=np.arange(4) % 2)
    run("import", str(folder / "bags.npz"), str(folder / "bags"), "--format", "bags-npz", "--encoder-id", "normal")
    return folder


def places(folder: Path) -> set[str]:
    """Files and folders of a folder, as the page writes them: Zarr groups, epochs and folds as folders."""
    names = set()
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if any(parent.suffix == ".zarr" or parent.name == "tensorboard" for parent in path.parents if parent != folder):
            continue
        if path.is_dir() and (path.suffix == ".zarr" or parts[0] == "tensorboard"):
            names.add("/".join(parts) + "/")
        elif path.is_file():
            names.add("/".join(parts))
    return names


def matched(documented: str) -> re.Pattern[str]:
    """What a documented place stands for; a folder for all that is in it."""
    pattern = re.escape(documented)
    for placeholder, stands_for in (
        ("<slide_id>", r"[A-Za-z0-9_-]+"),
        ("<epoch>", r"\d{4}"),
        ("<k>", r"\d"),
        ("<digest>", r"[0-9a-f]{32}"),
        ("<part>", r"\d{6}-[0-9a-f]{16}"),
    ):
        pattern = pattern.replace(re.escape(placeholder), stands_for)
    return re.compile(pattern + (".*" if documented.endswith("/") else ""))


@pytest.mark.parametrize(
    ("heading", "folders"),
    [
        ("Patch store", ["store", "imported", "bags"]),
        ("Run folder", ["run", "folds"]),
        ("Attention", ["run/attention", "folds/attention", "predictions/attention"]),
        ("Sweep folder", ["sweep"]),
        ("Folder of predictions", ["predictions"]),
        ("Folder of predictions of a store", ["of-store"]),
    ],
)
def test_every_file_is_documented_and_every_documented_one_is_there(
    made: Path, heading: str, folders: list[str]
) -> None:
    documented = {name: matched(name) for name in table(heading)}
    there = set().union(*(places(made / folder) for folder in folders))
    unknown = {place for place in there if not any(pattern.fullmatch(place) for pattern in documented.values())}
    assert unknown == set()
    absent = {name for name, pattern in documented.items() if not any(map(pattern.fullmatch, there))}
    assert absent <= NOT_MADE.keys()


@pytest.mark.parametrize(
    ("heading", "files"),
    [
        ("Columns of `manifest.parquet`", ["store/manifest.parquet"]),
        ("Columns of `splits.parquet`", ["folds/splits.parquet", "run/splits.parquet", "sweep/splits.parquet"]),
        ("Columns of `history.parquet`", ["run/history.parquet", "folds/history.parquet"]),
        ("Columns of `predictions.parquet`", ["run/predictions.parquet", "folds/predictions.parquet"]),
        ("Columns of attention", ["run/attention/{test}.parquet", "predictions/attention/s1.parquet"]),
        ("Columns of `trials.parquet`", ["sweep/trials.parquet"]),
    ],
)
def test_tables_have_the_documented_columns_of_the_documented_types(made: Path, heading: str, files: list[str]) -> None:
    documented = {name: cells[0] for name, cells in table(heading).items()}
    first, *others = [pq.read_schema(made / name.format(test=a_test_slide(made))) for name in files]
    assert {field.name: str(field.type) for field in first} == documented
    for schema in others:
        assert {field.name: str(field.type) for field in schema}.items() <= documented.items()


def a_test_slide(made: Path) -> str:
    splits = pq.read_table(made / "run/splits.parquet").to_pylist()
    return next(str(row["slide_id"]) for row in splits if row["split"] == "test")


def groups(made: Path) -> list[zarr.Group]:
    imports = [next((made / store / "slides").iterdir()) for store in ("imported", "bags")]
    paths = [made / "store/slides/s0.zarr", made / "store/slides/bad.zarr", *imports]
    return [zarr.open_group(path, mode="r") for path in paths]


def arrays_of(group: zarr.Group) -> list[tuple[str, Any]]:
    """Arrays with their documented names."""
    features = group["features"].arrays() if "features" in group else ()
    return [*group.arrays(), *(("features/<name>", array) for _, array in features)]


def test_arrays_have_the_documented_types_and_axes(made: Path) -> None:
    documented = table("Arrays of a slide")
    seen = set()
    for group in groups(made):
        for name, array in arrays_of(group):
            types, shape, _ = documented[name]
            assert str(array.dtype) in types.split(" or "), name
            assert array.ndim == len([axis for axis in shape.strip("()").split(",") if axis.strip()]), name
            seen.add(name)
    assert seen == documented.keys()


def test_slides_and_features_have_the_documented_attributes(made: Path) -> None:
    slides, features = set(), set()
    for group in groups(made):
        slides |= set(group.attrs)
        if "features" in group:
            features |= {key for _, array in group["features"].arrays() for key in array.attrs}
    assert slides == table("Attributes of a slide").keys() - NOT_MADE.keys()
    assert features == table("Attributes of features").keys()


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_json_files_of_a_run_have_the_documented_keys(made: Path, name: str) -> None:
    keys = json.loads((made / "run" / name).read_text()).keys()
    assert keys == table(f"Keys of `{name}`").keys() - NOT_MADE.keys()


def test_attention_as_zarr_has_the_columns_of_the_table(made: Path) -> None:
    group = zarr.open_group(made / f"run/attention/{a_test_slide(made)}.zarr", mode="r")
    names = {"float": "float32", "double": "float64", "int32": "int32"}
    documented = {name: names[cells[0]] for name, cells in table("Columns of attention").items()}
    assert {name: str(array.dtype) for name, array in group.arrays()} == documented


def test_predictions_have_the_documented_columns_and_keys(made: Path) -> None:
    with (made / "predictions/predictions.csv").open() as file:
        assert list(next(csv.reader(file))) == list(table("Columns of `predictions.csv`"))
    (cell,) = table("Folder of predictions")["predictions.json"]
    summary = json.loads((made / "predictions/predictions.json").read_text())
    assert set(re.findall(r"`(\w+)`", cell)) == summary.keys()


def test_predictions_of_a_store_have_the_documented_columns_and_keys(made: Path) -> None:
    documented = {name: cells[0] for name, cells in table("Columns of `predictions/`").items()}
    schema = pq.read_table(made / "of-store/predictions").schema
    assert {field.name: str(field.type) for field in schema} == documented
    (cell,) = table("Folder of predictions of a store")["summary.json"]
    summary = json.loads((made / "of-store/summary.json").read_text())
    assert set(re.findall(r"`(\w+)`", cell)) == summary.keys()


def test_rows_of_the_index_and_the_verdict_have_the_documented_keys(made: Path) -> None:
    (cell,) = table("Attention")["index.json"]
    row = json.loads((made / "run/attention/index.json").read_text())[0]
    assert set(re.findall(r"`(\w+)`", cell)) == row.keys()
    (cell,) = table("Sweep folder")["verdict.json"]
    assert set(re.findall(r"`(\w+)`", cell)) == json.loads((made / "sweep/verdict.json").read_text()).keys()


def test_what_is_not_made_here_is_documented() -> None:
    documented = set(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))
    assert documented >= NOT_MADE.keys()
