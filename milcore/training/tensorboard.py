"""Training as TensorBoard shows it: event files in ``<run>/tensorboard``, one scalar per figure and epoch.

Locally the file grows in place; elsewhere it is written anew after every epoch. A run that goes on begins a file of its
own, and TensorBoard drops what the older ones say of epochs that are done again.
"""

import math
import struct
import time
from pathlib import Path
from typing import Any

import google_crc32c

from milcore.runtime import storage
from milcore.runtime.progress import EpochProgress, log_line
from milcore.training.run_folder import Run

# ruff: noqa: PLC0415 - tensorboardX imports a cloud's storage client, for seconds


class EventFile:
    """Where the figures of a run's epochs are written.

    Args:
        run_uri: the run folder.
    """

    def __init__(self, run_uri: str) -> None:
        self._uri = storage.join(Run(run_uri).tensorboard_uri, f"events.out.tfevents.{time.time_ns()}")
        self._written = b""
        self._in_place = False

    def show(self, epoch: int, metrics: dict[str, float]) -> None:
        """Write an epoch's figures, ``<split>_<metric>`` each, as ``<split>/<metric>``, without those undefined."""
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        defined = {name.replace("_", "/", 1): value for name, value in metrics.items() if math.isfinite(value)}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in defined.items()]
        new = _record(epoch, summary=Summary(value=values))
        if not self._written:
            start = _record(epoch, session_log=SessionLog(status="START"))
            new = _record(0, file_version="brain.Event:2") + start + new
        self._written += new
        try:
            self._append(new)
            self._in_place = storage.is_local(self._uri)
        except storage.IO_ERRORS as error:
            self._in_place = False  # it may hold a part of the new bytes
            log_line(f"no TensorBoard figures of epoch {epoch + 1} yet: {error}")

    def _append(self, new: bytes) -> None:
        if not self._in_place:
            storage.write_bytes(self._uri, self._written)
            return
        with Path(storage.absolute(self._uri)).open("ab") as file:
            file.write(new)


def _record(step: int, **what: Any) -> bytes:
    """An event as TFRecord frames it: length, its checksum, data, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data: bytes = Event(wall_time=time.time(), step=step, **what).SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


class RunWatch:
    """Shows the epochs of a run on standard error and in its event file.

    Args:
        run_uri: the run folder.
        epochs: at most so many.
        label: begins every line.
    """

    def __init__(self, run_uri: str, epochs: int, label: str = "") -> None:
        self._watches = (EpochProgress(epochs, label), EventFile(run_uri))

    def show(self, epoch: int, metrics: dict[str, float]) -> None:
        """Show an epoch to both."""
        for watch in self._watches:
            watch.show(epoch, metrics)
