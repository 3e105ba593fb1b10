"""``files.json``: the sha256 of each published file of a run or sweep.

It is written before the files that it names, and every reader compares: a file that changed, or was exchanged with that
of another run, is an error. Files of earlier versions are in no ``files.json`` and cannot be checked.
"""

import functools
import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from milcore.errors import AbsentFileError, DamageError
from milcore.runtime import storage
from milcore.runtime.digest import OWN_DIGEST, with_own_digest, without_own_digest
from milcore.runtime.progress import log_line
from milcore.runtime.threads import map_in_threads

FILES = "files.json"


def publish(files: Mapping[str, bytes]) -> None:
    """Record the digests of a folder's files, then write the files in order.

    Args:
        files: content by URI.
    """
    record(files)
    for uri, data in files.items():
        storage.write_bytes(uri, data)


def record(files: Mapping[str, bytes]) -> None:
    """Record the digests of files of a folder; others recorded there stay.

    Args:
        files: content by URI.
    """
    folder_uri = posixpath.dirname(next(iter(files)))
    record_digests(folder_uri, {posixpath.basename(uri): sha256(data) for uri, data in files.items()})


def record_digests(folder_uri: str, digests: Mapping[str, str]) -> None:
    """Record digests of files of a folder by name; others recorded there stay."""
    before = recorded_digests(folder_uri)
    after = {**before, **digests}
    if after != before:
        storage.write_json(storage.join(folder_uri, FILES), with_own_digest({"files": after}))


def forget(uri: str) -> None:
    """Remove the digest of a file that is to be written anew.

    A process that is killed between both leaves a file without digest, not a file of another digest.
    """
    folder_uri, name = posixpath.split(uri)
    digests = recorded_digests(folder_uri)
    if digests.pop(name, None) is not None:
        storage.write_json(storage.join(folder_uri, FILES), with_own_digest({"files": digests}))


def read_file(uri: str) -> bytes:
    """Read a published file and compare it with its digest.

    Raises:
        AbsentFileError: there is none.
        DamageError: it is not the file that was published.
    """
    return _read_checked(uri, recorded_digests(posixpath.dirname(uri)))


def read_files(folder_uri: str, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of published files of a folder, in order.

    Several are read at a time.

    Raises:
        DamageError: as of ``read_file``.
    """
    digests = recorded_digests(folder_uri)
    read = partial(_read_named, folder_uri=folder_uri, digests=digests)
    return map_in_threads(read, names, storage.CONCURRENT_REQUESTS)


def _read_named(name: str, folder_uri: str, digests: Mapping[str, str]) -> tuple[str, bytes]:
    return name, _read_checked(storage.join(folder_uri, name), digests)


def _read_checked(uri: str, digests: Mapping[str, str]) -> bytes:
    """Read a published file and compare it with the digests of its folder."""
    folder_uri, name = posixpath.split(uri)
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        raise AbsentFileError(
            f"{uri}: expected the file that was published, got no object; restore it, or run the command that makes it "
            "again"
        ) from None
    digest = digests.get(name)
    if digest is None:
        _log_unchecked(folder_uri)
    elif digest != sha256(data):
        raise DamageError(
            f"{uri}: expected the file that was published (sha256 {digest[:12]}… in {FILES}), got another; restore it, "
            "or run the command that writes it again"
        )
    return data


def read_json(uri: str) -> Any:
    """Read a published JSON file; errors as of ``read_file``."""
    return storage.parse_json(read_file(uri), uri)


def read_table(uri: str) -> pa.Table:
    """Read a published Parquet file; errors as of ``read_file``."""
    return storage.check_table(read_file(uri), uri)


def recorded_digests(folder_uri: str) -> dict[str, str]:
    """Sha256 of each published file of a folder, by its name.

    Raises:
        DamageError: ``files.json`` is damaged.
    """
    uri = storage.join(folder_uri, FILES)
    try:
        values = storage.read_json(uri)
    except FileNotFoundError:
        return {}
    files = without_own_digest(values, uri).get("files") if isinstance(values, dict) and OWN_DIGEST in values else None
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise DamageError(f"{uri}: expected the digests of the folder's files, got other JSON; restore it")
    return files


def check_recorded(uri: str, command: str) -> None:
    """Check that the digest of a file is recorded.

    Args:
        uri: of the file.
        command: the ``milcore`` command that records it.

    Raises:
        DamageError: it is not, so that no change of the folder's files would be noticed.
    """
    folder_uri, name = posixpath.split(uri)
    if name not in recorded_digests(folder_uri):
        raise DamageError(
            f"{storage.join(folder_uri, FILES)}: expected the digests of the folder's files, got none of {name}; "
            f"restore it, or run the same milcore {command} again"
        )


def damage_of(folder_uri: str) -> list[str]:
    """Lines on the published files of a folder that are absent or changed."""
    lines = []
    try:
        names = recorded_digests(folder_uri)
    except DamageError as error:
        return [error.line]
    for name in names:
        try:
            read_file(storage.join(folder_uri, name))
        except DamageError as error:
            lines.append(error.line)
    return lines


def sha256(data: bytes) -> str:
    """Hex digest of the content of a file."""
    return hashlib.sha256(data).hexdigest()


@functools.cache
def _log_unchecked(folder_uri: str) -> None:
    log_line(f"{folder_uri}: made by an earlier version, without {FILES}: a changed file would not be noticed")
