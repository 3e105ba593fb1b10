"""TensorBoard event files, read back by tensorboardX's messages and checksums of its own."""

import math
import struct
import uuid
from pathlib import Path

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from milcore.runtime import storage
from milcore.training.tensorboard import EventFile


def masked_crc32c(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scalars(folder_uri: str) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every file of a folder, in order: records of length, its checksum, data, its checksum."""
    values = []
    for name in storage.names(folder_uri):
        data, place = storage.read_bytes(storage.join(folder_uri, name)), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            framed = [data[place : place + 8], data[place + 12 : place + 12 + length]]
            sums = [data[place + 8 : place + 12], data[place + 12 + length : place + 16 + length]]
            assert [struct.pack("<I", masked_crc32c(part)) for part in framed] == sums
            event = Event.FromString(data[place + 12 : place + 12 + length])
            values += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += 12 + length + 4
    return values


@pytest.mark.parametrize("where", ["local", "s3"])
def test_every_figure_of_every_epoch_is_a_scalar(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = str(tmp_path) if where == "local" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    events = EventFile(run)
    events.show(0, {"train_loss": 0.5, "val_auroc": math.nan, "train_bags_per_sec": 8.0})
    events.show(1, {"train_loss": 0.25, "val_auroc": 0.75, "train_bags_per_sec": 8.0})
    assert scalars(storage.join(run, "tensorboard")) == [
        ("train/loss", 0, 0.5),
        ("train/bags_per_sec", 0, 8.0),
        ("train/loss", 1, 0.25),
        ("val/auroc", 1, 0.75),
        ("train/bags_per_sec", 1, 8.0),
    ]


def test_a_place_that_cannot_be_written_costs_the_figures_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    EventFile(str(tmp_path)).show(0, {"train_loss": 0.5})
    assert "no TensorBoard figures of epoch 1" in capfd.readouterr().err
