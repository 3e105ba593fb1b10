"""``milcore encode`` end to end against the bare network on pixels that lie in memory, ready to be multiplied.

``python -m benchmarks.encode [--json] [--rounds N] [--slides N] [--table-only | --no-table]``

The store holds slides of 40 JPEG patches of 256 px. *Bare* is the network alone, called on normalised fp32 pixels of
its own input size, by as many threads as there are cores, each a pass of 16 patches. *Encode* is ``encode``: read,
decode, resample, normalise, the same passes, write. The two take turns; medians over the rounds after the first, and
the median of the rounds' ratios. Beside them what each stage costs alone, on one thread: reading is bytes from the
disk's cache, decoding is JPEG to pixels, preparing is resampling and normalising, writing is features to the disk.

The second table is the bare network with other numbers of passes at a time, threads of each and patches in each.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from milcore.allocator import keep_freed_memory
from milcore.config import EncodeConfig
from milcore.encoders.efficientnet import MEAN, STD
from milcore.encoders.encode import encode
from milcore.encoders.forward import CPU_ROWS
from milcore.encoders.frozen import Made, make
from milcore.encoders.spec import parse_spec
from milcore.manifest import Manifest, Slide
from milcore.shards import decode_patch, encode_patch
from milcore.store import PatchStore

PATCHES_PER_SLIDE = 40
PATCH_PX = 256
ROWS = (4, 8, 16, 32, 64)
CPU = torch.device("cpu")


def write_store(uri: str, slides: int) -> PatchStore:
    """Slides of smooth noise in the colours of H&E, which as JPEG takes about what tissue takes."""
    store, generator = PatchStore(uri), np.random.default_rng(0)
    planned = tuple(Slide(f"s{k}", f"s{k}.tiff", k % 2, f"p{k}", "", None, None, None) for k in range(slides))
    store.write_manifest(Manifest(planned, ("0", "1")))
    attrs = {"patch_size_level0": float(PATCH_PX), "mpp": {"level0": 0.5, "target": 0.5, "patch": 0.5, "from": "slide"}}
    for slide in planned:
        with store.writer(slide.slide_id, attrs, PATCH_PX, "jpeg", 90) as writer:
            for place in range(PATCHES_PER_SLIDE):
                noise = gaussian_filter(generator.standard_normal((PATCH_PX, PATCH_PX, 3)), (1.5, 1.5, 0)) * 150
                writer.append(
                    np.clip(noise + np.array((200, 150, 190)), 0, 255).astype(np.uint8), place * PATCH_PX, 0, 1.0
                )
    return store


def onnx_of(made: Made, file: Path) -> str:
    """The spec of the same network as an ONNX graph."""
    shapes = ({0: torch.export.Dim("patch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = torch.zeros(2, 3, 224, 224)
        torch.onnx.export(made.network, (pixels,), str(file), dynamic_shapes=shapes, verbose=False)
    mean, std = ("/".join(map(str, triple)) for triple in (MEAN, STD))
    return f"onnx:{file},mean={mean},std={std}"


def caller(spec: str, made: Made) -> Callable[[Tensor], Tensor]:
    """The network under its precision."""
    half = parse_spec(spec).precision == "bf16"

    @torch.inference_mode()
    def call(pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return made.network(pixels)

    return call


def bare_seconds(call: Callable[[Tensor], Tensor], parts: list[Tensor], passes: int, threads: int) -> float:
    """Time of all passes, so many at a time with so many threads each."""
    with ThreadPoolExecutor(passes, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        list(pool.map(call, parts[:passes]))
        start = time.perf_counter()
        list(pool.map(call, parts))
        return time.perf_counter() - start


def encode_seconds(store: PatchStore, spec: str, name: str) -> float:
    """Time of a run that writes the features anew."""
    start = time.perf_counter()
    list(encode(store.uri, EncodeConfig(encoder=spec, name=name)))
    return time.perf_counter() - start


def compare(store: PatchStore, name: str, spec: str, rounds: int) -> dict[str, object]:
    """One row: bare and encode in turns."""
    count = len(store.slide_ids()) * PATCHES_PER_SLIDE
    made, cores = make(parse_spec(spec), CPU), len(os.sched_getaffinity(0))
    call, parts = caller(spec, made), list(made.transform(_pixels(store)).split(CPU_ROWS))
    pairs = [
        (bare_seconds(call, parts, cores, 1), encode_seconds(store, spec, f"{name}-{number}"))
        for number in range(rounds + 1)
    ][1:]
    bare, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "encoder": name,
        "bare, patches/s": round(count / bare, 1),
        "encode, patches/s": round(count / whole, 1),
        "share": round(statistics.median(its_bare / its_whole for its_bare, its_whole in pairs), 3),
    }


def stages(store: PatchStore, spec: str, name: str) -> dict[str, object]:
    """Thread-seconds of each stage for 1,000 patches, measured alone, and their shares."""
    slides = [store.slide(slide_id) for slide_id in store.slide_ids()]
    made, pixels = make(parse_spec(spec), CPU), _pixels(store)
    call, parts = caller(spec, made), list(pixels.split(CPU_ROWS))
    ready = [made.transform(part) for part in parts]
    shards = [path for slide in slides for path in Path(slide.uri, "patches", "c").rglob("*") if path.is_file()]
    jpegs = [encode_patch(patch.numpy(), "jpeg", 90) for patch in pixels]
    features = np.zeros((PATCHES_PER_SLIDE, 1280), np.float16)
    work: dict[str, Callable[[], object]] = {
        "read": lambda: [path.read_bytes() for path in shards],
        "decode": lambda: [decode_patch(data, "jpeg", PATCH_PX) for data in jpegs],
        "prepare": lambda: [made.transform(part) for part in parts],
        "compute": lambda: [call(part) for part in ready],
        "write": lambda: [slide.write_features(f"{name}-written", features, {}) for slide in slides],
    }
    torch.set_num_threads(1)
    seconds = {stage: _median_seconds(action) * 1000 / len(pixels) for stage, action in work.items()}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    total = sum(seconds.values())
    return {"encoder": name} | {stage: f"{each:.3g} s ({each / total:.1%})" for stage, each in seconds.items()}


def shapes_of_passes(store: PatchStore, spec: str, rounds: int) -> Iterator[dict[str, object]]:
    """The bare network: passes at a time, threads of each, patches in each."""
    made, cores = make(parse_spec(spec), CPU), len(os.sched_getaffinity(0))
    call, pixels = caller(spec, made), made.transform(_pixels(store))
    ways = sorted({(cores, 1), (1, cores), (1, 1)}, reverse=True)
    cases = list(itertools.product(ways, ROWS))
    found: dict[tuple[tuple[int, int], int], list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for (passes, threads), rows in cases:
            parts = [part for part in pixels.split(rows) if len(part) == rows]
            taken = bare_seconds(call, parts, passes, threads)
            found[(passes, threads), rows].append(len(parts) * rows / taken)
    for (passes, threads), rows in cases:
        speed = statistics.median(found[(passes, threads), rows])
        yield {"passes": passes, "threads": threads, "patches": rows, "patches/s": round(speed, 1)}


def _pixels(store: PatchStore) -> Tensor:
    slides = (store.slide(slide_id) for slide_id in store.slide_ids())
    return torch.from_numpy(np.concatenate([slide.patches(0, len(slide)) for slide in slides]))


def _median_seconds(action: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def show(rows: list[dict[str, object]]) -> str:
    """A Markdown table."""
    head, rule = "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])
    return "\n".join([head, rule, *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a row instead of tables")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--slides", type=int, default=16, help=f"slides of {PATCHES_PER_SLIDE} patches")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--table-only", action="store_true", help="only the table of passes, threads and patches")
    which.add_argument("--no-table", action="store_true", help="without it")
    given = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(str(Path(folder, "store")), given.slides)
        eager, half = "efficientnet_lite0", "efficientnet_lite0,precision=bf16"
        tables: list[list[dict[str, object]]] = []
        if not given.table_only:
            onnx = onnx_of(make(parse_spec(eager), CPU), Path(folder, "efficientnet_lite0.onnx"))
            specs = {"eager-fp32": eager, "onnx-fp32": onnx, "eager-bf16": half}
            tables.append([compare(store, name, spec, given.rounds) for name, spec in specs.items()])
            tables.append([stages(store, spec, name) for name, spec in specs.items()])
        if not given.no_table:
            for spec in (eager, half):
                rows = shapes_of_passes(store, spec, given.rounds)
                tables.append([{"encoder": spec} | row for row in rows])
    for table in tables:
        print("\n".join(json.dumps(row) for row in table) if given.json else f"\n{show(table)}")


if __name__ == "__main__":
    main()
