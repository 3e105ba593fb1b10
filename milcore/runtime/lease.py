"""Lease of a folder, which lets one process at a time work on it.

The holder, on any machine, has the object ``lease.<number>`` in the folder and rewrites it every few seconds. No clocks
are compared: on the holder's machine its process is looked up, elsewhere the time counts since its object was last seen
to change. So a killed holder never blocks the next one, which takes the next number.
"""

import contextlib
import datetime
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from milcore.errors import BusyError
from milcore.runtime import storage
from milcore.runtime.progress import log_line

SECONDS_BETWEEN_RENEWALS = 5.0
SECONDS_UNTIL_LOST = 30.0
SECONDS_BETWEEN_LOOKS = 1.0
_NAME = re.compile(r"lease\.(\d+)")


@contextlib.contextmanager
def lease(folder_uri: str, noun: str, every_s: float = SECONDS_BETWEEN_RENEWALS) -> Iterator[None]:
    """Hold the lease of a folder within the context.

    A holder that finds its lease taken, having been unable to renew it for long, exits (code 1).

    Args:
        folder_uri: the folder, which may be new.
        noun: name of such a folder in an error.
        every_s: seconds between renewals.

    Raises:
        BusyError: another process holds it.
    """
    holder = _this_process()
    number = _acquire(folder_uri, noun, holder)
    over = threading.Event()
    thread = threading.Thread(target=_renew, args=(folder_uri, number, holder, every_s, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(*storage.IO_ERRORS):
            storage.remove(_uri(folder_uri, number))


def _acquire(folder_uri: str, noun: str, holder: dict[str, str]) -> int:
    """Number of the lease that is now this process's own."""
    while True:
        lost = _numbers(folder_uri)
        if not _are_lost(folder_uri, lost, noun):
            continue
        number, content = max(lost, default=-1) + 1, _content(holder)
        uri = _uri(folder_uri, number)
        if not storage.create(uri, content) or storage.read_all([uri]) != {uri: content}:
            continue
        # of two that create different numbers at once at least one sees the other here
        if _numbers(folder_uri) <= lost | {number}:
            storage.remove_all(_uri(folder_uri, other) for other in lost)
            return number
        storage.remove(uri)


def _are_lost(folder_uri: str, numbers: set[int], noun: str, after_s: float = SECONDS_UNTIL_LOST) -> bool:
    """True where the holders of these leases have ended.

    False where one released its lease meanwhile: look again.

    Raises:
        BusyError: one lives.
    """
    uris = [_uri(folder_uri, number) for number in sorted(numbers)]
    first, began, is_told = storage.read_all(uris), time.monotonic(), False
    while True:
        now = storage.read_all(uris)
        if len(now) < len(uris):
            return False
        holders = {uri: storage.parse_json(data, uri) for uri, data in now.items()}
        unknown = {uri for uri, holder in holders.items() if holder["machine"] != _machine()}
        alive = [uri for uri in uris if now[uri] != first.get(uri) or (uri not in unknown and _lives(holders[uri]))]
        if alive:
            holder = holders[alive[-1]]
            raise BusyError(
                f"the {noun} at {folder_uri} is being worked on by another process (host {holder['host']}, pid "
                f"{holder['pid']}, since {holder['since']}); wait for its end, or stop it"
            )
        if not unknown or time.monotonic() - began >= after_s:
            return True
        if not is_told:
            holder, is_told = holders[max(unknown)], True
            log_line(
                f"the {noun} at {folder_uri} was worked on by another process (host {holder['host']}, pid "
                f"{holder['pid']}): waiting up to {after_s:g} s for a sign of it"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _renew(folder_uri: str, number: int, holder: dict[str, str], every_s: float, over: threading.Event) -> None:
    while not over.wait(every_s):
        with contextlib.suppress(*storage.IO_ERRORS):
            numbers = _numbers(folder_uri)
            if max(numbers, default=-1) == number:
                storage.write_bytes(_uri(folder_uri, number), _content(holder))
                continue
            storage.remove(_uri(folder_uri, number))
            log_line(f"milcore: another process took over {folder_uri} while this one did not answer; this one exits")
            os._exit(1)  # the main thread may block in Ray's C++; Ray ends the workers of a driver that has exited


def _numbers(folder_uri: str) -> set[int]:
    """Numbers of all leases of the folder."""
    matches = (_NAME.fullmatch(name) for name in storage.names(folder_uri))
    return {int(match[1]) for match in matches if match is not None}


def _uri(folder_uri: str, number: int) -> str:
    return storage.join(folder_uri, f"lease.{number}")


def _content(holder: dict[str, str]) -> bytes:
    """The holder, in bytes that differ each time."""
    return json.dumps(holder | {"renewal": uuid.uuid4().hex}).encode()


def _this_process() -> dict[str, str]:
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "started": _started(str(os.getpid())),
    }


def _machine() -> str:
    """Boot and process namespace, in which ids of processes can be compared."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


def _lives(holder: dict[str, str]) -> bool:
    return bool(holder["started"]) and _started(holder["pid"]) == holder["started"]


def _started(pid: str) -> str:
    """Start of a process in ticks since the boot; empty where it has ended.

    No later process of its id shares it.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
