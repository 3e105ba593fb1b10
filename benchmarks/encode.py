"""Speed of ``milcore encode`` end to end against the bare network.

The bare network gets normalised pixels that lie in memory.

``python -m benchmarks.encode [speeds] [stages] [passes] [--json] [--rounds N]``, a few minutes each at most

The store holds slides of 32 JPEG patches of 256 px. Weights that are not packaged are random: they change no speed.

- *speeds*: *bare* is the network alone, called on normalised fp32 pixels of its own input size, by as many threads as
  there are cores, each a pass of 8 patches. *encode* is the product: read, decode, resample, normalise, the same
  passes, write. The two take turns; medians over the rounds after the first, and the median of the rounds' ratios. The
  last column is the same ratio of processor seconds, which says less of waiting and suffers less from neighbours.
- *stages*: what each stage costs alone, on one thread: reading is bytes from the disk's cache, decoding is JPEG to
  pixels, preparing is resampling and normalising, writing is features to the disk.
- *passes*: the bare network with other numbers of passes at a time, threads of each and patches in each.
"""

import argparse
import functools
import itertools
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from milcore.cohort.manifest import Manifest, Slide
from milcore.config import EncodeConfig
from milcore.encoders.extraction.encode import encode
from milcore.encoders.extraction.forward import CPU_ROWS
from milcore.encoders.frozen import channels_last, load_parts
from milcore.encoders.networks.efficientnet import MEAN, STD
from milcore.encoders.networks.resnet import TruncatedResNet50
from milcore.encoders.spec import parse_spec
from milcore.runtime.limits import cpus
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.jpeg_codec import decode_into, encode_patch
from milcore.store.slide_record import SlideMpp, SlideRecord
from milcore.store.store import PatchStore

PATCHES_PER_SLIDE = 32
PATCH_PX = 256
ROWS = (4, 8, 16, 32, 64)
CPU = torch.device("cpu")
CORES = cpus()


class Timing(NamedTuple):
    """Seconds by the clock, and of the processors over all threads."""

    clock: float
    processors: float


class Case(NamedTuple):
    """An encoder under a precision, and over how many slides it is measured."""

    name: str
    spec: str
    slides: int


def write_store(uri: str, slides: int) -> PatchStore:
    """Slides of smooth noise in the colours of H&E.

    As JPEG it takes about as many bytes as tissue.
    """
    store, generator = PatchStore(uri), np.random.default_rng(0)
    planned = tuple(Slide(f"s{k}", f"s{k}.tiff", k % 2, f"p{k}", "", None, None, None) for k in range(slides))
    store.write_manifest(Manifest(planned, ("0", "1")))
    mpp = SlideMpp(0.5, 0.5, 0.5, "slide")
    for slide in planned:
        record = SlideRecord(slide.slide_id, patch_size_level0=float(PATCH_PX), mpp=mpp)
        with store.writer(record, PATCH_PX, "jpeg", 90) as writer:
            for place in range(PATCHES_PER_SLIDE):
                noise = gaussian_filter(generator.standard_normal((PATCH_PX, PATCH_PX, 3)), (1.5, 1.5, 0)) * 150
                writer.append(
                    np.clip(noise + np.array((200, 150, 190)), 0, 255).astype(np.uint8), place * PATCH_PX, 0, 1.0
                )
    return store


def cases(folder: Path) -> list[Case]:
    """Encoders to measure.

    The packaged network eager, in half precision and as a graph; a larger convolutional one; a transformer.
    """
    eager = "efficientnet_lite0"
    onnx = _onnx_of(load_parts(parse_spec(eager), CPU).network, folder / "efficientnet_lite0.onnx")
    torch.manual_seed(0)
    torch.save(TruncatedResNet50().state_dict(), folder / "resnet50.pth")
    transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False).save_pretrained(folder / "phikon")
    resnet, vit = f"resnet50@{folder / 'resnet50.pth'}", f"phikon@{folder / 'phikon'}"
    half = ",precision=bf16"
    return [
        Case("efficientnet_lite0", eager, 16),
        Case("efficientnet_lite0, bf16", eager + half, 16),
        Case("efficientnet_lite0, ONNX", onnx, 16),
        Case("resnet50", resnet, 4),
        Case("resnet50, bf16", resnet + half, 4),
        Case("phikon (ViT-B/16)", vit, 1),
        Case("phikon (ViT-B/16), bf16", vit + half, 1),
    ]


def compare(folder: Path, case: Case, rounds: int) -> dict[str, object]:
    """One row of speeds: bare and encode in turns."""
    store = write_store(str(folder / f"store-{case.slides}"), case.slides)
    count = case.slides * PATCHES_PER_SLIDE
    call, pixels = _bare(case.spec, store)
    parts = list(pixels.split(CPU_ROWS))
    pairs = [
        (
            timed(functools.partial(run_bare, call, parts, CORES, 1)),
            timed(functools.partial(run_encode, store, case.spec, f"round-{number}")),
        )
        for number in range(rounds + 1)
    ][1:]
    bare, whole = (statistics.median(timing.clock for timing in column) for column in zip(*pairs, strict=True))
    ratios = [alone.clock / product.clock for alone, product in pairs]
    cost = statistics.median(alone.processors / product.processors for alone, product in pairs)
    return {
        "encoder": case.name,
        "patches": count,
        "bare, patches/s": f"{count / bare:.1f}",
        "encode, patches/s": f"{count / whole:.1f}",
        "encode / bare": f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        "by processor seconds": f"{cost:.3f}",
    }


def timed(action: Callable[[], object]) -> Timing:
    """Time one call of the action."""
    clock, processors = time.perf_counter(), time.process_time()
    action()
    return Timing(time.perf_counter() - clock, time.process_time() - processors)


def run_bare(call: Callable[[Tensor], Tensor], parts: list[Tensor], passes: int, threads: int) -> None:
    """All passes, so many at a time with so many threads each."""
    with ThreadPoolExecutor(passes, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        list(pool.map(call, parts))


def run_encode(store: PatchStore, spec: str, name: str) -> None:
    """A run that writes the features anew."""
    list(encode(store.uri, EncodeConfig(encoder=spec, name=name)))


def stages(folder: Path, case: Case) -> dict[str, object]:
    """Thread-time of each stage for one patch, measured alone, and its share."""
    store = write_store(str(folder / "store-1"), 1)
    slides = [store.slide(slide_id) for slide_id in store.slide_ids()]
    call, prepared = _bare(case.spec, store)
    transform = load_parts(parse_spec(case.spec), CPU).transform
    pixels = np.concatenate([slide.patches(0, len(slide)) for slide in slides])
    shards = [path for slide in slides for path in Path(slide.uri, "patches", "c").rglob("*") if path.is_file()]
    jpegs = [encode_patch(patch, "jpeg", 90) for patch in pixels]
    decoded = np.empty_like(pixels)
    features, names = np.zeros((PATCHES_PER_SLIDE, 1280), np.float16), (f"written-{k}" for k in itertools.count())
    work: dict[str, Callable[[], object]] = {
        "read": lambda: [path.read_bytes() for path in shards],
        "decode": lambda: [decode_into(data, "jpeg", patch) for data, patch in zip(jpegs, decoded, strict=True)],
        "prepare": lambda: [transform(part) for part in torch.from_numpy(pixels).split(CPU_ROWS)],
        "compute": lambda: [call(part) for part in prepared.split(CPU_ROWS)],
        "write": lambda: [slide.write_features(next(names), features, {}) for slide in slides],
    }
    torch.set_num_threads(1)
    taken = {stage: _median_seconds(action) / len(pixels) for stage, action in work.items()}
    torch.set_num_threads(CORES)
    total = sum(taken.values())
    return {"encoder": case.name} | {
        stage: f"{1000 * each:.3g} ms ({each / total:.1%})" for stage, each in taken.items()
    }


def passes(folder: Path, case: Case, rounds: int) -> Iterator[dict[str, object]]:
    """The bare network by passes at a time, threads and patches of each.

    A graph has no threads of its own.
    """
    store = write_store(str(folder / "store-4"), 4)
    call, pixels = _bare(case.spec, store)
    ways = [(CORES, 1)] if "ONNX" in case.name else sorted({(CORES, 1), (1, CORES), (1, 1)}, reverse=True)
    cells = list(itertools.product(ways, ROWS))
    speeds_of: dict[tuple[tuple[int, int], int], list[float]] = {cell: [] for cell in cells}
    for _ in range(rounds + 1):
        for (count, threads), rows in cells:
            timing = timed(functools.partial(run_bare, call, list(pixels.split(rows)), count, threads))
            speeds_of[(count, threads), rows].append(len(pixels) / timing.clock)
    for way in ways:
        speeds = {f"{rows} patches": f"{statistics.median(speeds_of[way, rows][1:]):.1f}" for rows in ROWS}
        yield {"encoder": case.name, "passes at a time": way[0], "threads of each": way[1]} | speeds


def _bare(spec: str, store: PatchStore) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The network under its precision, and the store's patches as it takes them."""
    made, half = load_parts(parse_spec(spec), CPU), parse_spec(spec).precision == "bf16"
    network = channels_last(made.network.eval()) if isinstance(made.network, nn.Module) else made.network
    order = torch.channels_last if isinstance(made.network, nn.Module) else torch.contiguous_format
    slides = (store.slide(slide_id) for slide_id in store.slide_ids())
    patches = torch.from_numpy(np.concatenate([slide.patches(0, len(slide)) for slide in slides]))

    @torch.inference_mode()
    def call(pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return network(pixels)

    return call, made.transform(patches).contiguous(memory_format=order)


def _onnx_of(network: nn.Module, file: Path) -> str:
    """The spec of the same network as an ONNX graph."""
    shapes = ({0: torch.export.Dim("patch")},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = torch.zeros(2, 3, 224, 224)
        torch.onnx.export(network.eval(), (pixels,), str(file), dynamic_shapes=shapes, verbose=False)
    mean, std = ("/".join(map(str, triple)) for triple in (MEAN, STD))
    return f"onnx:{file},mean={mean},std={std}"


def _median_seconds(action: Callable[[], object]) -> float:
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def show(rows: list[dict[str, object]]) -> str:
    """A Markdown table."""
    head, rule = "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])
    return "\n".join([head, rule, *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["speeds", "stages", "passes", []], help="default: all three")
    parser.add_argument("--json", action="store_true", help="one JSON object a row instead of tables")
    parser.add_argument("--rounds", type=int, default=4, help="counted rounds")
    parser.add_argument("--encoders", default="", help="only those with this in their name")
    given = parser.parse_args()
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = [case for case in cases(folder) if given.encoders in case.name]
        small = [case for case in chosen if case.name.startswith("efficientnet_lite0")]
        tables: dict[str, Callable[[], list[dict[str, object]]]] = {
            "speeds": lambda: [compare(folder, case, given.rounds) for case in chosen],
            "stages": lambda: [stages(folder, case) for case in chosen],
            "passes": lambda: [row for case in small for row in passes(folder, case, given.rounds)],
        }
        for what in given.what or tables:
            rows = tables[what]()
            print("\n".join(json.dumps(row) for row in rows) if given.json else f"\n{show(rows)}", flush=True)


if __name__ == "__main__":
    main()
