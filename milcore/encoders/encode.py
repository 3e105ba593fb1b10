"""Computes features/<name> of every slide of a store, with a frozen encoder, doing only what is missing.

A worker takes slides one after another and computes on batches that go across them, so that small slides do not starve
it; it reads and decodes ahead, and writes behind, while the encoder computes. A slide has one writer, and its features
are readable only once they are complete.
"""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float16, UInt8

from milcore import storage
from milcore.allocator import keep_freed_memory
from milcore.config import EncodeConfig
from milcore.encoders.forward import CPU_ROWS, Done, Forward
from milcore.encoders.frozen import FrozenEncoder, digest_of_spec
from milcore.encoders.spec import parse_spec
from milcore.errors import InputError, MILError, StoreError
from milcore.store import PatchStore, SlideGroup

READERS = 4
FAILURES_NAMED = 5


class EncodedSlide(NamedTuple):
    """What became of one slide; ``reason`` says why it has no features."""

    slide_id: str
    patches: int
    skipped: bool
    reason: str | None = None


class Step(NamedTuple):
    """Patches computed since the step before, and the slide that ended with them, if one did."""

    patches: int
    slide: EncodedSlide | None


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
    slides = slides_to_encode(store_uri)
    work = Work(store_uri, config, device)
    failed = []
    for step in (run or encode_here)(work, slides):
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
    statuses = PatchStore(store_uri).statuses()
    slides = {name: int(its.attrs["patches"]) for name, its in statuses.items() if its and its.state == "ok"}
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
    steps = encode_steps(store_uri, config, device, lambda work, _: encode_here(work, {slide_id: 0}))
    return next(step.slide for step in list(steps) if step.slide is not None)


def encode_slides(work: Work, slide_ids: Iterable[str | None], threads: int) -> Iterator[Step]:
    """What one worker does: encode slides as they are named to it.

    Args:
        work: the store and the encoder.
        slide_ids: whose features are wanted; None says that no further one is known yet.
        threads: forward passes at a time on a CPU.
    """
    encoder = load_encoder(work.config.encoder, work.device)
    config = named(work.config)
    rows = config.patches_per_batch if work.device == "cuda" else min(config.patches_per_batch, CPU_ROWS)
    with Forward(encoder, rows, 1 if work.device == "cuda" else threads) as forward, _Writer() as writer:
        batches = _Batches(forward, writer, rows)
        for slide_id in slide_ids:
            if slide_id is None:
                yield from batches.advance()
                continue
            yield from _encode_into(batches, PatchStore(work.store_uri), slide_id, encoder, str(config.name))
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


class _Open:
    """A slide whose features are being gathered."""

    def __init__(self, slide: SlideGroup, width: int, name: str, attributes: dict[str, Any]) -> None:
        self.slide, self.name, self.attributes = slide, name, attributes
        self.features: Float16[np.ndarray, "patch feature"] = np.empty((len(slide), width), np.float16)
        self.missing = len(slide)

    def write(self) -> EncodedSlide:
        """Store the features."""
        self.slide.write_features(self.name, self.features, self.attributes)
        return EncodedSlide(self.slide.slide_id, len(self.features), skipped=False)


class _Piece(NamedTuple):
    """Consecutive patches of a slide inside a batch."""

    slide: _Open
    start: int
    length: int


class _Writer:
    """Writes features behind the computation, one slide at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: deque[Future[EncodedSlide]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def write(self, slide: _Open) -> Iterator[Step]:
        """Begin to write a slide, once at most one other waits."""
        while len(self._writing) > 1:
            yield Step(0, self._writing.popleft().result())
        self._writing.append(self._pool.submit(slide.write))

    def done(self, *, all_of_them: bool = False) -> Iterator[Step]:
        """The slides that have been written; or all, waited for."""
        while self._writing and (all_of_them or self._writing[0].done()):
            yield Step(0, self._writing.popleft().result())


class _Batches:
    """Patches of consecutive slides, gathered into batches, computed and laid back into their slides' features."""

    def __init__(self, forward: Forward, writer: _Writer, rows: int) -> None:
        self._forward, self._writer, self._rows = forward, writer, rows
        self._pieces: list[_Piece] = []
        self._pixels: list[UInt8[np.ndarray, "patch height width 3"]] = []

    def add(self, slide: _Open, start: int, pixels: UInt8[np.ndarray, "patch height width 3"]) -> Iterator[Step]:
        """Take patches of a slide from ``start`` on."""
        if self._pixels and self._pixels[0].shape[1:] != pixels.shape[1:]:
            yield from self._submit()
        while len(pixels):
            fitting = pixels[: self._rows - sum(map(len, self._pixels))]
            self._pieces.append(_Piece(slide, start, len(fitting)))
            self._pixels.append(fitting)
            start, pixels = start + len(fitting), pixels[len(fitting) :]
            if sum(map(len, self._pixels)) == self._rows:
                yield from self._submit()
        yield from self._writer.done()

    def advance(self) -> Iterator[Step]:
        """With nothing new to read: wait for a batch, else compute one that is not full, else wait for the writer."""
        if len(self._forward):
            yield from self._lay(self._forward.next())
        elif self._pieces:
            yield from self._submit()
        else:
            yield from self._writer.done(all_of_them=True)

    def finish(self) -> Iterator[Step]:
        """Compute and write all that is left."""
        yield from self._submit()
        while len(self._forward):
            yield from self._lay(self._forward.next())
        yield from self._writer.done(all_of_them=True)

    def _submit(self) -> Iterator[Step]:
        if not self._pieces:
            return
        pixels = self._pixels[0] if len(self._pixels) == 1 else np.concatenate(self._pixels)
        pieces, self._pieces, self._pixels = self._pieces, [], []
        for done in self._forward.submit(pieces, pixels):
            yield from self._lay(done)

    def _lay(self, done: Done) -> Iterator[Step]:
        begin = 0
        for slide, start, length in done.tag:
            slide.features[start : start + length] = done.features[begin : begin + length]
            slide.missing -= length
            begin += length
            if slide.missing == 0:
                yield from self._writer.write(slide)
        yield Step(begin, None)


def _encode_into(
    batches: _Batches, store: PatchStore, slide_id: str, encoder: FrozenEncoder, name: str
) -> Iterator[Step]:
    """Hand a slide's patches over, unless it has its features; a slide that cannot be encoded ends with its reason."""
    try:
        slide = store.slide(slide_id)
        attributes = _attributes(slide, encoder)
        if _is_encoded(slide, name, attributes):
            yield Step(0, EncodedSlide(slide_id, len(slide), skipped=True))
            return
        opened = _Open(slide, encoder.width, name, attributes)
        for start, pixels in _read_ahead(slide):
            yield from batches.add(opened, start, pixels)
    except (MILError, *storage.IO_ERRORS) as error:
        yield Step(0, EncodedSlide(slide_id, 0, skipped=False, reason=" ".join(str(error).split())))


def _attributes(slide: SlideGroup, encoder: FrozenEncoder) -> dict[str, Any]:
    """What is recorded of features: everything that they depend on.

    Raises:
        StoreError: the slide has no patches, or shows another scale than the encoder expects.
    """
    if not slide.has_patches or slide.patch_size is None:
        raise StoreError(f"slide {slide.slide_id!r} was imported without patches; there is nothing to encode")
    return {
        "encoder": encoder.name,
        "weights_digest": encoder.weights_digest,
        "transform": encoder.transform,
        "mpp_seen": encoder.scale.check_scale(slide.slide_id, slide.patch_size, slide.attrs),
        "patches_digest": slide.patches_digest,
    }


def _is_encoded(slide: SlideGroup, name: str, attributes: dict[str, Any]) -> bool:
    """Whether the features are there, from these patches and this encoder, wherever its weights lay.

    Raises:
        StoreError: features of that name were made by another encoder.
    """
    if not slide.has_features(name):
        return False
    found = slide.feature_attrs(name)
    changed = [key for key in ("weights_digest", "transform") if found.get(key) != attributes[key]]
    if changed:
        raise StoreError(
            f"features/{name} of slide {slide.slide_id!r} were made with another {', '.join(changed)}; "
            "give these features another --name"
        )
    return bool(found.get("patches_digest") == attributes["patches_digest"])


def _read_ahead(slide: SlideGroup) -> Iterator[tuple[int, UInt8[np.ndarray, "patch height width 3"]]]:
    """Runs of a slide's patches with their starts, some of them read and decoded ahead."""
    starts = range(0, len(slide), CPU_ROWS)
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        ahead: deque[tuple[int, Future[UInt8[np.ndarray, "patch height width 3"]]]] = deque()
        for start in starts:
            ahead.append((start, pool.submit(slide.patches, start, min(start + CPU_ROWS, len(slide)))))
            if len(ahead) > READERS:
                first, pixels = ahead.popleft()
                yield first, pixels.result()
        while ahead:
            first, pixels = ahead.popleft()
            yield first, pixels.result()
