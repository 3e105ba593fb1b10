"""Read and write whole objects at URIs, local or remote, through fsspec.

All output of milcore outside Zarr groups is written here. Writes are atomic: a reader sees the old object, the new
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

from milcore.errors import StoreError

# errors of filesystems: s3fs does not wrap botocore's own (no credentials, no connection)
IO_ERRORS = (OSError, BotoCoreError)


class SourceStat(NamedTuple):
    """Size in bytes and version of an object."""

    size: int
    version: str


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URI and the path inside it.

    Listings are never cached, since other processes write too.
    """
    remote = "://" in uri and not uri.startswith("file://")
    fs, path = url_to_fs(uri, **({"use_listings_cache": False} if remote else {}))
    return fs, path


def is_local(uri: str) -> bool:
    """The URI is a local path."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """The URI without trailing slash; local paths absolute and without ``file://``."""
    if is_local(uri):
        return str(Path(uri.removeprefix("file://")).resolve())
    return uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """The URI of a path below another URI.

    Raises:
        StoreError: a part leads out of it: parts may come from stored data that someone else wrote.
    """
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise StoreError(f"expected a path below {uri}, got {part!r}; allowed: names without '..'; do not trust it")
    return posixpath.join(uri.rstrip("/"), *parts)


def exists(uri: str) -> bool:
    """True where the URI is an object, not a folder."""
    fs, path = filesystem(uri)
    return bool(fs.isfile(path))


def stat(uri: str) -> SourceStat:
    """Size in bytes and version of an object, without reading it.

    The version is the ETag where the store has one, else the modification time.

    Raises:
        FileNotFoundError: there is no object.
    """
    fs, path = filesystem(uri)
    info = fs.info(path)
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    return SourceStat(int(info["size"]), str(version).strip('"'))


def etag(uri: str) -> str | None:
    """ETag of an object; None where the storage has none, as a local disk.

    Raises:
        FileNotFoundError: there is no object.
    """
    fs, path = filesystem(uri)
    return str(stat(uri).version) if {"ETag", "etag"} & fs.info(path).keys() else None


def read_bytes(uri: str) -> bytes:
    """Read a whole object."""
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object atomically; local folders are made as needed."""
    write_parts(uri, [data])


def write_parts(uri: str, parts: Sequence[bytes]) -> None:
    """Write an object from parts, as ``write_bytes`` does.

    The parts of a local object are not joined in memory.
    """
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
        partial.unlink(missing_ok=True)  # on a full disk a partial file would stay and keep it full


def read_range(uri: str, start: int, end: int | None) -> bytes:
    """Read bytes ``start`` to ``end`` of an object.

    Args:
        uri: of the object.
        start: first byte; negative counts from the end.
        end: exclusive; None is the end of the object.
    """
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path, start=start, end=end))


def read_all(uris: Sequence[str]) -> dict[str, bytes]:
    """Read all objects that exist, concurrently where the filesystem can."""
    if not uris:
        return {}
    fs, _ = filesystem(uris[0])
    paths = {filesystem(uri)[1]: uri for uri in uris}
    contents = fs.cat(list(paths), on_error="omit")
    return {paths[path]: bytes(data) for path, data in contents.items()}


def read_json(uri: str) -> Any:
    """Read and parse a JSON object."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: object) -> None:
    """Write a value as JSON with sorted keys: equal values give equal bytes."""
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_table(uri: str) -> pa.Table:
    """Read a Parquet object."""
    return parse_table(read_bytes(uri))


def parse_table(data: bytes) -> pa.Table:
    """Parse the bytes of a Parquet object."""
    return pq.read_table(pa.BufferReader(data))


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one Parquet object."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(uri, sink.getvalue().to_pybytes())


def names(uri: str) -> list[str]:
    """Sorted names directly below a folder; empty where the folder is missing."""
    fs, path = filesystem(uri)
    try:
        paths = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    children = {str(child).rstrip("/") for child in paths} - {path.rstrip("/")}
    return sorted(posixpath.basename(child) for child in children)


def files(uri: str) -> set[str]:
    """URIs of all objects below a folder, at any depth, as ``join`` gives them.

    The folder itself is left out: s3fs lists it where its first object is written between an empty listing and a second
    one. What a link leads to is not below it.
    """
    fs, path = filesystem(uri)
    if is_local(uri) and Path(path).is_symlink():
        return set()
    below = f"{path.rstrip('/')}/"
    paths = (str(child) for child in fs.find(path))
    return {join(uri, child.removeprefix(below)) for child in paths if child.startswith(below) and child[-1] != "/"}


def remove(uri: str) -> None:
    """Remove an object, if it exists; never a folder."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_folder(uri: str) -> None:
    """Remove a folder that this run made, if it exists."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def remove_all(uris: Iterable[str]) -> None:
    """Remove the objects that exist."""
    for uri in sorted(uris):
        remove(uri)


def upload_folder(folder: Path, uri: str) -> None:
    """Write every file of a flat local folder below the URI."""
    for file in sorted(folder.iterdir()):
        write_bytes(join(uri, file.name), file.read_bytes())


def download(uri: str, path: str) -> None:
    """Copy one object to a local path, streamed."""
    fs, source_path = filesystem(uri)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with fs.open(source_path, "rb") as source, Path(path).open("wb") as sink:
        shutil.copyfileobj(source, sink, 16 << 20)


def download_folder(uri: str, path: str) -> None:
    """Copy every file of a flat folder into a local folder."""
    Path(path).mkdir(parents=True, exist_ok=True)
    for name in names(uri):
        download(join(uri, name), str(Path(path, name)))


@contextlib.contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """Local folder with a flat folder's files.

    A local folder is itself; of a remote one, a copy that is removed when the context ends.
    """
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as folder:
        download_folder(uri, folder)
        yield Path(folder)


@contextlib.contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """Local file with an object's content.

    A local object is itself; of a remote one, a streamed copy that is removed when the context ends.
    """
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, posixpath.basename(uri))
        download(uri, str(copy))
        yield copy
