"""Records of a folder of predictions: those of other commands are read, and those that were removed are gone."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from milcore.evaluation.prediction_folder import RecordFolder
from milcore.runtime import storage


def record_of(slide_id: str, status: str = "ok") -> dict[str, Any]:
    uri = f"s3://elsewhere/{slide_id}.svs"
    reason = None if status == "ok" else "no tissue"
    return {"slide_id": slide_id, "uri": uri, "status": status, "reason": reason, "seen": [uri, slide_id, None]}


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_records_of_two_commands_are_read_by_both(uri: str) -> None:
    one, other = RecordFolder(uri), RecordFolder(uri)
    assert one.read() == {}
    one.write(record_of("a"))
    one.write(record_of("b"))
    other.write(record_of("c"))
    written = {name: record_of(name) for name in "abc"}
    assert one.read() == other.read() == written
    other.write(record_of("b", "quarantined"))
    storage.remove(storage.join(uri, "slides", "a.json"))
    assert one.read() == other.read() == {"b": record_of("b", "quarantined"), "c": record_of("c")}


def test_the_etag_of_s3_tells_that_a_record_is_known(s3: str, tmp_path: Path) -> None:
    folder = RecordFolder(f"{s3}/{tmp_path.name}")
    folder.write(record_of("a"))
    uri = storage.join(folder.uri, "slides", "a.json")
    assert storage.stat(uri).version == hashlib.md5(storage.read_bytes(uri), usedforsecurity=False).hexdigest()
