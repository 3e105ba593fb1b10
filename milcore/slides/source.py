"""Reaching the file of a slide: what identifies its version, a copy on this disk, the reason where there is none."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from milcore.errors import UnreachableSlideError
from milcore.runtime import storage

T = TypeVar("T")
RETRY_WAITS_S = (2.0,)


class SourceVersion(NamedTuple):
    """A source and what identifies its version without reading it."""

    uri: str
    size: int
    version: str


def source_version(uri: str) -> SourceVersion:
    """What identifies the version of a file.

    Raises:
        UnreachableSlideError: it cannot be reached.
    """
    return with_retries(uri, lambda: SourceVersion(uri, *storage.stat(uri)))


def fetch(uri: str, stack: contextlib.ExitStack) -> tuple[Path, str]:
    """A local file of the source for as long as the stack, and its sha256.

    Raises:
        UnreachableSlideError: it cannot be reached.
    """
    return with_retries(uri, lambda: _fetch(uri, stack))


def with_retries(uri: str, action: Callable[[], T]) -> T:
    """The action's result, tried again with growing waits while the storage fails.

    Raises:
        UnreachableSlideError: it failed for good, or each time.
    """
    for wait_s in (*RETRY_WAITS_S, None):
        try:
            return action()
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise UnreachableSlideError(_unreachable(uri, error)) from None
        except storage.IO_ERRORS as error:
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
        IsADirectoryError: "it is a folder, not a file",
    }
    return f"cannot read {uri}: {known.get(type(error)) or f'{type(error).__name__}: {error}'}"
