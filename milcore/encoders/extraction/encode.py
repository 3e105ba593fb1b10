"""Computes features/<name> of every slide of a store, with a frozen encoder, doing only what is missing.

A worker takes slides one after another and computes on batches that go across them, so that small slides do not starve
it; it reads and decodes ahead, and writes behind, while the encoder computes. A slide has one writer, and its features
are readable only once they are complete.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from milcore.config import EncodeConfig
from milcore.encoders.extraction.batches import Batches, Step, Writer
from milcore.encoders.extraction.forward import CPU_ROWS, Forward
from milcore.encoders.extraction.reader import EncodedSlide, Reader
from milcore.encoders.frozen import FrozenEncoder, digest_of_spec
from milcore.encoders.spec import parse_spec
from milcore.errors import InputError, StoreError
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.store import PatchStore

FAILURES_NAMED = 5


class Work(NamedTuple):
    """A store to encode: what every worker is told."""

    store_uri: str
    config: EncodeConfig
    device: str


# encodes slides here or elsewhere, handing steps back as they come
EncodeSlides = Callable[[Work, dict[str, int]], Iterator[Step]]


def encode(
    store_uri: str, config: EncodeConfig, device: str = "cpu", run: EncodeSlides | None = None
) -> Iterator[EncodedSlide]:
    """Encode every slide of the store that lacks these features; see ``encode_steps``."""
    return (step.slide for step in encode_steps(store_uri, config, device, run) if step.slide is not None)


def encode_steps(
    store_uri: str, config: EncodeConfig, device: str = "cpu", run: EncodeSlides | None = None
) -> Iterator[Step]:
    """Encode every slide of the store that lacks these features.

    Args:
        store_uri: the patch store.
        config: encoder, name of the features and batch size.
        device: where each worker computes, ``cpu`` or ``cuda``.
        run: who encodes the slides (ids and patches of each); None does it here.

    Raises:
        InputError: the store holds no slide that is ok.
        StoreError: some slides could not be encoded; which, and why. All others have been.
    """
    return _encode_all(Work(store_uri, config, device), slides_to_encode(store_uri), run or encode_here)


def _encode_all(work: Work, slides: dict[str, int], run: EncodeSlides) -> Iterator[Step]:
    failed = []
    for step in run(work, slides):
        if step.slide is not None and step.slide.reason is not None:
            failed.append(f"{step.slide.slide_id}: {step.slide.reason}")
        yield step
    if failed:
        more = f"; and {len(failed) - FAILURES_NAMED} more" if len(failed) > FAILURES_NAMED else ""
        raise StoreError(
            f"{len(failed)} of {len(slides)} slides have no features: {'; '.join(failed[:FAILURES_NAMED])}{more}; the "
            "others are done; mend these and run milcore encode again"
        )


def slides_to_encode(store_uri: str) -> dict[str, int]:
    """Patches of every slide that is ok, in manifest order.

    Raises:
        InputError: there is none.
    """
    records = PatchStore(store_uri).records()
    slides = {name: record.instances for name, record in records.items() if record and record.status == "ok"}
    if not slides:
        raise InputError(f"{store_uri} holds no slide that is ok; run milcore ingest first")
    return slides


def encode_here(work: Work, slides: dict[str, int]) -> Iterator[Step]:
    """Encode slides in this process, on all its cores."""
    return encode_slides(work, iter(slides), len(os.sched_getaffinity(0)))


def encode_slide(store_uri: str, config: EncodeConfig, device: str, slide_id: str) -> EncodedSlide:
    """Encode one slide unless its features of that name are there and come from the same patches and weights.

    Raises:
        StoreError: features of that name were made by another encoder, or the slide does not suit it.
    """
    steps = list(_encode_all(Work(store_uri, config, device), {slide_id: 0}, encode_here))
    return next(step.slide for step in steps if step.slide is not None)


def encode_slides(work: Work, slide_ids: Iterable[str | None], threads: int) -> Iterator[Step]:
    """What one worker does: encode slides as they are named to it.

    Args:
        work: the store and the encoder.
        slide_ids: whose features are wanted; None says that no further one is known yet.
        threads: forward passes at a time on a CPU.
    """
    encoder = load_encoder(work.config.encoder, work.device)
    store, name = PatchStore(work.store_uri), str(named(work.config).name)
    rows = work.config.patches_per_batch if work.device == "cuda" else min(work.config.patches_per_batch, CPU_ROWS)
    passes = 1 if work.device == "cuda" else threads
    with Forward(encoder, rows, passes) as forward, Writer() as writer, Reader(store, encoder, name) as reader:
        batches = Batches(forward, writer, rows)
        for found in reader.read(slide_ids):
            if found is None:
                yield from batches.advance()
            elif isinstance(found, EncodedSlide):
                yield Step(0, found)
            else:
                yield from batches.add(found)
        yield from batches.finish()


def named(config: EncodeConfig) -> EncodeConfig:
    """The config with the name of its features: given, else the encoder's, with a URI and the weights' digest."""
    if config.name is not None:
        return config
    return config.model_copy(update={"name": default_name(config.encoder)})


@functools.lru_cache(maxsize=8)
def default_name(encoder: str) -> str:
    """The spec string if it is a name alone, else its first word and the first 8 hex digits of the weights' digest.

    Options stand in the features' attributes: two sets of them need two names.
    """
    spec = parse_spec(encoder)
    return spec.name if spec.is_plain else f"{spec.name}-{digest_of_spec(encoder)[:8]}"


@functools.lru_cache(maxsize=1)
def load_encoder(name: str, device: str) -> FrozenEncoder:
    """The frozen encoder of that spec string, loaded once per process.

    Raises:
        InputError: the device is not there, or there is no such encoder.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--use-gpu: no CUDA device here; run on a machine with a GPU or leave the flag out")
    keep_freed_memory()
    return FrozenEncoder(parse_spec(name), torch.device(device))
