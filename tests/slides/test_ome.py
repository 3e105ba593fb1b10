"""OME-TIFF in its forms: several images, planes, a page for each colour; pixels equal those of tifffile."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from milcore.cohort.manifest import Slide
from milcore.config import IngestConfig
from milcore.errors import SlideError
from milcore.ingestion.slide import ingest_slide
from milcore.slides import open_slide
from milcore.slides.ome import read_ome_xml
from milcore.store.store import PatchStore

EDGE = 128
TILED: dict[str, Any] = {"tile": (EDGE, EDGE), "compression": "zstd"}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Stained, 384 x 512, with another gradient in each colour."""
    y, x = np.mgrid[:384, :512]
    return np.stack([150 + x * 0.1, 60 + y * 0.2, 120 + (x + y) * 0.1], -1).astype(np.uint8)


def of_scale(mpp: float | None, **more: Any) -> dict[str, Any]:
    sizes = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    return {**sizes, **more}


def halved(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    return pixels.reshape(height, 2, width, 2, 3).mean((1, 3)).astype(np.uint8)


def write_images(path: Path, images: Sequence[tuple[np.ndarray, float | None]], **how: Any) -> Path:
    """An OME-TIFF of images, each with its halving as a SubIFD."""
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for image, mpp in images:
            metadata = of_scale(mpp, axes="YXS")
            tiff.write(image, subifds=1, metadata=metadata, photometric="rgb", **TILED | how)
            tiff.write(halved(image), subfiletype=1, photometric="rgb", **TILED | how)
    return path


def test_the_largest_image_is_read_with_its_own_scale_and_levels(tmp_path: Path, pixels: np.ndarray) -> None:
    """The macro comes first, the way some exports have it."""
    macro = np.full((96, 128, 3), 230, np.uint8)
    with open_slide(write_images(tmp_path / "a.ome.tiff", [(macro, 4.0), (pixels, 0.5)])) as slide:
        assert (slide.backend, slide.size) == ("tiff:ome", (512, 384))
        assert slide.mpp == pytest.approx(0.5)
        assert slide.level_downsamples == (1.0, 2.0)
        assert slide.unread_images == ((128, 96),)
        np.testing.assert_array_equal(slide.read(0, 0, 0, 512, 384), pixels)
        np.testing.assert_array_equal(slide.read(0, 0, 1, 256, 192), halved(pixels))


def test_a_second_region_of_the_same_shape_is_no_level_of_the_first(tmp_path: Path, pixels: np.ndarray) -> None:
    region = np.ascontiguousarray(255 - pixels[:288, :384])
    with open_slide(write_images(tmp_path / "a.ome.tiff", [(region, 0.5), (pixels, 0.5)])) as slide:
        assert slide.level_downsamples == (1.0, 2.0)
        assert slide.unread_images == ((384, 288),)
        np.testing.assert_array_equal(slide.read(0, 0, 1, 256, 192), halved(pixels))


def test_an_image_of_the_same_extent_is_a_level(tmp_path: Path, pixels: np.ndarray) -> None:
    """Some writers describe every level as an image of its own."""
    with tifffile.TiffWriter(tmp_path / "a.ome.tiff", ome=True) as tiff:
        for image, mpp in ((pixels, 0.5), (halved(pixels), 1.0)):
            tiff.write(image, metadata=of_scale(mpp, axes="YXS"), photometric="rgb", **TILED)
    with open_slide(tmp_path / "a.ome.tiff") as slide:
        assert (slide.level_downsamples, slide.unread_images) == ((1.0, 2.0), ())


@pytest.mark.parametrize(
    "how",
    [{}, {"compression": "lzw", "predictor": True}, {"compression": None}, {"compression": "jpeg"},
     {"compression": "jpeg2000", "compressionargs": {"level": 0}}],
    ids=["zstd", "lzw", "none", "jpeg", "jpeg2000"],
)  # fmt: skip
@pytest.mark.parametrize("ome", [True, False])
def test_planes_of_one_page_are_read(tmp_path: Path, pixels: np.ndarray, how: dict[str, Any], ome: bool) -> None:
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    metadata = of_scale(0.5, axes="SYX") if ome else None
    tifffile.imwrite(
        tmp_path / "a.ome.tiff", planes, photometric="rgb", planarconfig="separate", metadata=metadata, ome=ome,
        resolution=(20_000, 20_000), resolutionunit=3, **TILED | how,
    )  # fmt: skip
    expected = np.moveaxis(tifffile.imread(tmp_path / "a.ome.tiff", key=0), 0, -1)
    assert np.abs(expected.astype(int) - pixels).max() <= 6
    with open_slide(tmp_path / "a.ome.tiff") as slide:
        assert (slide.backend, slide.mpp) == ("tiff:ome" if ome else "tiff:generic", pytest.approx(0.5))
        np.testing.assert_array_equal(slide.read(0, 0, 0, EDGE, EDGE), expected[:EDGE, :EDGE])
        np.testing.assert_array_equal(slide.read(100, 90, 0, 300, 250), expected[90:340, 100:400])


def write_pages(path: Path, channels: Sequence[np.ndarray], levels: int = 0, **how: Any) -> Path:
    """An OME-TIFF with a page for each channel, and the halvings of each as SubIFDs."""
    metadata = of_scale(0.5, axes="CYX", **how.pop("metadata", {}))
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(np.stack(channels), subifds=levels, metadata=metadata, photometric="minisblack", **TILED | how)
        for level in range(1, levels + 1):
            small = [channel[:: 2**level, :: 2**level] for channel in channels]
            tiff.write(np.stack(small), subfiletype=1, photometric="minisblack", **TILED | how)
    return path


@pytest.mark.parametrize("how", [{}, {"compression": "jpeg"}, {"tile": None}], ids=["tiles", "jpeg", "strips"])
@pytest.mark.parametrize("names", [None, ("Red", "Green", "Blue"), ("Blue", "Green", "Red"), ("C:0", "C:1", "C:2")])
def test_a_page_for_each_colour_is_read(
    tmp_path: Path, pixels: np.ndarray, names: tuple[str, ...] | None, how: dict[str, Any]
) -> None:
    order = [2, 1, 0] if names and names[0] == "Blue" else [0, 1, 2]
    metadata = {} if names is None else {"Channel": {"Name": list(names)}}
    path = tmp_path / "a.ome.tiff"
    write_pages(path, [pixels[..., k] for k in order], 0 if "tile" in how else 1, metadata=metadata, **how)
    with open_slide(path) as slide:
        assert (slide.mpp, slide.unread_images) == (pytest.approx(0.5), ())
        assert np.abs(slide.read(100, 90, 0, 300, 250).astype(int) - pixels[90:340, 100:400]).max() <= 6
        if "tile" not in how:
            assert slide.level_downsamples == (1.0, 2.0)
            assert np.abs(slide.read(0, 0, 1, 256, 192).astype(int) - pixels[::2, ::2]).max() <= 6


@pytest.mark.parametrize("name", ["macro", "Slide overview", "Label image", "thumbnail"])
def test_a_picture_of_the_glass_is_no_level_though_it_has_the_slide_s_extent(
    tmp_path: Path, pixels: np.ndarray, name: str
) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tiff", ome=True) as tiff:
        for image, mpp, of_image in ((halved(pixels), 1.0, name), (pixels, 0.5, "slide")):
            tiff.write(image, metadata=of_scale(mpp, axes="YXS", Name=of_image), photometric="rgb", **TILED)
    with open_slide(tmp_path / "a.ome.tiff") as slide:
        assert (slide.level_downsamples, slide.unread_images) == ((1.0,), ((256, 192),))


def test_a_page_for_each_fluorophore_is_no_colour_slide(tmp_path: Path, pixels: np.ndarray) -> None:
    metadata = {"Channel": {"Name": ["DAPI", "FITC", "Cy5"]}}
    write_pages(tmp_path / "a.ome.tiff", list(np.moveaxis(pixels, -1, 0)), metadata=metadata)
    with (
        pytest.raises(SlideError, match="1 sample a pixel: greyscale or fluorescence"),
        open_slide(tmp_path / "a.ome.tiff"),
    ):
        pass


def test_an_image_that_is_not_read_is_told_and_recorded(
    tmp_path: Path, pixels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    region = np.ascontiguousarray(pixels[:256, :384])
    path = write_images(tmp_path / "a.ome.tiff", [(pixels, 0.5), (region, 0.5)])
    store = PatchStore(str(tmp_path / "store"))
    slide = Slide("a", str(path), 0, "a", "", None, None, None)
    assert ingest_slide(slide, store, IngestConfig(patch_size=64)).status == "ok"
    line = "a: of 2 images in the file the largest is read, 512 x 384 px; not read: 384 x 256 px"
    assert line in capsys.readouterr().err
    record = store.slide("a").record
    assert record.scan is not None
    assert record.scan.unread_images == [[384, 256]]


IMAGE = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Instrument ID="I:0">'
    '<Objective ID="O:0" NominalMagnification="40"/></Instrument><Image ID="Image:0"><ObjectiveSettings ID="O:0"/>'
    '<Pixels SizeX="9" SizeY="8" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="250" PhysicalSizeXUnit="nm" '
    'PhysicalSizeY="2.5E-4" PhysicalSizeYUnit="mm"><Channel/><Channel/><Channel/>{data}</Pixels></Image></OME>'
)


@pytest.mark.parametrize(
    ("data", "pages"),
    [
        ("<TiffData/>", (0, 1, 2)),
        ('<TiffData IFD="4"/>', (4,)),
        ('<TiffData IFD="4" PlaneCount="3"/>', (4, 5, 6)),
        ('<TiffData IFD="7" FirstC="0"/><TiffData IFD="5" FirstC="1"/><TiffData IFD="6" FirstC="2"/>', (7, 5, 6)),
        ('<TiffData IFD="1"><UUID FileName="other">urn:uuid:2</UUID></TiffData>', ()),
        ('<TiffData IFD="1"><UUID FileName="renamed">urn:uuid:1</UUID></TiffData>', (1,)),
        ("", ()),
    ],
)
def test_pages_of_an_image_are_those_of_its_planes_in_this_file(data: str, pages: tuple[int, ...]) -> None:
    (image,) = read_ome_xml(IMAGE.format(data=data))
    assert image.pages == pages
    assert image.colour_pages == (pages if len(pages) == 3 else ())
    assert (image.size, image.magnification) == ((9, 8), 40.0)
    assert image.mpp == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize(
    "xml",
    [
        "<OME>",
        "<OME/>",
        '<!DOCTYPE a [<!ENTITY b "c">]><OME>&b;</OME>',
        IMAGE.format(data='<TiffData IFD="x"/>'),
        IMAGE.format(data="").replace('SizeX="9"', 'SizeX="nine"'),
    ],
)
def test_damaged_xml_describes_no_image(xml: str) -> None:
    assert read_ome_xml(xml) == ()


def test_a_number_of_planes_beyond_all_images_takes_no_memory() -> None:
    (image,) = read_ome_xml(IMAGE.format(data="<TiffData/>").replace('SizeZ="1"', 'SizeZ="999999999"'))
    assert len(image.pages) <= 4096
