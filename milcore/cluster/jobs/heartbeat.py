"""Heartbeat of the process that follows a job; without it the job's driver exits.

The follower writes an object every half minute; the driver reads it. No clocks are compared: the driver counts the
time since it last saw the object change. So a job that no process follows any more frees its cluster.
"""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator

from milcore.runtime import storage
from milcore.runtime.progress import log_line

SECONDS_BETWEEN_BEATS = 30.0
SECONDS_WITHOUT_HEARTBEAT = 300.0


def heartbeat_uri(folder_uri: str, step: str) -> str:
    """URI of the heartbeat of a step that works on a folder."""
    return storage.join(folder_uri, "heartbeats", step)


@contextlib.contextmanager
def keep_heartbeat(uri: str, every_s: float = SECONDS_BETWEEN_BEATS) -> Iterator[None]:
    """Write a heartbeat at once and every ``every_s`` seconds within the context.

    The first write raises if storage fails; later ones are tried again at the next beat.
    """
    over = threading.Event()
    _beat(uri)
    thread = threading.Thread(target=_write_beats, args=(uri, every_s, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(*storage.IO_ERRORS):
            storage.remove(uri)


def exit_without_heartbeat(uri: str, after_s: float = SECONDS_WITHOUT_HEARTBEAT) -> None:
    """Exit this process (code 1) once the heartbeat has not changed for ``after_s`` seconds."""
    threading.Thread(target=_watch, args=(uri, after_s), daemon=True).start()


def _write_beats(uri: str, every_s: float, over: threading.Event) -> None:
    while not over.wait(every_s):
        with contextlib.suppress(*storage.IO_ERRORS):
            _beat(uri)


def _beat(uri: str) -> None:
    storage.write_bytes(uri, uuid.uuid4().hex.encode())


def _watch(uri: str, after_s: float) -> None:
    last_beat, changed = b"", time.monotonic()
    while time.monotonic() - changed < after_s:
        time.sleep(min(SECONDS_BETWEEN_BEATS, after_s / 4))
        with contextlib.suppress(*storage.IO_ERRORS):
            beat = storage.read_bytes(uri)
            if beat != last_beat:
                last_beat, changed = beat, time.monotonic()
    log_line(f"milcore: no heartbeat at {uri} for {after_s:.0f} s: no process follows this job; its driver exits")
    os._exit(1)  # the main thread may block in Ray's C++; Ray ends the workers of a driver that has exited
