"""What a scanner or a user writes beside the pixels stays out of all that is written and logged."""

import json
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
from tests.cohorts import write_features

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
    """The folder of a person in which every command ran on relative paths, and what the commands logged."""
    home = tmp_path_factory.mktemp("home") / PERSON
    (home / "slides").mkdir(parents=True)
    rows = [f"s{k:02d},slides/s{k:02d}.svs,{k % 2},{'' if k % 2 == 0 else 'lesion.geojson'}" for k in range(10)]
    (home / "m.csv").write_text("\n".join(["slide_id,uri,label,annotation", *rows, "gone,slides/gone.svs,1,"]))
    ring = [[200, 200], [600, 200], [600, 600], [200, 600], [200, 200]]
    (home / "lesion.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    for seed in range(10):
        write_slide(home / f"slides/s{seed:02d}.svs", seed)
    log = run(home, "ingest", "m.csv", "store")
    write_features(PatchStore(str(home / "store")))
    log += run(home, "train", "store", "run", "--features", "mean_rgb", "--epochs", "1")
    log += run(home, "evaluate", "run", "--no-baselines")
    log += run(home, "info", "store") + run(home, "info", "run") + run(home, "ingest", "none.csv", "store", code=2)
    return home, log


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """What a command prints: its result, then its log."""
    program = "from milcore.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == code, ended.stderr
    return ended.stdout + ended.stderr


def texts(file: Path) -> Iterator[str]:
    """The bytes of a file, and the values of one that is compressed."""
    yield file.read_bytes().decode("latin-1")
    if file.suffix == ".parquet":
        yield str(pq.read_table(file).to_pylist()) + str(pq.read_schema(file).metadata)


def shared_files(home: Path) -> list[Path]:
    """All of the store, and what an evaluation leaves for others to read."""
    run_files = [home / "run/report.html", home / "run/MODEL_CARD.md", *(home / "run/attention").rglob("*")]
    return [file for file in [*(home / "store").rglob("*"), *run_files] if file.is_file()]


def test_no_text_of_the_scanner_no_person_and_no_folder_of_theirs_is_written(written: tuple[Path, str]) -> None:
    home, _ = written
    files = shared_files(home)
    kinds = {file.suffix for file in files}
    assert {".parquet", ".json", ".html", ".md", ".geojson", ".tiff", ".png"} <= kinds
    leaks = [
        f"{file.relative_to(home)}: {secret}"
        for file in files
        for secret in (*SECRETS, str(home.parent))
        if any(secret in text for text in texts(file))
    ]
    assert leaks == []


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
