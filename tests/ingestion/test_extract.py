"""What is stored of a slide is what an independent reader sees there, whatever the codec and the number of threads."""

import io
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from milcore.cohort.manifest import Slide
from milcore.config import Codec, IngestConfig
from milcore.ingestion.extract import PatchEncoding, choose_encoding, extract
from milcore.ingestion.slide import ingest_slide
from milcore.ingestion.tiling import TilePlan, plan_tiles
from milcore.slides import open_slide
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.jpeg_codec import decode_into
from milcore.store.slide_group import SlideGroup
from milcore.store.store import PatchStore


def _ingest(path: Path, folder: Path, **settings: object) -> SlideGroup:
    store = PatchStore(str(folder / "store"))
    slide = Slide("a", str(path), 0, "a", "", None, None, None)
    outcome = ingest_slide(slide, store, IngestConfig(**settings), threads=2)  # type: ignore[arg-type]
    assert outcome.reason is None
    return store.slide("a")


def _openslide(path: Path, slide: SlideGroup) -> np.ndarray:
    edge = slide.patch_size
    with openslide.OpenSlide(str(path)) as handle:
        regions = [handle.read_region((int(x), int(y)), 0, (edge, edge)).convert("RGB") for x, y in slide.coords]
    return np.stack([np.asarray(region) for region in regions])


@pytest.mark.parametrize(("name", "edge"), [("CMU-1-Small-Region.svs", 240), ("CMU-1-Small-Region.svs", 224),
                                            ("pyramid_generic.tiff", 256), ("pyramid_generic.tiff", 300)])  # fmt: skip
@pytest.mark.parametrize("codec", ["zstd", "passthrough"])
def test_stored_patches_are_what_openslide_reads(
    shared_data: Path, tmp_path: Path, name: str, edge: int, codec: Codec
) -> None:
    """Passthrough is exact on the grid of the file's own tiles; beside it it becomes JPEG, and says so."""
    path = shared_data / "slides" / name
    slide = _ingest(path, tmp_path, patch_size=edge, codec=codec)
    stored, expected = slide.patches(0, len(slide)).astype(int), _openslide(path, slide)
    if codec == "zstd" or edge in {240, 256}:
        assert slide.record.codec == codec
        np.testing.assert_array_equal(stored, expected)
    else:
        assert slide.record.codec == "jpeg"
        assert "no JPEG tiles of" in str(slide.record.scan.codec_instead)
        assert np.abs(stored - expected).mean() < 2


def test_jpeg_patches_differ_by_jpeg_s_error_only(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "slides/CMU-1-Small-Region.svs"
    slide = _ingest(path, tmp_path, codec="jpeg")
    error = np.abs(slide.patches(0, len(slide)).astype(int) - _openslide(path, slide))
    assert 0 < error.mean() < 2


@pytest.mark.parametrize("settings", [{"codec": "jpeg"}, {"codec": "none"}, {"mpp": 1.0}, {"border": "pad"}], ids=str)
def test_openslide_and_native_tiles_give_the_same_bytes(
    shared_data: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    path = shared_data / "slides/CMU-1-Small-Region.svs"
    native, through = (_ingest(path, tmp_path / name, reader=name, **settings) for name in ("tiff", "openslide"))
    assert through.record.scan.reader.startswith("openslide")
    assert len(native) == len(through)
    np.testing.assert_array_equal(native.patches(0, len(native)), through.patches(0, len(through)))


def test_threads_lose_no_tile_beside_a_damaged_one(shared_data: Path) -> None:
    """OpenSlide refuses a handle to all threads once one of them has met damage."""
    config = IngestConfig(mpp=0.499, patch_size=240)
    with open_slide(shared_data / "slides/corrupt_tiles.svs", "openslide") as reader:
        plan = plan_tiles(reader.size, 0.499, np.ones((4, 4), bool), config)
        alone = list(extract(reader, plan, config, PatchEncoding("jpeg"), 1))
        assert 0 < alone.count(None) < len(alone)
        for _ in range(3):
            assert list(extract(reader, plan, config, PatchEncoding("jpeg"), 4)) == alone


def test_an_ome_tiff_is_what_tifffile_reads(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "slides/pyramid.ome.tiff"
    slide = _ingest(path, tmp_path, codec="zstd")
    whole = tifffile.imread(path, series=0, level=0)
    for patch, (x, y) in zip(slide.patches(0, len(slide)), slide.coords, strict=True):
        np.testing.assert_array_equal(patch, whole[y : y + 256, x : x + 256])


@pytest.mark.parametrize("inside", ["rgb", "ycbcr"])
def test_a_passed_tile_is_true_in_any_jpeg_decoder(tmp_path: Path, inside: str) -> None:
    """RGB tiles without the APP14 marker would show false colours; Pillow is not the decoder that wrote them."""
    y, x = np.mgrid[:512, :512]
    pixels = np.stack([x / 2, y / 2, np.full_like(x, 40, float)], -1).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tiff", pixels, tile=(256, 256), photometric="rgb", compression="jpeg",
        compressionargs={"level": 95, "outcolorspace": inside}, resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
    )  # fmt: skip
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        assert tiff.pages[0].photometric.name.lower() == inside
    config = IngestConfig(codec="passthrough")
    with open_slide(tmp_path / "a.tiff") as reader:
        plan = plan_tiles(reader.size, 0.5, np.ones((4, 4), bool), config)
        assert choose_encoding(reader, plan, config).codec == "passthrough"
        chunks = list(extract(reader, plan, config, PatchEncoding("passthrough"), 1))
    for chunk, (left, top) in zip(chunks, plan.coords, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(chunk or b"")).convert("RGB")).astype(int)
        assert np.abs(shown - pixels[top : top + 256, left : left + 256]).max() <= 6


def test_tiles_whose_colour_space_only_the_tiff_names_are_read(shared_data: Path, tmp_path: Path) -> None:
    """As libtiff writes them, without JFIF: the segment becomes a comment of the same length."""
    data = (shared_data / "slides/pyramid_generic.tiff").read_bytes()
    assert b"\xff\xe0\x00\x10JFIF" in data
    path = tmp_path / "a.tiff"
    path.write_bytes(data.replace(b"\xff\xe0\x00\x10JFIF", b"\xff\xfe\x00\x10JFIF"))
    for codec in ("zstd", "passthrough"):
        slide = _ingest(path, tmp_path / codec, codec=codec)
        assert slide.record.scan.reader == "tiff:generic"
        assert slide.record.codec == codec
        np.testing.assert_array_equal(slide.patches(0, len(slide)), _openslide(path, slide))


def test_threads_change_neither_order_nor_bytes(shared_data: Path) -> None:
    config = IngestConfig(patch_size=100)
    with open_slide(shared_data / "slides/CMU-1-Small-Region.svs") as reader:
        plan = plan_tiles(reader.size, 0.5, np.ones((4, 4), bool), config)
        alone = list(extract(reader, plan, config, PatchEncoding("jpeg"), 1))
    with open_slide(shared_data / "slides/CMU-1-Small-Region.svs") as reader:
        assert list(extract(reader, plan, config, PatchEncoding("jpeg"), 4)) == alone


def test_each_native_tile_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches of 100 px cut 16 tiles of 256 px in pieces, on three threads."""
    write_pyramid(tmp_path / "a.tiff", np.full((1024, 1024, 3), 90, np.uint8), 0.5, 1)
    config = IngestConfig(patch_size=100)
    decoded = []
    with open_slide(tmp_path / "a.tiff") as reader:
        level = reader._levels[0]  # type: ignore[attr-defined]
        original = level.decode
        monkeypatch.setattr(level, "decode", lambda tile, data: decoded.append(tile[1:]) or original(tile, data))
        plan = plan_tiles(reader.size, 0.5, np.ones((4, 4), bool), config)
        assert len(list(extract(reader, plan, config, PatchEncoding("none"), 3))) == 100
    assert sorted(decoded) == [(column, row) for column in range(4) for row in range(4)]


def test_a_damaged_tile_is_noticed_without_decoding_it(shared_data: Path) -> None:
    config = IngestConfig(patch_size=240, codec="passthrough")
    with open_slide(shared_data / "slides/corrupt_tiles.svs") as reader:
        plan = plan_tiles(reader.size, 0.5, np.ones((4, 4), bool), config)
        passed = list(extract(reader, plan, config, PatchEncoding("passthrough"), 1))
        decoded = list(extract(reader, plan, config, PatchEncoding("none"), 1))
    assert [chunk is None for chunk in passed] == [chunk is None for chunk in decoded]
    assert None in passed


@pytest.mark.parametrize("mpp", [0.25, 0.325, 0.5])
def test_a_landmark_lies_at_its_micron_whatever_the_scan(tmp_path: Path, mpp: float) -> None:
    """A dark disc of 6 um around (101, 83) um, drawn at each scan's own scale: found within half a px of 0.5 um."""
    edge = round(200 / mpp)
    y, x = (np.mgrid[:edge, :edge] + 0.5) * mpp
    pixels = np.where((np.hypot(x - 101, y - 83) < 6)[..., None], (40, 20, 60), (220, 150, 190)).astype(np.uint8)
    write_pyramid(tmp_path / "a.tiff", pixels, mpp, 2, quality=95)
    slide = _ingest(tmp_path / "a.tiff", tmp_path, patch_size=64, codec="zstd", min_tissue=0.0)
    mass, moment = 0.0, np.zeros(2)
    for patch, (left, top) in zip(slide.patches(0, len(slide)), slide.coords, strict=True):
        dark = np.clip(220.0 - patch[..., 0], 0, None) * (patch[..., 0] < 130)
        v, u = np.mgrid[:64, :64] + 0.5
        mass += dark.sum()
        moment += (dark * (left * mpp + u * 0.5)).sum(), (dark * (top * mpp + v * 0.5)).sum()
    np.testing.assert_allclose(moment / mass, (101, 83), atol=0.25)


def test_a_plan_holds_no_slide() -> None:
    """The same size, scale and mask give the same plan."""
    mask = np.random.default_rng(0).random((9, 7)) > 0.3
    plans = [plan_tiles((5000, 4000), 0.25, mask, IngestConfig()) for _ in range(2)]
    assert isinstance(plans[0], TilePlan)
    np.testing.assert_array_equal(plans[0].coords, plans[1].coords)


def test_a_raw_chunk_is_the_pixels(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", np.full((64, 64, 3), (9, 8, 7), np.uint8), 0.5, 1, quality=100)
    config = IngestConfig(patch_size=64)
    with open_slide(tmp_path / "a.tiff") as reader:
        plan = plan_tiles(reader.size, 0.5, np.ones((1, 1), bool), config)
        (chunk,) = extract(reader, plan, config, PatchEncoding("none"), 1)
    patch = np.empty((64, 64, 3), np.uint8)
    decode_into(chunk or b"", "none", patch)
    assert np.abs(patch.astype(int) - (9, 8, 7)).max() <= 2
