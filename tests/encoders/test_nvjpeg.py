"""nvJPEG is asked for by name, refused in one line where it is not, and gives libjpeg's pixels up to two levels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from milcore.encoders.frozen import FrozenEncoder
from milcore.encoders.nvjpeg import nvjpeg
from milcore.encoders.spec import parse_spec
from milcore.errors import InputError, StoreError
from milcore.store.jpeg_codec import decode_into
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from tests.cohorts import write_store

PX = 16


def slide(folder: Path) -> SlideGroup:
    """Forty patches of colours that change slowly, as JPEG."""
    rows, columns = np.mgrid[:PX, :PX]
    with PatchStore(str(folder)).writer(SlideRecord("a", patch_size_level0=float(PX)), PX, "jpeg", 90) as writer:
        for place in range(40):
            patch = np.stack([rows * 8 + place, columns * 8 + place, rows + columns + 2 * place], axis=2)
            writer.append(patch.astype(np.uint8), place * PX, 0, 1.0)
        writer.write_thumbnail(np.zeros((PX, PX, 3), np.uint8))
    return PatchStore(str(folder)).slide("a")


def test_a_slide_hands_out_the_jpeg_files_it_is_stored_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over shards, too, and each decodes to the patch that the store reads."""
    monkeypatch.setattr("milcore.store.shards.SHARD_MB", 15 * PX * PX * 3 / 5e6)
    made = slide(tmp_path)
    assert len(list(Path(made.uri, "patches", "c").iterdir())) == 3
    files, patch = made.jpegs(10, 35), np.empty((PX, PX, 3), np.uint8)
    assert len(files) == 25
    for file, expected in zip(files, made.patches(10, 35), strict=True):
        assert file[:2].tolist() == [0xFF, 0xD8]
        decode_into(file, "jpeg", patch)
        np.testing.assert_array_equal(patch, expected)


def test_patches_that_are_no_jpeg_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="got codec none; allowed: jpeg"):
        write_store(str(tmp_path), slides=1).slide("s00").jpegs(0, 1)


def test_without_a_gpu_it_is_refused_in_one_line() -> None:
    with pytest.raises(
        InputError, match="decode: expected a GPU for nvjpeg, got none; add --use-gpu, or take decode=cpu"
    ):
        FrozenEncoder(parse_spec("efficientnet_lite0,decode=nvjpeg"), torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_it_gives_libjpeg_s_pixels_up_to_two_levels(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    made = slide(tmp_path)
    decoded = nvjpeg("test", torch.device("cuda"))(made.jpegs(0, 40)).cpu().int()
    assert (decoded - torch.from_numpy(made.patches(0, 40)).int()).abs().max() <= 2
