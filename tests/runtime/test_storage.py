"""The contract of storage, over the local disk and over S3."""

import contextlib
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import s3fs

from milcore.errors import InputError, MILError, StorageError, StoreError
from milcore.runtime import storage
from tests.conftest import free_ports
from tests.faults.proxy import FaultyProxy


def test_bytes_come_back_and_are_replaced_whole(folder_uri):
    uri = storage.join(folder_uri, "deep", "object.bin")
    storage.write_bytes(uri, b"first, longer")
    storage.write_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"second"


def test_an_empty_object_exists(folder_uri):
    uri = storage.join(folder_uri, "empty")
    storage.write_bytes(uri, b"")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b""


def test_a_range_beyond_the_end_is_cut_there(folder_uri):
    uri = storage.join(folder_uri, "object.bin")
    storage.write_bytes(uri, b"0123")
    assert [storage.read_range(uri, *limits) for limits in ((2, 9), (4, 9), (9, 12), (-9, None))] == [
        b"23", b"", b"", b"0123"
    ]  # fmt: skip
    storage.write_bytes(uri, b"")
    assert storage.read_range(uri, -4, None) == b""


def test_reading_nothing_is_file_not_found(folder_uri):
    missing = storage.join(folder_uri, "missing")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(missing)
    with pytest.raises(FileNotFoundError):
        storage.stat(missing)
    with pytest.raises(FileNotFoundError), storage.local_file(missing) as copy:
        copy.read_bytes()
    assert not storage.exists(missing)


def test_files_are_all_objects_below_a_folder(folder_uri):
    names = {"a/b/c", "a/d", "e"}
    for name in names:
        storage.write_bytes(storage.join(folder_uri, name), b"x")
    assert storage.files(folder_uri) == {storage.join(folder_uri, name) for name in names}
    assert storage.files(storage.join(folder_uri, "nothing")) == set()


def test_a_folder_that_appears_while_it_is_listed_is_none_of_its_files(s3, monkeypatch):
    """Listed as a file, it would be removed whole as a leftover."""
    uri = storage.join(s3, uuid.uuid4().hex)
    listed = s3fs.S3FileSystem._lsdir

    async def written_meanwhile(self, path, *rest, **more):
        listing = [] if more.get("delimiter") == "" else await listed(self, path, *rest, **more)
        await self._pipe_file(f"{path}/object", b"x")
        return listing

    monkeypatch.setattr(s3fs.S3FileSystem, "_lsdir", written_meanwhile)
    assert storage.files(uri) == set()


def test_a_folder_is_not_an_object(folder_uri):
    storage.write_bytes(storage.join(folder_uri, "a", "object"), b"x")
    assert not storage.exists(storage.join(folder_uri, "a"))


def test_objects_of_another_writer_are_listed_at_once(folder_uri):
    uri = storage.join(folder_uri, "late")
    assert storage.names(folder_uri) == []
    assert not storage.exists(uri)
    storage.filesystem(uri)[0].invalidate_cache()
    writer = threading.Thread(target=storage.write_bytes, args=(uri, b"x"))
    writer.start()
    writer.join()
    assert storage.names(folder_uri) == ["late"]
    assert storage.exists(uri)


def test_stat_has_the_size_and_changes_with_the_content(folder_uri):
    uri = storage.join(folder_uri, "object")
    storage.write_bytes(uri, b"12345")
    first = storage.stat(uri)
    assert first.size == 5
    assert storage.stat(uri) == first
    storage.write_bytes(uri, b"54321")
    assert storage.stat(uri).version != first.version


def test_equal_json_values_give_equal_bytes(folder_uri):
    uri = storage.join(folder_uri, "value.json")
    storage.write_json(uri, {"b": 1, "a": [None, 0.5, "µ"]})
    first = storage.read_bytes(uri)
    storage.write_json(uri, {"a": [None, 0.5, "µ"], "b": 1})
    assert storage.read_bytes(uri) == first
    assert storage.read_json(uri) == {"a": [None, 0.5, "µ"], "b": 1}


def test_a_table_keeps_values_types_and_metadata(folder_uri):
    uri = storage.join(folder_uri, "table.parquet")
    table = pa.table({"slide_id": ["a", "b"], "label": pa.array([0, 1], pa.int8())}).replace_schema_metadata({"k": "v"})
    storage.write_table(uri, table)
    assert storage.read_table(uri).equals(table, check_metadata=True)


def test_names_are_the_direct_children_in_order(folder_uri):
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        storage.write_bytes(storage.join(folder_uri, name), b"x")
    assert storage.names(folder_uri) == ["a.txt", "b.txt", "sub"]
    assert storage.names(folder_uri + "/") == ["a.txt", "b.txt", "sub"]


def test_a_child_named_as_its_folder_is_listed(folder_uri):
    name = folder_uri.rsplit("/", 1)[1]
    storage.write_bytes(storage.join(folder_uri, name), b"x")
    assert storage.names(folder_uri) == [name]


def test_remove_takes_an_object_remove_folder_a_folder_and_neither_minds_nothing(folder_uri):
    for name in ("one", "sub/two", "sub/three"):
        storage.write_bytes(storage.join(folder_uri, name), b"x")
    storage.remove(storage.join(folder_uri, "one"))
    storage.remove(storage.join(folder_uri, "one"))
    storage.remove_folder(storage.join(folder_uri, "sub"))
    storage.remove_folder(storage.join(folder_uri, "sub"))
    assert not storage.exists(storage.join(folder_uri, "one"))
    assert not storage.exists(storage.join(folder_uri, "sub", "two"))
    storage.write_bytes(storage.join(folder_uri, "sub", "two"), b"again")
    assert storage.read_bytes(storage.join(folder_uri, "sub", "two")) == b"again"


def test_a_folder_that_another_process_writes_into_is_removed_again(tmp_path, monkeypatch):
    """The file is written when the folder has been emptied and is about to be removed."""
    folder, rmdir, times = tmp_path / "folder", os.rmdir, []

    def written_meanwhile(path, *, dir_fd=None):
        if len(times) < 3:
            (folder / "late").write_bytes(b"x")
        times.append(path)
        rmdir(path, dir_fd=dir_fd)

    storage.write_bytes(str(folder / "file"), b"x")
    monkeypatch.setattr(os, "rmdir", written_meanwhile)
    storage.remove_folder(str(folder))
    assert not folder.exists()


def test_a_folder_that_is_written_into_without_end_is_an_error(tmp_path, monkeypatch):
    folder, rmdir = tmp_path / "folder", os.rmdir

    def written_meanwhile(path, *, dir_fd=None):
        (folder / "late").write_bytes(b"x")
        rmdir(path, dir_fd=dir_fd)

    storage.write_bytes(str(folder / "file"), b"x")
    monkeypatch.setattr(os, "rmdir", written_meanwhile)
    with pytest.raises(StorageError, match="Directory not empty"):
        storage.remove_folder(str(folder))


def test_a_folder_that_two_remove_at_once_is_gone_when_either_ends(tmp_path, monkeypatch):
    """The other has removed a file between its listing and its removal here."""
    folder, unlink = tmp_path / "folder", os.unlink

    def removed_meanwhile(path, *, dir_fd=None):
        if path == "a":
            (folder / "a").unlink()
        unlink(path, dir_fd=dir_fd)

    for name in ("a", "b"):
        storage.write_bytes(str(folder / name), b"x")
    monkeypatch.setattr(os, "unlink", removed_meanwhile)
    storage.remove_folder(str(folder))
    assert not folder.exists()


def test_a_flat_folder_goes_up_and_comes_back(folder_uri, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.bin").write_bytes(b"\x00\x01")
    (source / "b.json").write_bytes(b"{}")
    storage.upload_folder(source, folder_uri)
    with storage.local_folder(folder_uri) as copy:
        assert {file.name: file.read_bytes() for file in copy.iterdir()} == {"a.bin": b"\x00\x01", "b.json": b"{}"}


def test_a_local_file_has_the_objects_bytes_and_name(folder_uri):
    uri = storage.join(folder_uri, "slide one.tiff")
    storage.write_bytes(uri, bytes(range(256)) * 1000)
    with storage.local_file(uri) as copy:
        assert copy.name == "slide one.tiff"
        assert copy.read_bytes() == bytes(range(256)) * 1000


def test_a_local_write_leaves_no_partial_file(tmp_path):
    storage.write_bytes(str(tmp_path / "object"), b"x")
    assert [file.name for file in tmp_path.iterdir()] == ["object"]


def test_file_uris_and_plain_paths_name_the_same_place(tmp_path):
    storage.write_bytes(f"file://{tmp_path}/object", b"x")
    assert storage.read_bytes(str(tmp_path / "object")) == b"x"
    with storage.local_file(f"file://{tmp_path}/object") as file:
        assert file == tmp_path / "object"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/", "s3://bucket/a"),
        ("file:///data/a/", "/data/a"),
        ("/data/./a/../b", "/data/b"),
        ("a", str(Path.cwd() / "a")),
    ],
)
def test_absolute(uri, expected):
    assert storage.absolute(uri) == expected


@pytest.mark.parametrize(
    ("uri", "expected"), [("/a", True), ("a", True), ("file:///a", True), ("s3://b/a", False), ("gs://b", False)]
)
def test_is_local(uri, expected):
    assert storage.is_local(uri) is expected


def test_a_wrong_key_is_refused(s3, monkeypatch):
    """The S3 tests mean something: the server checks credentials."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{s3}/object", b"x")


def test_remove_leaves_a_folder_where_an_object_was_meant(folder_uri):
    storage.write_bytes(storage.join(folder_uri, "sub", "mine"), b"x")
    with contextlib.suppress(*storage.IO_ERRORS):
        storage.remove(storage.join(folder_uri, "sub"))
    assert storage.names(storage.join(folder_uri, "sub")) == ["mine"]


@pytest.mark.parametrize("part", ["../x", "a/../../x", "/etc/x", ".."])
def test_no_path_leads_out_of_its_folder(folder_uri, part):
    with pytest.raises(StoreError, match=r"expected a path below .*, got .*; allowed: names without"):
        storage.join(folder_uri, "a", part)


def test_files_behind_a_link_are_not_those_of_a_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/keep").write_text("x")
    (tmp_path / "group").symlink_to(tmp_path / "mine")
    assert storage.files(str(tmp_path / "group")) == set()
    assert storage.files(str(tmp_path / "mine")) == {str(tmp_path / "mine/keep")}


QUESTIONS: dict[str, Callable[[str], object]] = {
    "exists": storage.exists, "stat": storage.stat, "etag": storage.etag, "names": storage.names,
    "files": storage.files, "read_bytes": storage.read_bytes, "read_all": lambda uri: storage.read_all([uri]),
    "remove": storage.remove, "create": lambda uri: storage.create(uri, b"other"),
}  # fmt: skip


@pytest.fixture
def other_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets variables of the environment for S3, read anew; the earlier ones come back."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)

    def change(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    yield change
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("trouble", ["403", "500", "cut", "down", "wrong key"])
def test_only_not_found_is_absence(s3, other_s3, trouble):
    """An object that storage does not answer for is neither there nor absent."""
    uri = storage.join(s3, uuid.uuid4().hex)
    storage.write_bytes(uri, b"first")
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    proxy.status, proxy.every = {"403": 403, "500": 500}.get(trouble, 0), 1
    down = f"http://127.0.0.1:{free_ports(1)[0]}"
    changes = {"down": {"AWS_ENDPOINT_URL": down}, "wrong key": {"AWS_SECRET_ACCESS_KEY": "wrong"}}
    server, key = os.environ["AWS_ENDPOINT_URL"], os.environ["AWS_SECRET_ACCESS_KEY"]
    other_s3(**changes.get(trouble, {"AWS_ENDPOINT_URL": proxy.url}))
    for name, question in QUESTIONS.items():
        with pytest.raises(StorageError) as raised:
            question(uri)
        assert isinstance(raised.value, MILError)
        assert raised.value.line.startswith(f"{uri}: "), name
    proxy.close()
    other_s3(AWS_ENDPOINT_URL=server, AWS_SECRET_ACCESS_KEY=key)
    assert storage.read_bytes(uri) == b"first"


def test_a_failed_head_is_not_absence(s3, other_s3):
    uri = storage.join(s3, uuid.uuid4().hex)
    storage.write_bytes(uri, b"x")
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    proxy.status, proxy.every, proxy.methods = 403, 1, ("HEAD",)
    other_s3(AWS_ENDPOINT_URL=proxy.url)
    with pytest.raises(StorageError, match="PermissionError"):
        storage.exists(uri)
    proxy.close()


def test_of_writers_that_create_one_object_one_succeeds(folder_uri):
    """Four times four writers at once; the object is the one of the writer that was told so."""
    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            uri = storage.join(folder_uri, f"{number}")
            contents = [f"writer {k}".encode() * 1000 for k in range(4)]
            told = list(pool.map(lambda content, uri=uri: storage.create(uri, content), contents))
            assert told.count(True) == 1
            assert storage.read_bytes(uri) == contents[told.index(True)]
    assert len(storage.names(folder_uri)) == 4


def test_what_cannot_be_written_is_an_error_of_storage_and_no_absence(tmp_path):
    (tmp_path / "file").write_text("x")
    for uri in (f"{tmp_path}/file/object", f"{tmp_path}/file/deep/object"):
        assert not storage.exists(uri)
        for write in (storage.write_bytes, storage.create):
            with pytest.raises(StorageError, match=f"{uri}: "):
                write(uri, b"x")


def test_an_unknown_scheme_is_one_line_that_names_it():
    with pytest.raises(InputError, match="got nosuch://; allowed: a local path"):
        storage.exists("nosuch://bucket/object")


def test_a_name_with_wildcards_is_that_name(folder_uri):
    storage.write_bytes(storage.join(folder_uri, "run1"), b"another")
    assert storage.read_all([storage.join(folder_uri, "run*"), storage.join(folder_uri, "run[1]")]) == {}


@pytest.mark.parametrize("name", ["a*", "a[bc]", "a?"])
def test_the_name_of_a_folder_that_is_removed_is_no_pattern(folder_uri: str, name: str) -> None:
    others = [storage.join(folder_uri, other, "kept.txt") for other in ("ab", "abc")]
    for uri in (*others, storage.join(folder_uri, name, "sub", "object.txt")):
        storage.write_bytes(uri, b"x")
    storage.remove_folder(storage.join(folder_uri, name))
    assert storage.files(folder_uri) == set(others)


THREADS = """
import os, sys
from milcore.runtime import storage
before = len(os.listdir("/proc/self/task"))
storage.read_table(sys.argv[1])
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_reading_a_table_leaves_no_threads(tmp_path: Path) -> None:
    """Arrow's own end some processes with SIGABRT as the interpreter shuts down."""
    uri = str(tmp_path / "table.parquet")
    storage.write_table(uri, pa.table({"a": list(range(1000)), "b": list(range(1000))}))
    command = [sys.executable, "-c", THREADS, uri]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b"0\n"
