"""Patches per second of large vision transformers: end to end from JPEG patches of a store, beside the bare network.

The weights are random, which changes no speed; their files are written first. *Bare* is the network in bf16 on
normalised pixels that lie on the device. *End to end* reads, decodes by CPU threads or by nvJPEG, transforms, computes
and writes features. The share of time without work on the device is 1 - end to end / bare.
"""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.gpu import settings
from benchmarks.gpu.device import medians, seconds
from benchmarks.gpu.row import Row, at_least, not_run
from milcore.cohort.manifest import Manifest, Slide
from milcore.config import EncodeConfig
from milcore.encoders.extraction.encode import encode as encode_store
from milcore.encoders.frozen import load_parts
from milcore.encoders.networks.vit import VisionTransformer, VitShape
from milcore.encoders.spec import parse_spec
from milcore.errors import InputError
from milcore.store.slide_record import SlideMpp, SlideRecord
from milcore.store.store import PatchStore

PART = "encode"
PATCH_PX, INPUT_PX, SLIDES = 256, 224, 8
DISTINCT_PATCHES = 64
ROWS_OF_A_PASS = {"cuda": (64, 128, 256), "cpu": (8,)}


class Encoder(NamedTuple):
    """A preset whose network has random weights.

    Args:
        title: of the network.
        shape: of the preset's network.
        patches: that are encoded end to end.
    """

    title: str
    shape: VitShape
    patches: int


# by preset; the shapes are those of the authors' configurations for timm, at 224 px
ENCODERS = {
    "uni": Encoder("ViT-L/16", VitShape(1024, 24, 16, 16, 196, 196, 0, 4096, gated=False, scaled=True), 16_384),
    "virchow2": Encoder("ViT-H/14", VitShape(1280, 32, 16, 14, 256, 256, 4, 6832, gated=True, scaled=True), 8_192),
    "h-optimus-0": Encoder("ViT-g/14", VitShape(1536, 40, 24, 14, 256, 256, 4, 8192, gated=True, scaled=True), 4_096),
}
# one that a CPU computes in seconds, by the same way
SMALL = Encoder("ViT of 2 blocks", VitShape(1024, 2, 16, 16, 196, 196, 0, 4096, gated=False, scaled=True), 64)
# memory in which the small one computes, but not on so many patches at a time
LITTLE_MEMORY_BYTES, MANY_PATCHES = 1e9, 4_096


def encode(device: torch.device) -> Iterator[Row]:
    """Rows of each encoder, bare and end to end with either decoder, and of a lack of memory."""
    for name, encoder in (ENCODERS if device.type == "cuda" else {"uni": SMALL}).items():
        with tempfile.TemporaryDirectory() as folder:
            yield from encoder_rows(name, encoder, Path(folder), device)
    yield out_of_memory_row(device)


def encoder_rows(name: str, encoder: Encoder, folder: Path, device: torch.device) -> Iterator[Row]:
    """Rows of one encoder."""
    spec = f"{name}@{_random_weights(encoder.shape, folder)},precision=bf16"
    bare = {rows: _bare_patches_per_s(spec, rows, device) for rows in ROWS_OF_A_PASS[device.type]}
    best = max(bare, key=lambda rows: bare[rows])
    case = f"{encoder.title} ({name}), bf16"
    yield Row(PART, f"{case}: bare", ", ".join(f"{rate:,.1f}/s by {rows}" for rows, rate in bare.items()))
    store = _write_store(str(folder / "store"), encoder.patches)
    for decode in ("cpu", "nvjpeg"):
        of_decoder = f"{case}: end to end, JPEG by {decode}"
        try:
            rate = _encode_patches_per_s(store, f"{spec},decode={decode}", best, device)
        except InputError as error:  # nvJPEG needs a GPU and a torchvision built for it
            yield not_run(PART, of_decoder, str(error).rpartition(": ")[2])
            continue
        yield Row(PART, of_decoder, f"{rate:,.1f} patches/s")
        share = at_least(PART, f"{of_decoder}: share of bare", rate / bare[best], settings.ENCODE_SHARE)
        yield share if device.type == "cuda" else share._replace(goal="", reached=None)


def out_of_memory_row(device: torch.device) -> Row:
    """Encoding goes on with smaller batches where the device's memory is too small for one."""
    case = f"batches of {MANY_PATCHES:,} in {LITTLE_MEMORY_BYTES / 1e9:.0f} GB: patches encoded"
    if device.type != "cuda":
        return not_run(PART, case, "no GPU")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(LITTLE_MEMORY_BYTES / total, device)
    try:
        with tempfile.TemporaryDirectory() as folder:
            spec = f"uni@{_random_weights(SMALL.shape, Path(folder))}"
            store = _write_store(f"{folder}/store", MANY_PATCHES)
            config = EncodeConfig(encoder=spec, name="little-memory", patches_per_batch=MANY_PATCHES)
            patches = sum(slide.patches for slide in encode_store(store.uri, config, device.type))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return Row(PART, case, f"{patches:,}", f"{MANY_PATCHES:,}", patches == MANY_PATCHES)


def _random_weights(shape: VitShape, folder: Path) -> Path:
    torch.manual_seed(0)
    file = folder / "weights.safetensors"
    network = VisionTransformer(shape)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)
    return file


def _bare_patches_per_s(spec: str, rows: int, device: torch.device) -> float:
    parts = load_parts(parse_spec(spec), device)
    network = parts.network.eval().to(device)  # type: ignore[attr-defined]
    pixels = torch.randn(rows, 3, INPUT_PX, INPUT_PX, device=device)

    @torch.inference_mode()
    def call() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            network(pixels)

    rounds = settings.SIZES[device.type].rounds
    return rows / medians({"bare": call}, rounds, device)["bare"]


def _write_store(uri: str, patches: int) -> PatchStore:
    """Slides of smooth noise in the colours of H&E, as JPEG."""
    store, rng = PatchStore(uri), np.random.default_rng(0)
    slides = tuple(Slide(f"s{k}", f"s{k}.tiff", k % 2, f"p{k}", "", None, None, None) for k in range(SLIDES))
    store.write_manifest(Manifest(slides, ("0", "1")))
    coarse = rng.normal(0, 25, (DISTINCT_PATCHES, PATCH_PX // 4, PATCH_PX // 4, 3)).repeat(4, 1).repeat(4, 2)
    pixels = np.clip(coarse + np.array((200, 150, 190)), 0, 255).astype(np.uint8)
    mpp = SlideMpp(0.5, 0.5, 0.5, "slide")
    for slide in slides:
        record = SlideRecord(slide.slide_id, patch_size_level0=float(PATCH_PX), mpp=mpp)
        with store.writer(record, PATCH_PX, "jpeg", 90) as writer:
            for place in range(patches // SLIDES):
                writer.append(pixels[place % DISTINCT_PATCHES], place * PATCH_PX, 0, 1.0)
    return store


def _encode_patches_per_s(store: PatchStore, spec: str, rows: int, device: torch.device) -> float:
    names = (f"round-{number}" for number in itertools.count())

    def run() -> int:
        config = EncodeConfig(encoder=spec, name=next(names), patches_per_batch=rows)
        return sum(slide.patches for slide in encode_store(store.uri, config, device.type))

    patches = run()  # the weights are in the disk's cache from then on
    return patches / seconds(run, device)
