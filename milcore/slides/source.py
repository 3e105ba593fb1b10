"""Source files of slides: version, local copy, retries while the storage fails.

A slide is one file, or the DICOM files of one folder.
"""

import contextlib
import hashlib
import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from milcore.config import MAX_DICOM_FILES
from milcore.errors import SlideError, StorageError, UnreachableSlideError
from milcore.runtime import storage
from milcore.runtime.allow_list import uri_problem
from milcore.runtime.digest import digest
from milcore.slides.dicom import is_dicom, is_one_file, series_files, series_folder, series_folder_of_file
from milcore.slides.foreign import foreign_format

T = TypeVar("T")
RETRY_WAITS_S = (2.0,)


class SourceVersion(NamedTuple):
    """URI, size in bytes and version (ETag or modification time) of a source file.

    Of a DICOM slide size and version are those of all files of its folder.
    """

    uri: str
    size: int
    version: str


class LocalSource(NamedTuple):
    """Local copy of a source.

    Args:
        path: to open.
        size: in bytes, of all its files.
        sha256: of its file; of several that of their sorted sha256.
    """

    path: Path
    size: int
    sha256: str


def source_version(uri: str) -> SourceVersion:
    """Size and version of a slide, without reading it.

    Raises:
        UnreachableSlideError: the storage cannot be read, or the name is that of a format that is not read.
    """
    problem = foreign_format(uri)
    if problem is not None:
        raise UnreachableSlideError(problem)
    return with_retries(uri, lambda: SourceVersion(uri, *source_stat(uri)))


def source_versions(uris: Iterable[str]) -> dict[str, SourceVersion]:
    """Versions of those slides that can be reached, without reading them.

    What lies near each other on S3 is listed, 1,000 objects a request, for as long as that is no slower than to ask for
    each. The others are asked for each, CONCURRENT_REQUESTS at a time. A file is taken for DICOM by its name alone.
    """
    slides = [uri for uri in dict.fromkeys(uris) if uri_problem(uri) is None and foreign_format(uri) is None]
    with ThreadPoolExecutor(storage.CONCURRENT_REQUESTS) as pool:
        pages = pool.map(_listed_versions, *_folders(slides))
        listed = {version.uri: version for page in pages for version in page}
        rest = [uri for uri in slides if uri not in listed]
        asked = {uri: version for uri, version in zip(rest, pool.map(_reachable_version, rest), strict=True) if version}
    return listed | asked


def _folders(uris: Sequence[str]) -> tuple[list[str], list[set[str]]]:
    """Folders on S3 with several slides, and their paths from there.

    The folder above, where slides have folders of their own.
    """
    files = [uri for uri in uris if uri.startswith("s3://") and is_one_file(uri)]
    in_folder = Counter(uri.rpartition("/")[0] for uri in files)
    folders: dict[str, set[str]] = defaultdict(set)
    for uri in files:
        folder = uri.rpartition("/")[0]
        folder = folder if in_folder[folder] > 1 else folder.rpartition("/")[0]
        folders[folder].add(uri.removeprefix(f"{folder}/"))
    several = {folder: names for folder, names in folders.items() if len(names) > 1 and folder != "s3:/"}
    return list(several), list(several.values())


def _listed_versions(folder: str, names: set[str]) -> list[SourceVersion]:
    """Versions of those files that the first pages of a folder's listing have."""
    # asked for each, so many would be answered in the time of a page
    pages = math.ceil(len(names) / storage.CONCURRENT_REQUESTS)
    try:
        stats = storage.listed_stats(folder, names, pages)
    except storage.IO_ERRORS:  # it may be closed to listings, and its objects open
        return []
    return [SourceVersion(f"{folder}/{name}", *stat) for name, stat in stats.items()]


def _reachable_version(uri: str) -> SourceVersion | None:
    """Version of a slide; None where it is out of reach."""
    try:
        stat = with_retries(uri, lambda: storage.stat_file(uri)) if is_one_file(uri) else None
        return source_version(uri) if stat is None else SourceVersion(uri, *stat)
    except SlideError:
        return None


def file_version(uri: str) -> SourceVersion:
    """Size and version of a file that is no slide.

    Raises:
        UnreachableSlideError: the storage cannot be read.
    """
    return with_retries(uri, lambda: SourceVersion(uri, *storage.stat(uri)))


def source_stat(uri: str) -> storage.SourceStat:
    """Size and version of a slide; errors are those of storage."""
    of_file = storage.stat_file(uri)
    folder = uri if of_file is None else series_folder_of_file(uri)
    if folder is None and of_file is not None:
        return of_file
    stats = _folder_stats(folder or uri)
    return storage.SourceStat(sum(stat.size for stat in stats.values()), digest(stats))


def fetch(uri: str, stack: contextlib.ExitStack) -> LocalSource:
    """Local copy of a source with its digest.

    A remote source's copy lasts until ``stack`` closes; a local source is its own copy.

    Raises:
        UnreachableSlideError: the storage cannot be read.
        SlideError: a folder is not that of one DICOM slide.
    """
    return with_retries(uri, lambda: _with_digest(_local_files(uri, stack)))


def local_path(uri: str, stack: contextlib.ExitStack) -> Path:
    """Path to open of a local copy of the source: ``fetch`` without the digest."""
    return with_retries(uri, lambda: _local_files(uri, stack)[0])


def with_retries(uri: str, action: Callable[[], T]) -> T:
    """Result of an action, repeated after ``RETRY_WAITS_S`` while the storage fails.

    Args:
        uri: named in errors.
        action: reads from the storage.

    Raises:
        UnreachableSlideError: the file does not exist or may not be read, or every attempt failed.
    """
    problem = uri_problem(uri)
    if problem is not None:
        raise UnreachableSlideError(problem)
    for wait_s in (*RETRY_WAITS_S, None):
        try:
            return action()
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise UnreachableSlideError(_unreachable(uri, error)) from None
        except storage.IO_ERRORS as error:
            if isinstance(error.__cause__, PermissionError):
                raise UnreachableSlideError(_unreachable(uri, error)) from None
            if wait_s is None:
                raise UnreachableSlideError(
                    f"{_unreachable(uri, error)} (tried {len(RETRY_WAITS_S) + 1} times)"
                ) from None
            time.sleep(wait_s)
        except (ValueError, ImportError) as error:
            raise UnreachableSlideError(_unreachable(uri, error)) from None
    raise AssertionError


def _local_files(uri: str, stack: contextlib.ExitStack) -> tuple[Path, ...]:
    """Files of a local copy of the source, any of which opens it."""
    folder = series_folder(uri)
    if folder is None:
        path = stack.enter_context(storage.local_file(uri))
        with path.open("rb") as file:
            if is_dicom(file):
                raise SlideError(
                    "a DICOM slide on https://, where its folder cannot be listed; copy it to a disk or s3://"
                )
        return (path,)
    names = _folder_stats(folder)
    if storage.is_local(folder):
        copy = Path(storage.absolute(folder))
    else:
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in names:
            storage.download(storage.join(folder, name), str(copy / name))
    return series_files(copy, None if folder == uri else uri.rpartition("/")[2])


def _folder_stats(folder: str) -> dict[str, storage.SourceStat]:
    """Size and version of each file of a DICOM slide's folder.

    Raises:
        UnreachableSlideError: it has too many to be the folder of one slide, or one may not be read here.
    """
    stats = storage.folder_stats(folder)
    if len(stats) > MAX_DICOM_FILES:
        raise UnreachableSlideError(
            f"{len(stats):,} files in the folder of a DICOM slide; allowed: {MAX_DICOM_FILES}; put each series into a "
            "folder of its own"
        )
    problems = [problem for name in stats if (problem := uri_problem(storage.join(folder, name))) is not None]
    if problems:
        raise UnreachableSlideError(problems[0])
    return stats


def _with_digest(files: tuple[Path, ...]) -> LocalSource:
    digests = sorted(map(_sha256, files))
    joined = hashlib.sha256("".join(digests).encode()).hexdigest()
    return LocalSource(files[0], sum(path.stat().st_size for path in files), digests[0] if len(files) == 1 else joined)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreachable(uri: str, error: Exception) -> str:
    known: dict[type[Exception], str] = {
        FileNotFoundError: "there is no such file",
        IsADirectoryError: "it is a folder, not a file",
    }
    if isinstance(error, StorageError):
        return f"cannot read {error}"
    return f"cannot read {uri}: {known.get(type(error)) or f'{type(error).__name__}: {error}'}"
