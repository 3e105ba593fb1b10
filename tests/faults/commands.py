"""The commands of a small cohort: what each reads, writes and is compared by."""

import json
import posixpath
import re
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import onnx
from onnx import TensorProto, helper

from milcore.runtime import storage
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.slide_row import read_rows
from milcore.store.store import PatchStore
from milcore.training.run_files import damage_of
from tests.faults.processes import succeed

PATCH_PX, COLUMNS, ROWS = 32, 5, 4
TIMES = ("bags_per_sec", "waiting")
SPLITS = ("train", "train", "val", "val", "test", "test")
STORE = "{cohort}/encoded/store"
MODEL = (
    "--features",
    "colour",
    "--hidden",
    "8",
    "--attention-hidden",
    "4",
    "--batch-size",
    "1",
    "--epochs",
    "3",
    "--checkpoint-every",
    "1",
)


class Command(NamedTuple):
    """A command line, and its folder.

    Args:
        line: arguments of ``milcore``; ``{files}`` is a local folder with slides, features and an encoder, ``{cohort}``
            a folder with a store and runs, ``{out}`` the folder to write into.
        begun: parts of the cohort that the command changes itself: they are copied into ``{out}`` first.
    """

    line: tuple[str, ...]
    begun: tuple[str, ...] = ()


COMMANDS = {
    "ingest": Command(
        ("ingest", "{files}/manifest.csv", "{out}/store", "--patch-size", str(PATCH_PX), "--workers", "0"),
    ),
    "import": Command(
        ("import", "{files}/h5", "{out}/store", "--format", "clam", "--labels", "{files}/manifest.csv"),
    ),
    "encode": Command(
        ("encode", "{out}/store", "--encoder", "onnx:{files}/encoder.onnx", "--name", "colour", "--workers", "0"),
        begun=("store",),
    ),
    "train": Command(
        ("train", STORE, "{out}/run", *MODEL, "--workers", "0")
    ),
    "train in folds": Command(
        ("train", STORE, "{out}/run", *MODEL, "--workers", "0", "--folds", "2"),
    ),
    # one epoch, so that no trial is stopped early, which depends on how fast they run beside each other
    "tune": Command(
        ("tune", STORE, "{out}/sweep", *MODEL, "--epochs", "1", "--trials", "3",
         "--workers", "2"),
    ),
    "evaluate": Command(("evaluate", "{out}/run"), begun=("trained/run",)),
    "predict": Command(
        ("predict", "{cohort}/trained/run", "{files}/s4.tiff", "{files}/s5.tiff", "{out}/predictions"),
    ),
    "predict a store": Command(
        ("predict", "{cohort}/trained/run", "{out}/predictions", "--store", STORE, "--attention", "parquet,zarr"),
    ),
}  # fmt: skip


class Cohort(NamedTuple):
    """Slides on the local disk, and a store and a run made of them on some storage."""

    files: Path
    uri: str

    def arguments(self, command: Command, out: str) -> list[str]:
        """Command line for a folder to write into."""
        return [word.format(files=self.files, cohort=self.uri, out=out) for word in command.line]

    def begin(self, command: Command, out: str) -> None:
        """Copy what the command changes into its folder."""
        for name in command.begun:
            source = storage.join(self.uri, name)
            for uri, data in storage.read_all(sorted(storage.files(source))).items():
                storage.write_bytes(storage.join(out, posixpath.basename(name)) + uri.removeprefix(source), data)


def make_cohort(files: Path, uri: str) -> Cohort:
    """Slides of 20 patches, a store of them, one with features too, and a run trained on that.

    The run lies as deep as a folder that a command writes into: it holds the path from itself to the store.
    """
    files.mkdir(parents=True)
    _write_files(files)
    cohort = Cohort(files, uri)
    places = {"ingest": uri, "encode": storage.join(uri, "encoded"), "train": storage.join(uri, "trained")}
    for name, out in places.items():
        cohort.begin(COMMANDS[name], out)
        succeed(cohort.arguments(COMMANDS[name], out))
    return cohort


def _write_files(files: Path) -> None:
    rows = ["slide_id,uri,label,split"]
    (files / "h5").mkdir()
    generator = np.random.default_rng(5)
    for k, split in enumerate(SPLITS):
        y, x = np.mgrid[: ROWS * PATCH_PX, : COLUMNS * PATCH_PX]
        pixels = np.stack([200 - x % 60, 120 + (y + 9 * k) % 40, np.full_like(x, 150 + 20 * (k % 2))], -1)
        write_pyramid(files / f"s{k}.tiff", pixels.astype(np.uint8), 0.5, 1)
        rows.append(f"s{k},s{k}.tiff,{k % 2},{split}")
        with h5py.File(files / "h5" / f"s{k}.h5", "w") as file:
            file["features"] = generator.standard_normal((ROWS * COLUMNS, 8)).astype(np.float32)
            file["coords"] = np.stack([x, y], -1)[::PATCH_PX, ::PATCH_PX].reshape(-1, 2)
    (files / "manifest.csv").write_text("\n".join(rows) + "\n")
    write_encoder(files / "encoder.onnx")


def write_encoder(path: Path) -> None:
    """An encoder whose features are the mean colour."""
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, PATCH_PX, PATCH_PX])
    mean = helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n", 3, 1, 1])
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["pixels"], ["mean"])], "colour", [pixels], [mean])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def contents(folder: str) -> dict[str, bytes | str]:
    """Every object below a folder by its path, as it is compared with that of another run.

    Left out: event files of TensorBoard, and bags per second and the share of waiting in a history, which hold times;
    the hidden files that a killed process left half written, which nothing reads; and the catalogue, which knows how
    often it was written: it is compared with the slides.
    """
    check_catalogue(folder)
    uris = sorted(uri for uri in storage.files(folder) if not re.search(r"/tensorboard/|/catalogue/|\.partial$", uri))
    found = {uri.removeprefix(f"{folder}/"): data for uri, data in storage.read_all(uris).items()}
    recorded = [uri.rpartition("/")[0] for uri in uris if uri.endswith("/files.json")]
    assert [line for uri in recorded for line in damage_of(uri)] == []
    return {path: _comparable(path, data.replace(folder.encode(), b"FOLDER")) for path, data in found.items()}


def check_catalogue(folder: str) -> None:
    """Records and rows of the catalogue of a folder's store, where it has one, say what its slides say."""
    store = PatchStore(storage.join(folder, "store"))
    if store.has_manifest():
        catalogue = store.catalogue()
        known = [slide_id for slide_id in catalogue.all_ids if catalogue.has_row(slide_id)]
        assert {slide_id: catalogue.row(slide_id) for slide_id in known} == read_rows(store.uri, known)
        assert dict(catalogue.records) == {slide_id: store.record(slide_id) for slide_id in catalogue.all_ids}


def unknown_slides(folder: str) -> list[str]:
    """Slides of a folder's store that the catalogue has no row of that can be relied on."""
    store = PatchStore(storage.join(folder, "store"))
    return store.catalogue().unknown_ids if store.has_manifest() else []


def _comparable(path: str, data: bytes) -> bytes | str:
    """The bytes without what holds times, and without digests over these."""
    if path.endswith("/history.parquet"):
        rows = storage.parse_table(data).to_pylist()
        return repr([row for row in rows if row["metric"] not in TIMES])
    if re.search(r"/checkpoints/\d+/state.json$", path):
        state = json.loads(data)
        del state["sha256"]
        return repr({**state, "history": [row for row in state["history"] if row[2] not in TIMES]})
    if path.endswith("/files.json"):  # digests of histories, and of pages that name their folder
        return repr(sorted(json.loads(data)["files"]))
    return data
