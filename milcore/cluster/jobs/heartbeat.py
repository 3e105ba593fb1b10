"""A sign of life of whoever waits for a job, so that a job nobody waits for ends itself.

The waiting side writes an object every half minute; the job's driver watches it. No clocks are compared: the driver
counts the time since it last saw the object change.
"""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator

from milcore.runtime import storage
from milcore.runtime.progress import say

SECONDS_BETWEEN_BEATS = 30.0
SECONDS_WITHOUT = 300.0


def heartbeat_uri(folder_uri: str, step: str) -> str:
    """Where the sign of life of a step on a folder lies."""
    return storage.join(folder_uri, "heartbeats", step)


@contextlib.contextmanager
def beating(uri: str, every_s: float = SECONDS_BETWEEN_BEATS) -> Iterator[None]:
    """Beat for the length of the context, from its first moment on; storage that fails later is tried again."""
    over = threading.Event()
    _beat(uri)
    thread = threading.Thread(target=_keep_beating, args=(uri, every_s, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(*storage.IO_ERRORS):
            storage.remove(uri)


def end_without(uri: str, after_s: float = SECONDS_WITHOUT) -> None:
    """From now on, end this process (exit code 1) once the heartbeat has not changed for so long."""
    threading.Thread(target=_watch, args=(uri, after_s), daemon=True).start()


def _keep_beating(uri: str, every_s: float, over: threading.Event) -> None:
    while not over.wait(every_s):
        with contextlib.suppress(*storage.IO_ERRORS):
            _beat(uri)


def _beat(uri: str) -> None:
    storage.write_bytes(uri, uuid.uuid4().hex.encode())


def _watch(uri: str, after_s: float) -> None:
    seen, changed = b"", time.monotonic()
    while time.monotonic() - changed < after_s:
        time.sleep(min(SECONDS_BETWEEN_BEATS, after_s / 4))
        with contextlib.suppress(*storage.IO_ERRORS):
            found = storage.read_bytes(uri)
            if found != seen:
                seen, changed = found, time.monotonic()
    say(f"milcore: nobody has waited for this job for {after_s:.0f} s (no heartbeat at {uri}); it ends itself")
    os._exit(1)  # the main thread may sit in Ray's C++; Ray ends the workers of a driver that is gone
