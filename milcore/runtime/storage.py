"""Read and write whole objects at URIs, local or remote, through fsspec.

All output of milcore outside Zarr groups is written here. Writes are atomic: a reader sees the old object, the new
one, or none. Credentials and endpoints come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` …).

Absence is a ``FileNotFoundError``; all else that keeps storage from answering, a missing right or a server that is
down, is a ``StorageError`` with its reason, and never taken for absence.
"""

import contextlib
import errno
import importlib
import json
import mmap
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import fsspec
import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from milcore.errors import DamageError, InputError, StorageError, StoreError
from milcore.runtime.digest import table_digest

if TYPE_CHECKING:
    from typing_extensions import Buffer


def _error_of(package: str, name: str) -> type[Exception]:
    """Class of a remote filesystem's errors; ``OSError`` where its package is not installed."""
    try:
        error: type[Exception] = getattr(importlib.import_module(package), name)
    except ImportError:
        return OSError
    return error


# errors of filesystems: s3fs does not wrap botocore's own (no credentials, no connection), nor fsspec aiohttp's
IO_ERRORS = (OSError, _error_of("botocore.exceptions", "BotoCoreError"), _error_of("aiohttp", "ClientError"))
# a name below a file is as absent as one below a folder
_ABSENCE = (FileNotFoundError, NotADirectoryError)
# a server that knows no conditional write, and a disk that knows no hard link
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
_PRECONDITION_FAILED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_NO_SUCH_RANGE = ("InvalidRange", "416")

# of one process at a time; as many connections are kept open
CONCURRENT_REQUESTS = 32
# of an upload of a file; S3 takes parts of 5 MiB at the least
UPLOAD_PART_BYTES = 8 << 20
# times that an unfinished file is written anew because another writer removed it
REMOVED_AT_MOST = 3
# times that a folder is removed again because another writer wrote into it
REFILLED_AT_MOST = 10
# key of a table's digest in the metadata of its Parquet schema
_TABLE_DIGEST = b"milcore_sha256"


class SourceStat(NamedTuple):
    """Size in bytes and version of an object."""

    size: int
    version: str


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URI and the path inside it.

    Listings are never cached, since other processes write too.

    Raises:
        InputError: no filesystem of this scheme is installed.
    """
    if is_local(uri):
        return LocalFileSystem(), os.path.abspath(uri.removeprefix("file://"))  # noqa: PTH100 - links stay as they are
    try:
        fs, path = url_to_fs(uri, use_listings_cache=False, **(_s3_options() if uri.startswith("s3://") else {}))
    except (ValueError, ImportError) as error:
        raise InputError(
            f"{uri}: expected a URI of a known scheme, got {uri.partition('://')[0]}://; allowed: a local path, "
            f"file://, s3://, https://, gs:// with gcsfs and az:// with adlfs installed "
            f"({' '.join(str(error).split())})"
        ) from None
    return fs, path


def _s3_options() -> dict[str, Any]:
    """Options of s3fs for few requests, and many at a time.

    Left to itself s3fs asks for the size of an object before it reads it, and botocore keeps 10 connections.
    """
    of_user = dict(fsspec.config.conf.get("s3", {}).get("config_kwargs", {}))
    return {"max_concurrency": 1, "config_kwargs": {"max_pool_connections": CONCURRENT_REQUESTS, **of_user}}


@contextlib.contextmanager
def _access(uri: str, *, writes: bool = False) -> Iterator[None]:
    """Tell absence from an error of storage, and name the URI in both.

    To a write, a folder or bucket that cannot be is an error of storage.
    """
    try:
        yield
    except (StorageError, IsADirectoryError):
        raise
    except IO_ERRORS as error:
        if isinstance(error, _ABSENCE) and not writes:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", uri) from None
        raise StorageError(f"{uri}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def is_local(uri: str) -> bool:
    """The URI is a local path."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """The URI without trailing slash; local paths absolute and without ``file://``."""
    if is_local(uri):
        return os.path.realpath(uri.removeprefix("file://"))  # twice as fast as pathlib's, for a cohort
    return uri.rstrip("/")


def relative(uri: str, folder: str) -> str:
    """A local URI as a path from a local folder; others as they are.

    It tells the home of neither; ``resolve`` takes it back.
    """
    return os.path.relpath(absolute(uri), absolute(folder)) if is_local(uri) and is_local(folder) else uri


def resolve(uri: str, folder: str) -> str:
    """The URI that a path from a folder means.

    One that is complete stays as it is.
    """
    complete = "://" in uri or uri.startswith("/")
    return absolute(uri if complete else posixpath.join(folder, uri))


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
    """True where the URI is an object, not a folder.

    Raises:
        StorageError: the storage does not say.
    """
    try:
        return bool(_info(uri)["type"] == "file")
    except FileNotFoundError:
        return False


def is_folder(uri: str) -> bool:
    """True where the URI is a folder, or a prefix of objects.

    Raises:
        FileNotFoundError: there is neither an object nor a folder.
    """
    return bool(_info(uri)["type"] == "directory")


def _info(uri: str) -> dict[str, Any]:
    # not isfile() and its like: they take every error for absence
    fs, path = filesystem(uri)
    with _access(uri):
        return dict(fs.info(path))


def stat(uri: str) -> SourceStat:
    """Size in bytes and version of an object, without reading it.

    The version is the ETag where the store has one, else the modification time.

    Raises:
        FileNotFoundError: there is no object.
    """
    return _stat(uri, _info(uri))


def _stat(uri: str, info: dict[str, Any]) -> SourceStat:
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    if info["size"] is None:
        raise StorageError(f"{uri}: the server does not tell the object's size")
    return SourceStat(int(info["size"]), str(version).strip('"'))


def stat_file(uri: str) -> SourceStat | None:
    """Size and version of an object, as ``stat``; None for a folder.

    Raises:
        FileNotFoundError: there is neither.
    """
    info = _info(uri)
    return None if info["type"] == "directory" else _stat(uri, info)


def etag(uri: str) -> str | None:
    """ETag of an object; None where the storage has none, as a local disk.

    Raises:
        FileNotFoundError: there is no object.
    """
    return str(stat(uri).version) if {"ETag", "etag"} & _info(uri).keys() else None


def read_bytes(uri: str) -> bytes:
    """Read a whole object."""
    fs, path = filesystem(uri)
    with _access(uri):
        return bytes(fs.cat_file(path))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object atomically; local folders are made as needed."""
    write_parts(uri, [data])


def write_parts(uri: str, parts: Sequence[bytes]) -> None:
    """Write an object from parts, as ``write_bytes`` does.

    The parts of a local object are not joined in memory.
    """
    fs, path = filesystem(uri)
    with _access(uri, writes=True):
        if is_local(uri):
            _put(Path(path), parts, Path.replace)
        else:
            fs.pipe_file(path, parts[0] if len(parts) == 1 else b"".join(parts))


def upload(file: Path, uri: str) -> None:
    """Write an object from a local file, as ``write_bytes`` does.

    The file, which is not empty, is not read into memory.
    """
    fs, path = filesystem(uri)
    with _access(uri, writes=True):
        if is_local(uri):
            with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _put(Path(path), [data], Path.replace)
        else:
            parts = {"chunksize": UPLOAD_PART_BYTES} if uri.startswith("s3://") else {}
            fs.put_file(str(file), path, **parts)


def _put(target: Path, parts: Sequence["Buffer"], move: Callable[[Path, Path], object]) -> None:
    """Put a complete file in the target's place.

    It is written anew where another writer of the folder took the unfinished one for old and removed it.
    """
    for attempt in range(REMOVED_AT_MOST + 1):
        try:
            with _partial_file(target, parts) as partial:
                move(partial, target)
        except FileNotFoundError:
            if attempt == REMOVED_AT_MOST:
                raise
        else:
            return


def create(uri: str, data: bytes) -> bool:
    """Write an object where there is none, atomically; False where one exists.

    Of several writers one succeeds: a remote object is written under a condition (``If-None-Match``), a local one
    linked to its name. On storage that has neither, the last writer succeeds: compare then what stands there.
    """
    if exists(uri):  # storage may not know the condition
        return False
    is_new = create_under_condition(uri, data)
    if is_new is None:
        write_bytes(uri, data)
    return is_new is not False


def create_under_condition(uri: str, data: bytes) -> bool | None:
    """Write an object on condition that there is none; False where one exists.

    None, and nothing is written, where storage refuses such writes. One that ignores the condition writes anyway.
    """
    fs, path = filesystem(uri)
    with _access(uri, writes=True):
        if is_local(uri):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            if is_local(uri):
                _put(Path(path), [data], os.link)
            else:
                fs.pipe_file(path, data, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or _answer_code(error) in _PRECONDITION_FAILED:
                return False
            if error.errno not in _UNSUPPORTED:
                raise
            return None
    return True


def _answer_code(error: OSError) -> str | None:
    """Code of the error that S3 answered."""
    answer = getattr(error.__cause__, "response", {})
    code: str | None = answer.get("Error", {}).get("Code")
    return code


@contextlib.contextmanager
def _partial_file(target: Path, parts: Sequence["Buffer"]) -> Iterator[Path]:
    """A complete file beside the target, removed when the context ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
        yield partial
    finally:
        partial.unlink(missing_ok=True)  # on a full disk a partial file would stay and keep it full


def read_range(uri: str, start: int, end: int | None) -> bytes:
    """Read bytes ``start`` to ``end`` of an object, fewer where it ends early.

    Args:
        uri: of the object.
        start: first byte; negative counts from the end.
        end: exclusive; None is the end of the object.
    """
    fs, path = filesystem(uri)
    with _access(uri):
        try:
            return bytes(fs.cat_file(path, start=start, end=end))
        except OSError as error:
            if _answer_code(error) not in _NO_SUCH_RANGE:
                raise
            return b""


def read_all(uris: Sequence[str]) -> dict[str, bytes]:
    """Read all objects that exist, concurrently where the filesystem can."""
    if not uris:
        return {}
    fs, _ = filesystem(uris[0])
    bound = {"batch_size": CONCURRENT_REQUESTS} if fs.async_impl else {}
    contents = fs.cat_ranges([filesystem(uri)[1] for uri in uris], None, None, **bound)
    objects: dict[str, bytes] = {}
    for uri, data in zip(uris, contents, strict=True):
        with contextlib.suppress(FileNotFoundError), _access(uri):
            if isinstance(data, Exception):
                raise data
            objects[uri] = bytes(data)
    return objects


def read_json(uri: str) -> Any:
    """Read and parse a JSON object.

    Raises:
        DamageError: it is no JSON.
    """
    return parse_json(read_bytes(uri), uri)


def parse_json(data: bytes, uri: str) -> Any:
    """Parse JSON that was read from a URI.

    Raises:
        DamageError: it is no JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DamageError(
            f"{uri}: expected JSON, got {len(data)} bytes of something else; restore the object"
        ) from None


def write_json(uri: str, value: object) -> None:
    """Write a value as JSON with sorted keys: equal values give equal bytes."""
    write_bytes(uri, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """The bytes that ``write_json`` writes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def read_table(uri: str) -> pa.Table:
    """Read a Parquet object that ``write_table`` wrote.

    Raises:
        DamageError: as ``check_table``.
    """
    return check_table(read_bytes(uri), uri)


def check_table(data: bytes, uri: str) -> pa.Table:
    """Parse a Parquet object and compare its rows with its digest.

    A table without a digest, of another writer, is not checked.

    Raises:
        DamageError: it is not what was written.
    """
    try:
        table = parse_table(data)
        metadata = dict(table.schema.metadata or {})
        own_digest = metadata.pop(_TABLE_DIGEST, b"").decode()
        table = table.replace_schema_metadata(metadata or None)
        is_intact = own_digest in ("", table_digest(table))
    except (pa.ArrowException, OSError, ValueError):
        is_intact = False
    if not is_intact:
        raise DamageError(f"{uri}: expected the table that was written, got a damaged one or another; restore it")
    return table


def parse_table(data: bytes) -> pa.Table:
    """Parse the bytes of a Parquet object.

    In this thread alone: Arrow's pool of threads, which ``pq.read_table`` starts whatever its options are, ends about
    one process in twenty with SIGABRT as the interpreter shuts down (Arrow 26).
    """
    table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    if len(set(table.column_names)) < table.num_columns:
        raise pa.ArrowInvalid(f"expected each column once, got {', '.join(table.column_names)}")
    return table


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one Parquet object, with the digest of its rows."""
    write_bytes(uri, table_bytes(table))


def table_bytes(table: pa.Table) -> bytes:
    """The bytes of a Parquet object, with the digest of its rows."""
    metadata = (table.schema.metadata or {}) | {_TABLE_DIGEST: table_digest(table).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue().to_pybytes())


def names(uri: str) -> list[str]:
    """Sorted names directly below a folder; empty where the folder is missing."""
    fs, path = filesystem(uri)
    try:
        with _access(uri):
            paths = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    children = {str(child).rstrip("/") for child in paths} - {path.rstrip("/")}
    return sorted(posixpath.basename(child) for child in children)


def folder_stats(uri: str) -> dict[str, SourceStat]:
    """Size and version of each object directly below a folder, by name."""
    if is_local(uri):  # the listing of fsspec does not follow links
        infos = {name: _info(join(uri, name)) for name in names(uri)}
    else:
        fs, path = filesystem(uri)
        with _access(uri):
            infos = {posixpath.basename(info["name"].rstrip("/")): info for info in fs.ls(path, detail=True)}
    return {name: _stat(join(uri, name), infos[name]) for name in sorted(infos) if infos[name]["type"] == "file"}


def listed_stats(uri: str, names: Collection[str], pages: int) -> dict[str, SourceStat]:
    """Size and version, by name, of objects that a listing of S3 has.

    Args:
        uri: of the folder.
        names: of objects, as paths from the folder.
        pages: requests at most, of 1,000 objects each, at any depth; fewer where all are found.
    """
    fs, path = filesystem(uri)
    bucket, _, key = path.partition("/")
    prefix, stats, place = f"{key}/" if key else "", dict[str, SourceStat](), dict[str, str]()
    with _access(uri):
        for _ in range(pages):
            page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **place)
            for info in page.get("Contents", []):
                name = info["Key"].removeprefix(prefix)
                if name in names:
                    stats[name] = _stat(join(uri, name), {**info, "size": info["Size"]})
            if len(stats) == len(names) or not page.get("IsTruncated"):
                break
            place = {"ContinuationToken": page["NextContinuationToken"]}
    return stats


def files(uri: str) -> set[str]:
    """URIs of all objects below a folder, at any depth, as ``join`` gives them.

    The folder itself is left out: s3fs lists it where its first object is written between an empty listing and a second
    one. What a link leads to is not below it.
    """
    fs, path = filesystem(uri)
    if is_local(uri) and Path(path).is_symlink():
        return set()
    below = f"{path.rstrip('/')}/"
    with _access(uri):
        paths = [str(child) for child in (_local_files(path) if is_local(uri) else fs.find(path))]
    return {join(uri, child.removeprefix(below)) for child in paths if child.startswith(below) and child[-1] != "/"}


def _local_files(path: str) -> Iterator[str]:
    """Paths of all files below a folder.

    The listing of fsspec leaves out folders that it may not read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, _ABSENCE):
            raise error

    for folder, _, file_names in os.walk(path, onerror=refuse):
        yield from (posixpath.join(folder, name) for name in file_names)


def remove(uri: str) -> None:
    """Remove an object, if it exists; never a folder."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError), _access(uri):
        fs.rm_file(path)


def remove_folder(uri: str) -> None:
    """Remove a folder that this run made, if it exists.

    It is tried again where another process removes from it, or writes into it, meanwhile.
    """
    if not is_local(uri):
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:  # one by one: s3fs takes a folder's name for a pattern
            list(pool.map(remove, files(uri)))
        return
    path = filesystem(uri)[1]
    for attempt in range(REFILLED_AT_MOST + 1):
        try:
            with _access(uri):
                shutil.rmtree(path)
        except FileNotFoundError:
            if not Path(path).exists():
                return
        except StorageError as error:
            if getattr(error.__cause__, "errno", None) != errno.ENOTEMPTY or attempt == REFILLED_AT_MOST:
                raise
        else:
            return


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
    with _access(uri), fs.open(source_path, "rb") as source, Path(path).open("wb") as sink:
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
