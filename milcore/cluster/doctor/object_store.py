"""Checks of the place of a store: reach, content, rights, conditional writes, speed.

One object is written below the URI, of a name that no store has, and removed; nothing else changes.
"""

import contextlib
import os
import socket
import statistics
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from milcore.cluster.doctor.finding import Finding, failure, ok, warning
from milcore.cluster.doctor.storage_fault import storage_failure
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.store.fragments import fragment_names
from milcore.training.run_folder import Run

CONNECT_S = 5.0
ROUND_TRIPS = 9
SMALL_BYTES, LARGE_BYTES = 16, 4 << 20
# above it, or below it, a run waits for storage more than it computes
SLOW_ROUND_TRIP_MS, SLOW_MB_PER_S = 100.0, 10.0
REMEDY_SPEED = "compute in the region of the store, or keep the store on a disk here"


def check_uri(uri: str) -> str:
    """The absolute URI of a store or run.

    Raises:
        InputError: it is no place that can be written.
    """
    scheme = "" if storage.is_local(uri) else uri.partition("://")[0]
    if scheme in {"http", "https"}:
        raise InputError(
            f"URI: expected a folder, got {uri}; allowed: a local path, s3://, gs://, az://; name a folder"
        )
    storage.filesystem(uri)
    return storage.absolute(uri)


def store_findings(uri: str) -> Generator[Finding]:
    """Check a URI that ``check_uri`` returned, in seconds."""
    if uri.startswith("s3://"):
        reach = reach_finding(uri)
        yield reach
        if reach.state == "failure":
            return
    try:
        yield _content_finding(uri)
    except storage.IO_ERRORS as error:
        yield storage_failure("read", uri, error)
        return
    yield from _write_findings(uri)


def reach_finding(uri: str) -> Finding:
    """Connect to the S3 endpoint, and list the bucket."""
    fs, path = storage.filesystem(uri)
    bucket, _, key = path.partition("/")
    return _answer_finding(uri, fs, lambda: fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1),
                           f"the keys may list bucket {bucket}")  # fmt: skip


def endpoint_finding() -> Finding:
    """Connect to the S3 endpoint, and let it check the keys."""
    fs, _ = storage.filesystem("s3://")
    finding = _answer_finding("s3://", fs, lambda: fs.call_s3("list_buckets"), "it knows the keys")
    # keys of one bucket may list no buckets; the store has checked them all the same
    return ok("reach", "it answers, and knows the keys") if "the keys lack" in finding.text else finding


def _answer_finding(uri: str, fs: Any, request: Callable[[], object], result: str) -> Finding:
    """The finding of a request to S3, before which a connection is tried."""
    place = None
    try:
        endpoint = str(fs.s3.meta.endpoint_url)
        place = endpoint + ("" if os.environ.get("AWS_ENDPOINT_URL") else " (AWS_ENDPOINT_URL is not set)")
        if not _is_proxied(endpoint):
            _connect(endpoint)
        request()
    except storage.IO_ERRORS as error:
        return storage_failure("reach", uri, error, place)
    except ValueError as error:
        return failure("reach", f"no address: {error}", "set AWS_ENDPOINT_URL to http(s)://HOST[:PORT]")
    return ok("reach", f"{place} answers; {result}")


def _is_proxied(endpoint: str) -> bool:
    """True where a proxy of the environment stands before the endpoint."""
    place = urlsplit(endpoint)
    return place.scheme in getproxies() and not proxy_bypass(place.hostname or "")


def _connect(endpoint: str) -> None:
    """Open a connection; S3's own client would try for minutes."""
    place = urlsplit(endpoint)
    port = place.port or (443 if place.scheme == "https" else 80)
    socket.create_connection((place.hostname or "", port), timeout=CONNECT_S).close()


def _content_finding(uri: str) -> Finding:
    if storage.exists(storage.join(uri, "manifest.parquet")):
        if fragment_names(uri):
            return ok("content", "a patch store with a catalogue")
        text = "a patch store without a catalogue: every step opens its slides one by one"
        return warning("content", text, f"milcore info {uri} --rebuild")
    if storage.exists(Run(uri).config_uri):
        return ok("content", f"a run, {'finished' if Run(uri).is_finished() else 'not finished'}")
    return ok("content", "no store or run yet: a new one can be made here")


def _write_findings(uri: str) -> Iterator[Finding]:
    """Write, read and time one object, which is removed."""
    probe = storage.join(uri, f".milcore-doctor-{uuid.uuid4().hex}")
    new_folders = _absent_folders(uri)
    try:
        yield from _probe_findings(probe)
    finally:
        with contextlib.suppress(*storage.IO_ERRORS):
            storage.remove(probe)
        _remove_folders(new_folders)
    yield from _remainder_findings(probe)


def _probe_findings(probe: str) -> Iterator[Finding]:
    small = os.urandom(SMALL_BYTES)
    steps: list[tuple[str, Callable[[], Finding]]] = [
        ("write", lambda: _write_finding(probe, small)),
        ("read", lambda: _read_finding(probe, small)),
        ("conditional write", lambda: _condition_finding(probe)),
        ("round trip", lambda: _round_trip_finding(probe)),
        ("bandwidth", lambda: _bandwidth_finding(probe)),
    ]
    for check, step in steps:
        try:
            finding = step()
        except storage.IO_ERRORS as error:
            finding = storage_failure(check, probe.rpartition("/")[0], error)
        yield finding
        if finding.state == "failure":
            return


def _write_finding(probe: str, data: bytes) -> Finding:
    storage.write_bytes(probe, data)
    return ok("write", "an object can be written")


def _read_finding(probe: str, data: bytes) -> Finding:
    if storage.read_bytes(probe) != data:
        text = "the object that was just written reads as another"
        return failure("read", text, "use storage that reads what was last written, without a cache before it")
    return ok("read", "it reads as it was written")


def _condition_finding(probe: str) -> Finding:
    """Write on condition of absence, as a lease does, where an object is."""
    is_new = storage.create_under_condition(probe, os.urandom(SMALL_BYTES))
    if is_new is False:
        return ok("conditional write", "one of several writers succeeds, as leases of runs need")
    answer = "does not know conditional writes" if is_new is None else "ignores the condition of a write"
    remedy = "start no two commands on one run at the same moment, or use storage with If-None-Match (hard links)"
    return warning("conditional write", f"the storage {answer}; a lease then compares what stands there", remedy)


def _round_trip_finding(probe: str) -> Finding:
    times_ms = [1000 * _seconds(lambda: storage.read_bytes(probe)) for _ in range(ROUND_TRIPS)]
    median_ms = statistics.median(times_ms)
    text = f"{median_ms:.2g} ms to read {SMALL_BYTES} bytes (median of {ROUND_TRIPS})"
    if median_ms > SLOW_ROUND_TRIP_MS:
        return warning("round trip", f"{text}, slower than {SLOW_ROUND_TRIP_MS:g} ms", REMEDY_SPEED)
    return ok("round trip", text)


def _bandwidth_finding(probe: str) -> Finding:
    data, megabytes = os.urandom(LARGE_BYTES), LARGE_BYTES / 1e6
    write = megabytes / _seconds(lambda: storage.write_bytes(probe, data))
    read = megabytes / _seconds(lambda: storage.read_bytes(probe))
    text = f"{write:.0f} MB/s written, {read:.0f} MB/s read (one object of {megabytes:.1f} MB)"
    if min(write, read) < SLOW_MB_PER_S:
        return warning("bandwidth", f"{text}, slower than {SLOW_MB_PER_S:g} MB/s", REMEDY_SPEED)
    return ok("bandwidth", text)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _remainder_findings(probe: str) -> Iterator[Finding]:
    """A failure where the object could not be removed."""
    try:
        remains = storage.exists(probe)
    except storage.IO_ERRORS:
        return
    if remains:
        remedy = "allow the keys to remove objects (s3:DeleteObject), then remove it"
        yield failure("removal", f"{probe} cannot be removed", remedy)


def _absent_folders(uri: str) -> list[Path]:
    """Local folders that a write makes, innermost first."""
    if not storage.is_local(uri):
        return []
    folder = Path(uri)
    return [each for each in (folder, *folder.parents) if not each.exists()]


def _remove_folders(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # another process writes there already
            folder.rmdir()
