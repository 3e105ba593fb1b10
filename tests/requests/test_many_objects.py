"""Requests of slides whose arrays are several objects: one more for each of them, and none beside.

Features are an object for each 32 MB, patches one for each 64 MB. Tests write such features once, and elsewhere take
smaller objects for them.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import milcore as mc
from milcore.store import features, shards
from milcore.store.store import PatchStore
from tests.faults.commands import PATCH_PX
from tests.proxy import CountingProxy, Request
from tests.requests.commands import INGEST, INSTANCES, MODEL, WIDTH, upload, write_files

SLIDES = 8
FEATURE_OBJECTS, SHARDS = 4, 3
VALUE_BYTES = 2

pytestmark = pytest.mark.slow


@pytest.fixture
def files(s3: str, proxy: CountingProxy, tmp_path: Path) -> str:
    """URI of a folder with the files of 8 slides, in a folder of the test's own."""
    uri = f"{s3}/requests/{tmp_path.name}"
    write_files(tmp_path, SLIDES)
    upload(tmp_path, f"{uri}/files")
    return uri


@pytest.fixture
def requests(proxy: CountingProxy) -> Callable[[Callable[[], object]], list[Request]]:
    """Requests that a function makes."""

    def of(function: Callable[[], object]) -> list[Request]:
        proxy.latency_s = 0.0
        proxy.take()
        function()
        return proxy.take().requests

    return of


def of_slides(requests: list[Request], kind: str) -> Counter[str]:
    """Requests of a kind to the slides of a store, by key."""
    return Counter(request.key for request in requests if request.kind == kind and "/slides/s" in request.key)


def import_features(uri: str) -> object:
    return mc.import_cohort(f"{uri}/files/h5", f"{uri}/store", format="clam", labels=f"{uri}/files/labels.csv")


def with_small_feature_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FEATURE_CHUNK_MB", INSTANCES / FEATURE_OBJECTS * WIDTH * VALUE_BYTES / 1e6)


def test_features_of_more_than_32_mb_take_a_request_for_each(
    s3: str, proxy: CountingProxy, requests: Callable[..., list[Request]], tmp_path: Path
) -> None:
    """No upload in parts, nothing listed, and read back by as many requests."""
    uri, rows, width = f"{s3}/requests/{tmp_path.name}", 2 * 15_625 + 1, 1024
    (tmp_path / "h5").mkdir()
    values = np.random.default_rng(1).standard_normal((1, width)).astype(np.float16)
    for name in ("s0", "s1"):
        with h5py.File(tmp_path / "h5" / f"{name}.h5", "w") as file:
            file["features"] = np.broadcast_to(values, (rows, width))
            file["coords"] = 256 * np.stack(np.divmod(np.arange(rows), 200), -1)
    (tmp_path / "labels.csv").write_text("slide_id,label\ns0,0\ns1,1\n")
    upload(tmp_path, f"{uri}/files")
    made = requests(lambda: import_features(uri))
    assert {request.kind for request in made if "/store/slides/s" in request.key} == {"PUT"}
    chunks = [key for key in of_slides(made, "PUT") if "/features/imported/c/" in key]
    assert len(chunks) == 2 * 3
    assert of_slides(made, "PUT").total() == 2 * (8 - 1 - 1 + 3)
    slide = PatchStore(f"{uri}/store").catalogue().slide("s0")
    read = requests(lambda: slide.features("imported").read(0, rows))
    assert Counter(request.kind for request in read) == {"GET": 3}


def test_training_reads_each_object_of_features_once(
    files: str, requests: Callable[..., list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_small_feature_objects(monkeypatch)
    import_features(files)
    run = mc.Run(f"{files}/run")
    made = requests(lambda: mc.train(f"{files}/store", run.uri, features="imported", epochs=2, **MODEL))
    read = of_slides(made, "GET")
    split = run.splits().column("split").to_pylist()
    assert len(read) == FEATURE_OBJECTS * (len(split) - split.count("test"))
    assert all("/features/imported/c/" in key for key in read)
    # before the first epoch some rows of one slide are read
    assert len({key.split("/features/")[0] for key, count in read.items() if count > 1}) <= 1
    assert read.total() <= len(read) + FEATURE_OBJECTS


def test_ingesting_and_encoding_patches_of_several_shards(
    files: str, requests: Callable[..., list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object more for each further shard to write; its index and what a run of patches crosses to read."""
    with_small_feature_objects(monkeypatch)
    per_shard = -(-INSTANCES // SHARDS)
    shard_mb = (per_shard + 0.5) * PATCH_PX**2 * 3 / shards.COMPRESSION["jpeg"] / 1e6
    monkeypatch.setattr(shards, "SHARD_MB", shard_mb)
    manifest, store = f"{files}/files/manifest.csv", f"{files}/store"
    written = requests(lambda: mc.ingest(manifest, store, workers=0, config=INGEST))
    assert len([key for key in of_slides(written, "PUT") if "/patches/c/" in key]) == SLIDES * SHARDS
    assert of_slides(written, "PUT").total() == SLIDES * (12 + SHARDS - 1)
    encoded = requests(lambda: mc.encode(store, f"onnx:{files}/files/encoder.onnx", name="colour", workers=0))
    slides = PatchStore(store).catalogue().slides([f"s{k:03d}" for k in range(SLIDES)]).values()
    objects = sum(-(-len(slide) // slide.features("colour").rows_per_chunk) for slide in slides)
    assert objects > 2 * SLIDES
    assert of_slides(encoded, "PUT").total() == SLIDES * 2 + objects
    assert of_slides(encoded, "GET").total() <= SLIDES * (10 + 2 * (SHARDS - 1))
    assert not of_slides(encoded, "LIST")
