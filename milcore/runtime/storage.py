"""Reading and writing whole objects at URIs, local or remote, through fsspec.

Everything milcore publishes outside a Zarr group passes here. Writes are atomic: a reader sees the old object, the new
one, or none. Credentials and endpoints come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` …).
"""

import contextlib
import json
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError
from fsspec.core import url_to_fs

# what a filesystem may raise: s3fs lets botocore's own errors (no credentials, no connection) pass as they are
IO_ERRORS = (OSError, BotoCoreError)


class SourceStat(NamedTuple):
    """What identifies a version of an object without reading it."""

    size: int
    version: str


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URI and the path inside it; listings are never cached, since others write too."""
    remote = "://" in uri and not uri.startswith("file://")
    fs, path = url_to_fs(uri, **({"use_listings_cache": False} if remote else {}))
    return fs, path


def is_local(uri: str) -> bool:
    """Whether the URI names a path of this machine."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """The URI without a trailing slash; a local path made absolute and without ``file://``."""
    if is_local(uri):
        return str(Path(uri.removeprefix("file://")).resolve())
    return uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """The URI of something below another."""
    return posixpath.join(uri.rstrip("/"), *parts)


def exists(uri: str) -> bool:
    """Whether an object (not a folder) stands at the URI."""
    fs, path = filesystem(uri)
    return bool(fs.isfile(path))


def stat(uri: str) -> SourceStat:
    """Size in bytes and version (ETag where the store has one, else modification time) of an object.

    Raises:
        FileNotFoundError: nothing stands there.
    """
    fs, path = filesystem(uri)
    info = fs.info(path)
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    return SourceStat(int(info["size"]), str(version).strip('"'))


def etag(uri: str) -> str | None:
    """What the storage itself calls the content of an object; None where it has no name for it, as on a disk.

    Raises:
        FileNotFoundError: nothing stands there.
    """
    fs, path = filesystem(uri)
    return str(stat(uri).version) if {"ETag", "etag"} & fs.info(path).keys() else None


def read_bytes(uri: str) -> bytes:
    """The whole object."""
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole object atomically, making local folders as needed."""
    write_parts(uri, [data])


def write_parts(uri: str, parts: Sequence[bytes]) -> None:
    """As ``write_bytes``, of an object given in parts; a local one is never put together in memory."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, parts[0] if len(parts) == 1 else b"".join(parts))
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)  # what a full disk left of it would keep it full


def read_range(uri: str, start: int, end: int | None) -> bytes:
    """Bytes ``start`` to ``end`` (exclusive; None is the object's end, from which a negative start counts)."""
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path, start=start, end=end))


def read_all(uris: Sequence[str]) -> dict[str, bytes]:
    """Those of the objects that exist, read concurrently where the filesystem can."""
    if not uris:
        return {}
    fs, _ = filesystem(uris[0])
    paths = {filesystem(uri)[1]: uri for uri in uris}
    found = fs.cat(list(paths), on_error="omit")
    return {paths[path]: bytes(data) for path, data in found.items()}


def read_json(uri: str) -> Any:
    """The parsed JSON object."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: object) -> None:
    """Write JSON with sorted keys and a final newline: equal values give equal bytes."""
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_table(uri: str) -> pa.Table:
    """A Parquet object as a table."""
    return parse_table(read_bytes(uri))


def parse_table(data: bytes) -> pa.Table:
    """The bytes of a Parquet object as a table."""
    return pq.read_table(pa.BufferReader(data))


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one Parquet object."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(uri, sink.getvalue().to_pybytes())


def names(uri: str) -> list[str]:
    """Sorted names directly below a folder; empty where there is none."""
    fs, path = filesystem(uri)
    try:
        found = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    children = {str(name).rstrip("/") for name in found} - {path.rstrip("/")}
    return sorted(posixpath.basename(child) for child in children)


def files(uri: str) -> set[str]:
    """URIs of all objects below a folder, at any depth, written as ``join`` would; never the folder itself.

    s3fs names the folder where its first object comes between an empty listing and a second look.
    """
    fs, path = filesystem(uri)
    below = f"{path.rstrip('/')}/"
    found = (str(name) for name in fs.find(path))
    return {join(uri, name.removeprefix(below)) for name in found if name.startswith(below) and not name.endswith("/")}


def remove(uri: str) -> None:
    """Remove an object or a whole folder; nothing there is no error."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def remove_all(uris: Iterable[str]) -> None:
    """Remove objects; those that are not there are no error."""
    for uri in sorted(uris):
        remove(uri)


def upload_folder(folder: Path, uri: str) -> None:
    """Write every file of a flat local folder below the URI."""
    for file in sorted(folder.iterdir()):
        write_bytes(join(uri, file.name), file.read_bytes())


def download(uri: str, path: str) -> None:
    """Copy one object, streamed, to a local path."""
    fs, source_path = filesystem(uri)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with fs.open(source_path, "rb") as source, Path(path).open("wb") as sink:
        shutil.copyfileobj(source, sink, 16 << 20)


def download_folder(uri: str, path: str) -> None:
    """Copy every file of a flat folder into a local one."""
    Path(path).mkdir(parents=True, exist_ok=True)
    for name in names(uri):
        download(join(uri, name), str(Path(path, name)))


@contextlib.contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """A flat folder's files on the local disk: itself if local, else a copy that lasts as long as the context."""
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as folder:
        download_folder(uri, folder)
        yield Path(folder)


@contextlib.contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """One object on the local disk: itself if local, else a streamed copy that lasts as long as the context."""
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, posixpath.basename(uri))
        download(uri, str(copy))
        yield copy
