"""Sizes and versions of a cohort's slides: what is asked of S3, and that it is what each slide alone would give."""

import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
import s3fs

from milcore.runtime import storage
from milcore.slides.source import SourceVersion, source_version, source_versions
from tests.proxy import CountingProxy, counted_storage


@pytest.fixture
def proxy(s3: str) -> Iterator[CountingProxy]:
    """In front of the tests' server, and taken for it."""
    with counted_storage() as proxy:
        yield proxy


def folder_with(s3: str, names: list[str]) -> str:
    folder = f"{s3}/{uuid.uuid4().hex}"
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    fs.pipe({storage.join(folder, name).removeprefix("s3://"): b"x" * (k % 7 + 1) for k, name in enumerate(names)})
    return folder


def kinds(proxy: CountingProxy) -> Counter[str]:
    return Counter(request.kind for request in proxy.take().requests)


def asked_alone(uris: list[str]) -> dict[str, SourceVersion]:
    return {uri: source_version(uri) for uri in uris}


def test_slides_of_a_folder_are_listed_a_thousand_a_request(s3: str, proxy: CountingProxy) -> None:
    names = [f"s{k:04d}.svs" for k in range(1_100)]
    folder = folder_with(s3, names)
    uris = [f"{folder}/{name}" for name in names]
    proxy.take()
    versions = source_versions(uris)
    assert kinds(proxy) == {"LIST": 2}
    assert {uri: versions[uri] for uri in uris[::100]} == asked_alone(uris[::100])
    assert versions.keys() == set(uris)


def test_slides_in_folders_of_their_own_are_listed_from_above(s3: str, proxy: CountingProxy) -> None:
    names = [f"{k:02d}/{name}" for k in range(40) for name in ("slide.svs", "log.txt")]
    folder = folder_with(s3, names)
    uris = [f"{folder}/{k:02d}/slide.svs" for k in range(40)]
    proxy.take()
    versions = source_versions(uris)
    assert kinds(proxy) == {"LIST": 1}
    assert versions == asked_alone(uris)


def test_among_many_foreign_objects_slides_are_asked_for_each(s3: str, proxy: CountingProxy) -> None:
    """Three slides are worth one page of a listing; the thousand before them fill it."""
    names = [*(f"a{k:04d}.txt" for k in range(1_000)), "s1.svs", "s2.svs", "s3.svs"]
    folder = folder_with(s3, names)
    uris = [f"{folder}/s{k}.svs" for k in (1, 2, 3)]
    proxy.take()
    versions = source_versions(uris)
    assert kinds(proxy) == {"LIST": 1, "HEAD": 3}
    assert versions == asked_alone(uris)


def test_a_slide_alone_is_asked_for_and_one_that_is_absent_left_out(s3: str, proxy: CountingProxy) -> None:
    folder = folder_with(s3, ["a.svs"])
    proxy.take()
    assert source_versions([f"{folder}/a.svs"]) == asked_alone([f"{folder}/a.svs"])
    assert source_versions([f"{folder}/a.svs", f"{folder}/b.svs"]).keys() == {f"{folder}/a.svs"}
    assert source_versions([f"{folder}/b.svs", "ftp://host/c.svs", f"{folder}/d.vsi"]) == {}


def test_a_folder_of_dicom_is_one_slide(s3: str) -> None:
    """Whatever its files are named; its version is of all of them."""
    folder = folder_with(s3, ["one/1.dcm", "one/2.dcm", "two.v2/1", "three.svs"])
    uris = [f"{folder}/one", f"{folder}/two.v2", f"{folder}/three.svs"]
    assert source_versions(uris) == asked_alone(uris)
