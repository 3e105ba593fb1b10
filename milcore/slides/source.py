"""Source files of slides: version, local copy, retries while the storage fails."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from milcore.errors import StorageError, UnreachableSlideError
from milcore.runtime import storage
from milcore.runtime.allow_list import uri_problem
from milcore.slides.foreign import foreign_format

T = TypeVar("T")
RETRY_WAITS_S = (2.0,)


class SourceVersion(NamedTuple):
    """URI, size in bytes and version (ETag or modification time) of a source file."""

    uri: str
    size: int
    version: str


def source_version(uri: str) -> SourceVersion:
    """Size and version of a source file, without reading it.

    Raises:
        UnreachableSlideError: the storage cannot be read, or the name is that of a format that is not read.
    """
    problem = foreign_format(uri)
    if problem is not None:
        raise UnreachableSlideError(problem)
    return with_retries(uri, lambda: SourceVersion(uri, *storage.stat(uri)))


def fetch(uri: str, stack: contextlib.ExitStack) -> tuple[Path, str]:
    """Path of a local copy of the source, and its sha256.

    A remote source's copy lasts until ``stack`` closes; a local source is its own copy.

    Raises:
        UnreachableSlideError: the storage cannot be read.
    """
    return with_retries(uri, lambda: _fetch(uri, stack))


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


def _fetch(uri: str, stack: contextlib.ExitStack) -> tuple[Path, str]:
    path = stack.enter_context(storage.local_file(uri))
    with path.open("rb") as file:
        return path, hashlib.file_digest(file, "sha256").hexdigest()


def _unreachable(uri: str, error: Exception) -> str:
    known: dict[type[Exception], str] = {
        FileNotFoundError: "there is no such file",
        IsADirectoryError: "it is a folder, not a file; of a DICOM slide give one of its files",
    }
    if isinstance(error, StorageError):
        return f"cannot read {error}"
    return f"cannot read {uri}: {known.get(type(error)) or f'{type(error).__name__}: {error}'}"
