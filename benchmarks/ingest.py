"""Patches cut from slides and read back, beside the ways other tools take.

``python -m benchmarks.ingest SLIDE [--json] [--rounds N] [--no-synthetic]``

Cutting is timed with the plan given (planning, and opening and closing a store for one slide, are rows of their own):
every whole native tile of level 0 is a patch, at the slide's own um/px. Methods:

- openslide_hdf5: ``read_region`` and a raw HDF5 dataset of a chunk a patch, for every patch opened, grown by one and
  closed again, the way CLAM's create_patches.py stores patches (``savePatchIter_bag_hdf5`` in wsi_core/wsi_utils.py);
- openslide_hdf5_open: the same into a dataset that has its full length from the start and stays open;
- tiffslide_zarr: tiffslide's ``read_region`` and a Zarr array of a chunk a patch, zarr-python's default codec;
- ours_jpeg, ours_zstd, ours_none, ours_passthrough: ``milcore.ingestion.extract`` into the store's shards;
- ours_openslide_jpeg, ours_openslide_none: the same through the OpenSlide backend, what formats cost that have no
  native tiles; none stores raw pixels as openslide_hdf5 does;
- bare_decode: every native tile read and decoded once and thrown away, the limit of what decodes.

Every method runs in a process of its own on one thread, the methods in turn, so often through the slide that at least
2,000 patches are cut, into one file or array; the slide is opened anew each time, untimed, so that no tile is still
decoded. All processes let glibc keep freed memory. Medians of the rounds are shown. Per core is patches over the
process's CPU seconds, which other work on the machine disturbs least; in all is patches over wall time with a thread
for every core, ours only. MB/s are raw pixels. Memory is the highest resident set of the process, libraries and all.
Reading back is timed in ``benchmarks/reading.py``. The synthetic slide is 20,000 x 20,000 px of stained texture in JPEG
tiles of 256 px, whose quality of 70 gives about as many bytes a pixel as CMU-1-Small-Region.svs has; another by
``--synthetic-quality``.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import imagecodecs
import numpy as np
import openslide
import tifffile
import tiffslide
import zarr
from scipy import ndimage

from benchmarks.memory import resident_mb
from benchmarks.reading import reading_rows
from milcore.config import Codec, IngestConfig, ReaderChoice
from milcore.ingestion.extract import PatchEncoding, extract
from milcore.ingestion.slide import mask_of, thumbnail_edge
from milcore.ingestion.tiling import TilePlan, plan_tiles
from milcore.runtime.limits import cpus
from milcore.runtime.malloc import keep_freed_memory
from milcore.slides import open_slide
from milcore.slides.reader import Pixels
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.shards import ShardWriter
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore

SYNTHETIC_PX = 20_000
FEWEST_PATCHES = 2_000
BASELINES = ("openslide_hdf5", "openslide_hdf5_open")


class Task(NamedTuple):
    """All whole native tiles of a slide, cut into a folder ``passes`` times."""

    path: Path
    plan: TilePlan
    edge: int
    mpp: float
    folder: Path
    threads: int
    passes: int


Step = Callable[[], None]
Cutter = Callable[[Task], Iterator[Step]]


def native_task(path: Path, folder: Path, threads: int) -> Task:
    """Plan whose patches are the native tiles of level 0."""
    with tifffile.TiffFile(path) as tiff:
        edge = tiff.pages[0].tilewidth
    with open_slide(path) as reader:
        mpp = reader.mpp or 0.5
        plan = plan_tiles(reader.size, mpp, np.ones((4, 4), bool), IngestConfig(mpp=mpp, patch_size=edge))
    return Task(path, plan, edge, mpp, folder, threads, -(-FEWEST_PATCHES // len(plan.coords)))


def openslide_hdf5(task: Task) -> Iterator[Step]:
    """read_region into HDF5, opened for every patch."""
    path, patch = task.folder / "a.h5", (task.edge, task.edge, 3)
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", (0, *patch), "u1", chunks=(1, *patch), maxshape=(None, *patch))

    def append(pixels: Pixels) -> None:
        with h5py.File(path, "a") as file:
            images = file["imgs"]
            images.resize(len(images) + 1, axis=0)
            images[-1] = pixels

    for _ in range(task.passes):
        with openslide.OpenSlide(task.path) as slide:
            yield partial(_each_to, append, _regions(slide, task))


def openslide_hdf5_open(task: Task) -> Iterator[Step]:
    """read_region into HDF5 that stays open."""
    patch = (task.edge, task.edge, 3)
    with h5py.File(task.folder / "a.h5", "w") as file:
        shape = (task.passes * len(task.plan.coords), *patch)
        images = file.create_dataset("imgs", shape, "u1", chunks=(1, *patch))
        places = count()
        for _ in range(task.passes):
            with openslide.OpenSlide(task.path) as slide:
                yield partial(_each_to, lambda pixels: images.__setitem__(next(places), pixels), _regions(slide, task))
        yield file.flush


def _regions(slide: openslide.OpenSlide, task: Task) -> Iterator[Pixels]:
    for x, y in task.plan.coords.tolist():
        yield np.asarray(slide.read_region((x, y), 0, (task.edge, task.edge)).convert("RGB"))


def _each_to(store: Callable[[Any], None], items: Iterator[Any]) -> None:
    for item in items:
        store(item)


def tiffslide_zarr(task: Task) -> Iterator[Step]:
    """Tiffslide's read_region into Zarr."""
    patch = (task.edge, task.edge, 3)
    shape = (task.passes * len(task.plan.coords), *patch)
    images = zarr.create_array(task.folder / "a.zarr", shape=shape, dtype="u1", chunks=(1, *patch))
    places = count()
    for _ in range(task.passes):
        with tiffslide.TiffSlide(task.path) as slide:
            regions = (
                slide.read_region((x, y), 0, (task.edge, task.edge), as_array=True)
                for x, y in task.plan.coords.tolist()
            )
            yield partial(_each_to, lambda pixels: images.__setitem__(next(places), pixels), regions)


def ours(codec: Codec, reader: ReaderChoice, task: Task) -> Iterator[Step]:
    """This project's execution into its shards."""
    config = IngestConfig(mpp=task.mpp, patch_size=task.edge, codec=codec)
    writer = ShardWriter(str(task.folder / "patches"), task.edge, codec, config.jpeg_quality)
    for _ in range(task.passes):
        with open_slide(task.path, reader) as slide:
            chunks = extract(slide, task.plan, config, PatchEncoding(codec), task.threads)
            yield partial(_each_to, lambda chunk: writer.append_chunk(chunk or b""), chunks)
    yield writer.finish


def bare_decode(task: Task) -> Iterator[Step]:
    """Read and decode every native tile of level 0."""
    with tifffile.TiffFile(task.path) as tiff, task.path.open("rb") as file:
        page = tiff.pages[0]
        across = -(-page.imagewidth // task.edge)
        tables, jpeg = page.jpegtables, page.compression == tifffile.COMPRESSION.JPEG
        colours = 2 if page.photometric == tifffile.PHOTOMETRIC.RGB else 3  # libjpeg's own numbers
        offsets, sizes = page.dataoffsets, page.databytecounts

        def run() -> None:
            for x, y in task.plan.coords.tolist():
                index = y // task.edge * across + x // task.edge
                data = os.pread(file.fileno(), sizes[index], offsets[index])
                if jpeg:
                    imagecodecs.jpeg8_decode(data, tables=tables, colorspace=colours, outcolorspace=2)
                else:
                    page.decode(data, index)

        yield from [run] * task.passes


CUTTERS: dict[str, Cutter] = {
    "openslide_hdf5": openslide_hdf5,
    "openslide_hdf5_open": openslide_hdf5_open,
    "tiffslide_zarr": tiffslide_zarr,
    "ours_jpeg": partial(ours, "jpeg", "auto"),
    "ours_zstd": partial(ours, "zstd", "auto"),
    "ours_none": partial(ours, "none", "auto"),
    "ours_passthrough": partial(ours, "passthrough", "auto"),
    "ours_openslide_jpeg": partial(ours, "jpeg", "openslide"),
    "ours_openslide_none": partial(ours, "none", "openslide"),
    "bare_decode": bare_decode,
}


def run_here(method: str, path: Path, threads: int) -> dict[str, float]:
    """Cut the slide by a method in this process.

    Returns CPU and wall seconds, patches, and the highest resident set in MB.
    """
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        task = native_task(path, Path(folder), threads)
        cpu = wall = 0.0
        for step in CUTTERS[method](task):
            before, start = _cpu_s(), time.perf_counter()
            step()
            cpu, wall = cpu + _cpu_s() - before, wall + time.perf_counter() - start
    patches = task.passes * len(task.plan.coords)
    return {"cpu_s": cpu, "wall_s": wall, "patches": patches, "peak_mb": resident_mb("VmHWM")}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_apart(method: str, path: Path, threads: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ingest", str(path), "--run", method, str(threads)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return dict(json.loads(done.stdout))


def cutting_rows(path: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for every method that can read the slide."""
    methods = [method for method in CUTTERS if _runs(method, path)]
    runs: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    on_all_cores: dict[str, list[dict[str, float]]] = {method: [] for method in methods if method.startswith("ours")}
    for _ in range(rounds):
        for method in methods:
            runs[method].append(run_apart(method, path, 1))
        for method, method_runs in on_all_cores.items():
            method_runs.append(run_apart(method, path, cpus()))
    with tempfile.TemporaryDirectory() as folder:
        edge = native_task(path, Path(folder), 1).edge
    rows = []
    for method in methods:
        rate = statistics.median(run["patches"] / run["cpu_s"] for run in runs[method])
        in_all = [run["patches"] / run["wall_s"] for run in on_all_cores.get(method, [])]
        rows.append(
            {
                "method": method,
                "slide": path.name,
                "patches_per_s_per_core": rate,
                "patches_per_s": statistics.median(in_all) if in_all else None,
                "mb_per_s": rate * edge * edge * 3 / 1e6,
                "peak_mb": max(run["peak_mb"] for run in runs[method]),
                "rounds": rounds,
            }
        )
    return [*rows, *fixed_rows(path)]


def _runs(method: str, path: Path) -> bool:
    """True where a method can read the slide: passthrough needs JPEG tiles."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        return method != "ours_passthrough" or page.compression == tifffile.COMPRESSION.JPEG


def fixed_rows(path: Path) -> list[dict[str, Any]]:
    """Seconds for what a slide costs beside its patches."""
    start = time.perf_counter()
    with open_slide(path) as reader:
        opened = time.perf_counter()
        config = IngestConfig(mpp=reader.mpp or 0.5)
        thumbnail = reader.thumbnail(thumbnail_edge(reader.size, config.patch_size))
        mask = mask_of(thumbnail, reader.size, config.patch_size)
        plan_tiles(reader.size, config.mpp, mask, config)
    planned = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with PatchStore(folder).writer(SlideRecord("a"), 256, "none", 90) as writer:
            writer.append(np.zeros((256, 256, 3), np.uint8), 0, 0, 1.0)
            writer.write_thumbnail(thumbnail)
        stored = time.perf_counter()
    seconds = {"opening": opened - start, "planning": planned - opened, "group of one patch": stored - began}
    return [{"method": name, "slide": path.name, "seconds": value} for name, value in seconds.items()]


def write_synthetic(path: Path, quality: int) -> None:
    """Write a seeded stained texture, 20,000 x 20,000 px at 0.5 um/px, four levels."""
    noise = np.random.default_rng(0).standard_normal((2000, 2000, 2))
    stain = ndimage.gaussian_filter(noise, (6, 6, 0), mode="wrap") * 25 + ndimage.gaussian_filter(
        noise, (2, 2, 0), mode="wrap"
    )
    density = np.clip(stain / 3.0 + 0.4, 0.0, 1.0)
    absorbed = density[..., :1] * (0.6, 0.9, 0.3) + density[..., 1:] * (0.1, 0.7, 0.25)
    block = np.asarray(245.0 * np.exp(-absorbed), np.uint8)
    write_pyramid(path, np.tile(block, (SYNTHETIC_PX // 2000, SYNTHETIC_PX // 2000, 1)), 0.5, 4, quality)


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown tables, with ratios to the two baselines."""
    names = "".join(f" times {base} |" for base in BASELINES)
    lines = [
        f"| slide | method | patches/s per core |{names} patches/s, all cores | MB/s | peak MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    cut = [row for row in rows if "patches_per_s_per_core" in row]
    rates = {(row["slide"], row["method"]): row["patches_per_s_per_core"] for row in cut}
    for row in cut:
        rate, in_all = row["patches_per_s_per_core"], row["patches_per_s"]
        times = " | ".join(f"{rate / rates[row['slide'], base]:.2f}" for base in BASELINES)
        lines.append(
            f"| {row['slide']} | {row['method']} | {rate:,.0f} | {times} "
            f"| {'' if in_all is None else format(in_all, ',.0f')} | {row['mb_per_s']:,.0f} | {row['peak_mb']:,.0f} |"
        )
    lines += ["", "| slide | once a slide | seconds |", "|---|---|---:|"]
    lines += [f"| {row['slide']} | {row['method']} | {row['seconds']:.3f} |" for row in rows if "seconds" in row]
    lines += ["", "| stored as | access | patches/s |", "|---|---|---:|"]
    lines += [f"| {row['method']} | {row['access']} | {row['patches_per_s']:,.0f} |" for row in rows if "access" in row]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, help="a tiled TIFF or SVS")
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of tables")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each method (default: 5)")
    parser.add_argument("--no-synthetic", action="store_true", help="leave out the slide of 20,000 x 20,000 px")
    parser.add_argument("--synthetic-quality", type=int, default=70, help="JPEG quality of its tiles (default: 70)")
    parser.add_argument("--run", nargs=2, metavar=("METHOD", "THREADS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(run_here(given.run[0], given.slide, int(given.run[1]))))
        return
    rows = cutting_rows(given.slide, given.rounds)
    if not given.no_synthetic:
        with tempfile.TemporaryDirectory() as folder:
            synthetic = Path(folder, "synthetic-20000.tiff")
            write_synthetic(synthetic, given.synthetic_quality)
            rows += cutting_rows(synthetic, given.rounds)
    task = native_task(given.slide, Path(), 1)
    with open_slide(given.slide) as reader:
        patches = np.stack([reader.read(x, y, 0, task.edge, task.edge) for x, y in task.plan.coords.tolist()])
    rows += reading_rows(patches, given.rounds)
    print(json.dumps(rows, indent=1) if given.json else show(rows))


if __name__ == "__main__":
    main()
