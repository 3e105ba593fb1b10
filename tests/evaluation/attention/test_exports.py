"""A known patch is found at its place in every form of attention, and other programs can read each."""

import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import openslide
import pyarrow as pa
import pytest
import tifffile
import zarr
from geojson_pydantic import FeatureCollection
from PIL import Image

from milcore.config import ATTENTION_FORMATS, AnnotationOrigin
from milcore.evaluation.attention.exports import HeatMap, geojson, heat_factor, ome_tiff
from milcore.evaluation.attention.maps import RAMP, attention_table, colour_of
from milcore.evaluation.attention.write import AttentionFiles, AttentionFolder, write_attention
from milcore.runtime import storage
from milcore.store.slide_record import SlideMpp, SlideRecord
from milcore.store.store import PatchStore

SIZE = (4096, 2048)
EDGE = 256.0
COORDS = np.array([(x, y) for y in range(0, 2048, 256) for x in range(0, 4096, 256)])
KNOWN = 37  # column 5, row 2
WEIGHT = np.where(np.arange(128) == KNOWN, 1.0, 0.1) / (1 + 12.7)
LEFT, TOP = 1280, 512


@pytest.fixture
def folder(tmp_path):
    store = PatchStore(str(tmp_path / "store"))
    mpp = SlideMpp(0.25, None, 0.5, "slide")
    with store.writer(SlideRecord("s", patch_size_level0=EDGE, size_level0=SIZE, mpp=mpp), 16, "none", 90) as writer:
        for x, y in COORDS:
            writer.append(np.zeros((16, 16, 3), np.uint8), int(x), int(y), 1.0)
        writer.write_thumbnail(np.full((128, 256, 3), 250, np.uint8))
    files = AttentionFiles(ATTENTION_FORMATS, "bounds")
    folder = AttentionFolder(str(tmp_path / "attention"), files)
    write_attention(folder, store.slide("s"), WEIGHT, {"score": np.log(WEIGHT)})
    return tmp_path / "attention"


def brightest(picture: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels nearest to the end of the colour ramp."""
    near = np.abs(picture[..., :3].astype(float) - RAMP[-1]).sum(axis=-1) < 12
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_the_known_patch_lies_at_its_place_in_every_form(folder) -> None:
    table = storage.read_table(str(folder / "s.parquet"))
    row = table.slice(int(np.argmax(table["weight"].to_numpy())), 1).to_pylist()[0]
    assert (row["x"], row["y"], row["size"]) == (LEFT, TOP, EDGE)
    group = zarr.open_group(str(folder / "s.zarr"), mode="r")
    place = int(np.argmax(group["weight"][...]))
    assert (place, group["x"][place], group["y"][place]) == (KNOWN, LEFT, TOP)
    assert group["score"][place] == pytest.approx(np.log(WEIGHT[KNOWN]))
    assert group.attrs["complete"]
    features = json.loads((folder / "s.geojson").read_bytes())["features"]
    top = max(features, key=lambda feature: feature["properties"]["measurements"]["Attention weight"])
    assert top["geometry"]["coordinates"][0][0] == [LEFT, TOP]
    assert top["geometry"]["coordinates"][0][2] == [LEFT + EDGE, TOP + EDGE]
    with tifffile.TiffFile(folder / "s.ome.tiff") as tiff:
        factor = SIZE[0] // tiff.pages[0].imagewidth
        assert brightest(tiff.pages[0].asarray()) == tuple(v // factor for v in (LEFT, TOP, LEFT + 256, TOP + 256))
    # over the thumbnail the ramp is blended, so the patch is where the picture is least like the paper
    picture = np.asarray(Image.open(folder / "s.png")).astype(int)
    changed = (250 - picture[..., 2]) > 120
    assert (np.flatnonzero(changed.any(axis=0))[0], np.flatnonzero(changed.any(axis=1))[0]) == (LEFT // 16, TOP // 16)


@pytest.mark.parametrize(("origin", "corner", "size"), [("bounds", (1000, 200), (3000, 1800)), ("slide", (0, 0), SIZE)])
def test_what_viewers_draw_begins_at_the_bounds_and_tables_at_the_slide(
    tmp_path: Path, origin: AnnotationOrigin, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    store = PatchStore(str(tmp_path / "store"))
    record = SlideRecord("s", patch_size_level0=EDGE, size_level0=SIZE, bounds=(1000, 200, 3000, 1800))
    with store.writer(record, 16, "none", 90) as writer:
        for x, y in COORDS:
            writer.append(np.zeros((16, 16, 3), np.uint8), int(x), int(y), 1.0)
    files = AttentionFiles(("parquet", "geojson", "ome-tiff"), origin)
    write_attention(AttentionFolder(str(tmp_path), files), store.slide("s"), WEIGHT)
    table = storage.read_table(str(tmp_path / "s.parquet"))
    assert (table["x"][KNOWN].as_py(), table["y"][KNOWN].as_py()) == (LEFT, TOP)
    left, top = LEFT - corner[0], TOP - corner[1]
    feature = json.loads((tmp_path / "s.geojson").read_bytes())["features"][KNOWN]
    assert feature["geometry"]["coordinates"][0][0] == [left, top]
    with tifffile.TiffFile(tmp_path / "s.ome.tiff") as tiff:
        page = tiff.pages[0]
        assert (page.imagewidth, page.imagelength) == tuple(-(-edge // 16) for edge in size)
        expected = tuple(round(edge / 16) for edge in (left, top, left + EDGE, top + EDGE))
        assert brightest(page.asarray()) == expected


def test_geojson_keeps_rfc_7946_and_names_what_qupath_reads(folder) -> None:
    collection = FeatureCollection.model_validate_json((folder / "s.geojson").read_bytes())
    assert len(collection.features) == len(COORDS)
    for feature in collection.features:
        ring = feature.geometry.coordinates[0]
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2
        assert area == EDGE**2  # counter-clockwise by the right-hand rule of section 3.1.6
        assert feature.properties["objectType"] == "tile"
        assert {"Attention weight", "Attention percentile", "Attention score"} <= feature.properties[
            "measurements"
        ].keys()
    assert len({feature.id for feature in collection.features}) == len(COORDS)
    assert b"NaN" not in (folder / "s.geojson").read_bytes()


def test_the_heat_map_is_a_pyramid_of_the_slide_s_size_and_scale(folder) -> None:
    factor = heat_factor(EDGE)
    assert factor == 16
    with tifffile.TiffFile(folder / "s.ome.tiff") as tiff:
        assert tiff.is_ome
        series = tiff.series[0]
        page = series.levels[0].pages[0]
        assert (page.imagewidth * factor, page.imagelength * factor) == SIZE
        assert page.is_tiled
        assert f'PhysicalSizeX="{0.25 * factor}"' in tiff.ome_metadata
    slide = openslide.OpenSlide(str(folder / "s.ome.tiff"))
    assert slide.dimensions == (256, 128)
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25 * factor)
    assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25 * factor)


def test_a_larger_map_has_its_halvings_and_equal_input_gives_equal_bytes() -> None:
    size = (20_001, 9_000)
    coords = np.array([(0, 0), (19_000, 8_000)])
    table = attention_table(coords, 100.0, np.array([0.3, 0.7]), None)
    files = [ome_tiff("s", HeatMap(size, table), 0.5) for _ in range(2)]
    assert files[0] == files[1]
    with tifffile.TiffFile(io.BytesIO(files[0])) as tiff:
        widths = [level.pages[0].imagewidth for level in tiff.series[0].levels]
    assert widths == [5001, 2501, 1251, 626, 313, 157]


def test_unknown_scores_are_left_out_of_the_measurements() -> None:
    table = attention_table(COORDS[:1], EDGE, np.ones(1), None, {"leave_one_out": np.array([np.nan])})
    (feature,) = json.loads(geojson("s", table))["features"]
    assert set(feature["properties"]["measurements"]) == {"Attention weight", "Attention percentile"}


def random_table(size: tuple[int, int], edge: float, count: int) -> pa.Table:
    generator = np.random.default_rng(0)
    coords = np.stack([generator.integers(-20, side, count) for side in size], axis=1)
    return attention_table(coords, edge, generator.random(count), None)


@pytest.mark.parametrize(
    ("size", "edge"), [((5_003, 2_777), 23.0), ((777, 70_001), 40.0), ((300, 200), 500.0), ((1, 1), 20.0)]
)
def test_every_level_is_the_mean_of_the_whole_picture_painted_at_once(size: tuple[int, int], edge: float) -> None:
    table = random_table(size, edge, 400)
    heat = HeatMap(size, table)
    picture = np.full((heat.height, heat.width, 3), 255, np.uint8)
    colours = np.rint(colour_of(table["weight"].to_numpy())).astype(np.uint8)
    for k in np.argsort(table["weight"].to_numpy()):
        x, y = (table[name][k].as_py() / heat.factor for name in "xy")
        side = edge / heat.factor
        rows, columns = (slice(max(round(at), 0), max(round(at + side), 0)) for at in (y, x))
        picture[rows, columns] = colours[k]
    with tifffile.TiffFile(io.BytesIO(ome_tiff("s", heat, None))) as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
    np.testing.assert_array_equal(levels[0], picture)
    assert len(levels) == 1 + max(0, int(np.ceil(np.log2(max(picture.shape) / 256))))
    for number, pixels in enumerate(levels[1:], start=1):
        np.testing.assert_array_equal(pixels, np.asarray(Image.fromarray(picture).reduce(2**number)))


def test_the_largest_slide_of_small_patches_is_drawn_at_half_the_scale() -> None:
    heat = HeatMap((250_000, 200_000), random_table((250_000, 200_000), 16.0, 3))
    assert (heat.factor, heat.width, heat.height) == (4, 62_500, 50_000)
    assert HeatMap((250_000, 200_000), random_table((250_000, 200_000), 256.0, 3)).factor == heat_factor(256.0) == 16


def test_memory_of_a_heat_map_is_that_of_its_bands() -> None:
    """Of 16,000 px square; the picture alone has 768 MB, the process begins with some 200."""
    script = (
        "import re, numpy as np\n"
        "from milcore.evaluation.attention.exports import HeatMap, ome_tiff\n"
        "from milcore.evaluation.attention.maps import attention_table\n"
        "table = attention_table(np.array([(0, 0), (15_000, 9_000)]), 20.0, np.array([0.3, 0.7]), None)\n"
        "ome_tiff('s', HeatMap((16_000, 16_000), table), 0.5)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    peak = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(peak) / 1e3 < 600


def attention_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.iterdir())


def test_attention_written_again_keeps_no_column_of_before_and_the_files_of_other_slides(folder, tmp_path) -> None:
    slide = PatchStore(str(tmp_path / "store")).slide("s")
    (folder / "s.zarr.txt").write_text("mine")
    again = AttentionFolder(str(folder), AttentionFiles(("zarr",), "bounds"))
    write_attention(again, slide, WEIGHT)
    group = zarr.open_group(str(folder / "s.zarr"), mode="r")
    assert sorted(group.array_keys()) == ["percentile", "size", "tissue", "weight", "x", "y"]
    assert not (folder / "s.zarr/score").exists()
    assert "s.zarr.txt" in attention_names(folder)


def test_the_attention_of_one_slide_is_removed_in_every_form(folder) -> None:
    (folder / "s2.png").write_bytes(b"of another")
    (folder / "s2.zarr").mkdir()
    (folder / "s2.zarr/zarr.json").write_bytes(b"{}")
    stored = AttentionFolder(str(folder), AttentionFiles((), "bounds"))
    assert stored.arrays("s") == {"zarr.json", "percentile", "score", "size", "tissue", "weight", "x", "y"}
    assert stored.arrays("absent") == set()
    stored.remove("absent")
    stored.remove("s")
    assert attention_names(folder) == ["s2.png", "s2.zarr"]
