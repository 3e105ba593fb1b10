"""TensorBoard event files in ``<run>/tensorboard``: one scalar per metric and epoch.

On a local disk the file grows in place; elsewhere it is written anew after every epoch. A resumed run starts another
file, and TensorBoard discards the events of older files from the epoch at which it starts.
"""

import math
import struct
import time
from pathlib import Path
from typing import Any

import google_crc32c

from milcore.runtime import storage
from milcore.runtime.progress import EpochObserver, EpochProgress, log_line
from milcore.training.run_folder import Run

# ruff: noqa: PLC0415 - tensorboardX imports a cloud's storage client, for seconds


class EventFile:
    """TensorBoard event file of a run.

    Args:
        run_uri: the run folder.
    """

    def __init__(self, run_uri: str) -> None:
        self._uri = storage.join(Run(run_uri).tensorboard_uri, f"events.out.tfevents.{time.time_ns()}")
        self._content = b""
        self._in_place = False

    def show(self, epoch: int, metrics: dict[str, float]) -> None:
        """Write the defined metrics of an epoch, ``<split>_<metric>``, as scalars ``<split>/<metric>``."""
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        defined = {name.replace("_", "/", 1): value for name, value in metrics.items() if math.isfinite(value)}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in defined.items()]
        records = _record(epoch, summary=Summary(value=values))
        if not self._content:
            start = _record(epoch, session_log=SessionLog(status="START"))
            records = _record(0, file_version="brain.Event:2") + start + records
        self._content += records
        try:
            self._append(records)
            self._in_place = storage.is_local(self._uri)
        except storage.IO_ERRORS as error:
            self._in_place = False  # the file may hold a part of the records
            log_line(f"no TensorBoard figures of epoch {epoch + 1} yet: {error}")

    def _append(self, records: bytes) -> None:
        """Append to a local file; write any other anew."""
        if not self._in_place:
            storage.write_bytes(self._uri, self._content)
            return
        with Path(storage.absolute(self._uri)).open("ab") as file:
            file.write(records)


def _record(step: int, **content: Any) -> bytes:
    """An event as a TFRecord.

    Length, checksum of the length, data, checksum of the data.
    """
    from tensorboardX.proto.event_pb2 import Event

    data: bytes = Event(wall_time=time.time(), step=step, **content).SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


class RunObserver:
    """Observer of a run that logs epochs to standard error and its event file.

    Args:
        run_uri: the run folder.
        epochs: most that are trained.
        label: start of every log line.
    """

    def __init__(self, run_uri: str, epochs: int, label: str = "") -> None:
        self._observers: tuple[EpochObserver, ...] = (EpochProgress(epochs, label), EventFile(run_uri))

    def show(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log the metrics of an epoch."""
        for observer in self._observers:
            observer.show(epoch, metrics)
