"""What a scanner or a user writes beside the pixels stays out of all that is written and logged."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from PIL import Image

from milcore.store.store import PatchStore

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SCANNER = "SS45678"
PERSON = "jane.doe"
DESCRIPTION = (
    "Aperio Leica Biosystems GT450 v1.0.1 \r\n1024x768 [0,0,1024x768] (256x256) JPEG/RGB Q=91|AppMag = 20|MPP = 0.5"
    f"|ScanScope ID = {SCANNER}|Filename = MUSTERMANN_ERIKA|User = {PERSON}|Title = H12-3456|Barcode = BC998877"
)
# artist, host computer, make
TAGS = [(315, 2, 0, PERSON, True), (316, 2, 0, "SCANNER-HOST", True), (271, 2, 0, "Maker of scanners", True)]
SECRETS = (PERSON, SCANNER, "MUSTERMANN", "H12-3456", "BC998877", "SCANNER-HOST", "Maker of scanners", "Scanning 9")
LABEL = (0, 255, 0)


def write_slide(path: Path, seed: int) -> None:
    """As a scanner does: tissue, a thumbnail, and a label and a macro image in a colour that no tissue has."""
    pixels = np.full((768, 1024, 3), 242, np.uint8)
    pixels[100:700, 100:900] = np.random.default_rng(seed).normal((190, 120, 170), 12, (600, 800, 3))
    with tifffile.TiffWriter(path) as file:
        file.write(
            pixels, tile=(256, 256), compression="jpeg", photometric="rgb", description=DESCRIPTION,
            software="Scanning 9", extratags=TAGS,
        )  # fmt: skip
        for name, kind, shape in (("label", 1, (200, 300, 3)), ("macro", 9, (200, 600, 3))):
            image = np.full(shape, LABEL, np.uint8)
            file.write(image, photometric="rgb", subfiletype=kind, description=f"Aperio\r\n{name}")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a person in which every command ran on relative paths, and what the commands printed."""
    home = tmp_path_factory.mktemp("home") / PERSON
    (home / "slides").mkdir(parents=True)
    rows = [f"s{k:02d},slides/s{k:02d}.svs,{k % 2},{'' if k % 2 == 0 else 'lesion.geojson'}" for k in range(10)]
    (home / "m.csv").write_text("\n".join(["slide_id,uri,label,annotation", *rows, "gone,slides/gone.svs,1,"]))
    ring = [[200, 200], [600, 200], [600, 600], [200, 600], [200, 200]]
    (home / "lesion.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    for seed in range(10):
        write_slide(home / f"slides/s{seed:02d}.svs", seed)
    log = run(home, "ingest", "m.csv", "store")
    log += run(home, "encode", "store")
    learned = ("--features", "efficientnet_lite0", "--epochs", "1")
    log += run(home, "tune", "store", "sweeps/a", "--trials", "2", "--pooling", "mean", *learned, "--json")
    log += run(home, "train", "store", "run", "--folds", "2", *learned)
    log += run(home, "evaluate", "run", "--sweep", "sweeps/a", "--no-baselines", "--json")
    log += run(home, "predict", "run", "slides/s00.svs", "slides/gone.svs", "results/out", "--json")
    log += run(home, "info", "store") + run(home, "info", "run", "--json")
    (home / "gone.csv").write_text("slide_id,uri,label\ngone,slides/gone.svs,1")
    log += run(home, "ingest", "gone.csv", "stores/b", "--json", code=3)
    log += run(home, "ingest", "none.csv", "store", code=2)
    return home, log


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """What a command of that person prints: its result, then its log."""
    program = "from milcore.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "USER": PERSON, "LOGNAME": PERSON, "HOME": str(folder)},
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    return ended.stdout + ended.stderr


def texts(file: Path) -> Iterator[str]:
    """The bytes of a file, and the values of one that is compressed."""
    yield file.read_bytes().decode("latin-1")
    if file.suffix == ".parquet":
        yield str(pq.read_table(file).to_pylist()) + str(pq.read_schema(file).metadata)


def shared_files(home: Path) -> list[Path]:
    """All of the stores, runs, sweeps and predictions."""
    folders = ("store", "stores", "run", "sweeps", "results")
    return [file for folder in folders for file in (home / folder).rglob("*") if file.is_file()]


def test_no_text_of_the_scanner_no_person_and_no_folder_of_theirs_is_written(written: tuple[Path, str]) -> None:
    home, _ = written
    files = shared_files(home)
    kinds = {file.suffix for file in files}
    assert {".parquet", ".json", ".html", ".md", ".geojson", ".tiff", ".png", ".csv", ".safetensors"} <= kinds
    leaks = [
        f"{file.relative_to(home)}: {secret}"
        for file in files
        for secret in (*SECRETS, str(home.parent))
        if any(secret in text for text in (*texts(file), str(file.relative_to(home))))
    ]
    assert leaks == []


def test_event_files_are_named_by_time_alone(written: tuple[Path, str]) -> None:
    """Other writers add the host and a process."""
    home, _ = written
    names = [file.name for file in home.rglob("*tfevents*")]
    assert len(names) >= 2
    assert all(re.fullmatch(r"events\.out\.tfevents\.\d{19}", name) for name in names)


def test_settings_and_results_name_files_by_the_way_from_their_folder(written: tuple[Path, str]) -> None:
    home, _ = written
    settings = {
        name: json.loads((home / name / "config.json").read_text()) for name in ("run", "sweeps/a", "run/folds/1")
    }
    assert {name: content["store_uri"] for name, content in settings.items()} == {
        "run": "../store", "sweeps/a": "../../store", "run/folds/1": "../../../store",
    }  # fmt: skip
    assert json.loads((home / "run/metrics.json").read_text())["report"] == "report.html"
    assert json.loads((home / "results/out/config.json").read_text())["run"] == "../../run"
    predictions = json.loads((home / "results/out/predictions.json").read_text())
    assert (predictions["run"], predictions["slides"][0]["uri"]) == ("../../run", "../../slides/s00.svs")
    gone = "cannot read ../../slides/gone.svs: there is no such file"
    assert predictions["quarantined"] == {"gone": gone}
    assert PatchStore(str(home / "stores/b")).quarantined() == {"gone": gone}


def test_results_that_are_printed_name_files_from_the_working_folder(written: tuple[Path, str]) -> None:
    _, log = written
    results = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {result["report"] for result in results if "report" in result} == {"run/report.html"}
    assert {result["page"] for result in results if "page" in result} == {"stores/b/cohort.html"}
    assert {result["store_uri"] for result in results if "store_uri" in result} == {"store"}
    (predicted,) = (result for result in results if "slides" in result and "threshold" in result and "run" in result)
    assert (predicted["run"], predicted["slides"][0]["uri"]) == ("run", "slides/s00.svs")


def test_nothing_of_the_scanner_or_the_person_is_logged(written: tuple[Path, str]) -> None:
    home, log = written
    assert "quarantined gone: cannot read slides/gone.svs: there is no such file" in log
    assert "store/cohort.html" in log
    assert [secret for secret in (*SECRETS, str(home.parent)) if secret in log] == []


def test_no_picture_shows_the_label_or_the_macro(written: tuple[Path, str]) -> None:
    home, _ = written
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in (home / "run/attention").rglob("*.png")]
    for group in (home / "store/slides").glob("s*.zarr"):
        slide = zarr.open_group(str(group), mode="r")
        pictures += [np.asarray(slide["thumbnail"]), *np.asarray(slide["patches"])]
    assert len(pictures) > 20
    for picture in pictures:
        red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
        assert not ((green > 200) & (red < 60) & (blue < 60)).any()


def test_the_files_of_a_store_are_told_from_the_store_and_found_again(written: tuple[Path, str]) -> None:
    home, _ = written
    stored = pq.read_table(home / "store/manifest.parquet")["uri"].to_pylist()
    assert stored[0] == "../slides/s00.svs"
    assert PatchStore(str(home / "store")).manifest()["s00"].uri == str(home / "slides/s00.svs")
    assert json.loads(run(home, "ingest", "m.csv", "store", "--json").splitlines()[0])["skipped"] == 10
