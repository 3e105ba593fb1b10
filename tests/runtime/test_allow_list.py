"""URIs out of data: what this process may read, by hand and in a pod."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from milcore.cluster.workers.connect import forwarded_variables
from milcore.cohort.annotations import load_annotation
from milcore.cohort.manifest import Manifest, Slide, read_manifest
from milcore.cohort.splits_file import read_splits
from milcore.config import ImportConfig, IngestConfig
from milcore.encoders.weights import weights_at
from milcore.errors import InputError, SlideError
from milcore.ingestion.cohort import ingest
from milcore.ingestion.imports.h5 import open_h5, read_h5
from milcore.ingestion.imports.pt import read_pt
from milcore.runtime.allow_list import uri_problem
from milcore.slides import open_slide
from milcore.slides.source import source_version
from milcore.store.store import PatchStore
from milcore.training.run_folder import Run
from milcore.training.sweep import Sweep

NOWHERE = (
    "http://169.254.169.254/latest", "reference://x", "ftp://host/x", "memory://x", "FILE:///etc/passwd", "gs://b/x",
    "az://b/x", "simplecache::s3://b/x", "zip://x::file:///etc/passwd", "s3://b/x::file:///etc/passwd",
    "https://host/x::file:///etc/passwd", "github://a:b@/x",
)  # fmt: skip
MARKS = ("MILCORE_REMOTE", "KUBERNETES_SERVICE_HOST")


@pytest.fixture(params=MARKS)
def _remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(request.param, "1")
    monkeypatch.delenv("MILCORE_ALLOWED_ROOTS", raising=False)


@pytest.mark.parametrize("uri", ["/data/a.svs", "a.svs", "file:///data/a.svs", "s3://b/a.svs", "https://host/a.svs"])
def test_a_process_started_by_hand_reads_files_s3_and_https(uri: str) -> None:
    assert uri_problem(uri) is None


@pytest.mark.parametrize("uri", NOWHERE)
def test_nothing_else_is_read_and_the_line_names_the_scheme(uri: str) -> None:
    problem = uri_problem(uri)
    assert problem is not None
    assert uri.partition("://")[0] in problem.partition("; allowed:")[0]
    assert "\n" not in problem


@pytest.mark.usefixtures("_remote")
@pytest.mark.parametrize("uri", [*NOWHERE, "https://host/a.svs", "/etc/passwd", "file:///etc/passwd", "a.svs", "."])
def test_a_pod_reads_s3_alone(uri: str) -> None:
    assert uri_problem("s3://b/a.svs") is None
    assert uri_problem(uri) is not None


@pytest.mark.usefixtures("_remote")
def test_a_pod_reads_below_the_administrator_s_roots_wherever_links_and_dots_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MILCORE_ALLOWED_ROOTS", f"{tmp_path}/one{os.pathsep}{tmp_path}/two")
    (tmp_path / "one" / "out").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "in").symlink_to(tmp_path / "two")
    allowed = ["one/a.svs", "two", "two/deep/a.svs", "one/../two/a.svs", "other/in/a.svs"]
    refused = ["other/a.svs", "one/out/a.svs", "one/../other/a.svs", "one/../one2/a.svs", "onemore/a.svs"]
    for prefix in (f"{tmp_path}/", f"file://{tmp_path}/"):
        assert [uri for uri in allowed if uri_problem(prefix + uri)] == []
        assert [uri for uri in refused if not uri_problem(prefix + uri)] == []


def test_a_manifest_is_refused_with_the_annotations_that_it_may_not_name(tmp_path: Path) -> None:
    uri = tmp_path / "manifest.csv"
    rows = ["a,a.svs,0,http://host/a", "b,b.svs,1,reference://x", "c,c.svs,1,c.json"]
    uri.write_text("\n".join(["slide_id,uri,label,annotation", *rows]))
    with pytest.raises(InputError) as raised:
        read_manifest(str(uri))
    lines = str(raised.value).splitlines()
    assert [line.partition("; allowed")[0].strip() for line in lines[1:]] == [
        "line 2: annotation: expected a URI that data may name, got scheme http in 'http://host/a'",
        "line 3: annotation: expected a URI that data may name, got scheme reference in 'reference://x'",
    ]


def _spec(folder: Path, kind: str) -> str:
    fields = {"store_uri": "file:///etc", "instance_digest": "", "splits_digest": ""}
    values = {"run": {"train": {}, "classes": ["0", "1"]}, "sweep": {"tune": {"train": {}}}}[kind]
    (folder / "config.json").write_text(json.dumps(fields | values | {"milcore_version": "0"}))
    return str(folder)


def _labels(uri: str) -> ImportConfig:
    return ImportConfig(format="clam", labels=uri, name="f")


NO_SLIDES = Manifest((), ("0", "1"))
READERS: dict[str, Callable[[Path], object]] = {
    "annotation": lambda _: load_annotation("/etc/passwd", "s"),
    "encoder weights": lambda _: weights_at("file:///etc").__enter__(),
    "splits": lambda _: read_splits("/etc/passwd", NO_SLIDES),
    "slide": lambda _: source_version("/etc/passwd"),
    "labels": lambda folder: open_h5(str(folder), _labels("/etc/passwd")),
    "run": lambda folder: Run(_spec(folder, "run")).spec(),
    "sweep": lambda folder: Sweep(_spec(folder, "sweep")).spec(),
}


@pytest.mark.usefixtures("_remote")
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_a_uri_asks_the_list(reader: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, SlideError), match=r"got a local path, .*/etc.*allowed: s3://"):
        READERS[reader](tmp_path)


@pytest.mark.usefixtures("_remote")
def test_a_stored_manifest_s_slide_that_a_pod_may_not_read_is_quarantined(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0")
    store = PatchStore(str(tmp_path / "store"))
    store.write_manifest(Manifest((Slide("a", str(secret), 0, "a", "", None, None, None),), ("0", "1")))
    (outcome,) = ingest(store.uri, IngestConfig(), 0)
    assert outcome.status == "quarantined"
    assert str(outcome.reason).startswith("expected a URI that data may name here, got a local path")


def test_workers_and_jobs_elsewhere_know_that_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their roots are those of their own administrator."""
    monkeypatch.setenv("MILCORE_ALLOWED_ROOTS", "/")
    assert forwarded_variables()["MILCORE_REMOTE"] == "1"
    assert "MILCORE_ALLOWED_ROOTS" not in forwarded_variables()


SECRET = b"root:x:0:0:/root:/bin/bash\nAKIAIOSFODNN7EXAMPLE wJalrXUtnFEMI/K7MDENG\n" * 20
BEGINNINGS = {
    "text": b"", "png": b"\x89PNG\r\n\x1a\n", "png chunk": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "jpeg": b"\xff\xd8\xff\xe0",
    "tiff": b"II*\0\x08\0\0\0\x08\0", "bigtiff": b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0",
    "hdf5": b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0", "zip": b"PK\x03\x04", "pickle": b"\x80\x02}q\0(X\x04\0\0\0",
}  # fmt: skip


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_no_reason_shows_bytes_of_the_file(beginning: str, tmp_path: Path) -> None:
    file = tmp_path / "a.svs"
    file.write_bytes(BEGINNINGS[beginning] + SECRET)
    reasons = []
    for read in (lambda: open_slide(file).__enter__(), lambda: read_h5(file), lambda: read_pt(file),
                 lambda: load_annotation(str(file), "s")):  # fmt: skip
        with pytest.raises((SlideError, InputError)) as raised:
            read()
        reasons.append(str(raised.value).replace(str(file), ""))
    text = SECRET.decode()
    pieces = {text[k : k + 4] for k in range(len(text) // 20)}
    assert [(piece, reason) for reason in reasons for piece in pieces if piece in reason] == []


def test_a_dictionary_of_other_things_is_refused_without_their_names(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - only here

    torch.save({"root:x:0:0": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(SlideError, match=r"^no features in it, but 1 other entries$"):
        read_pt(tmp_path / "a.pt")
