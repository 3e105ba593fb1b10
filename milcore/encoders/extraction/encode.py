"""Feature extraction: features/<name> of the slides of a store that lack them.

A worker takes slides one after another and computes on batches across slides, so that it is not idle with small slides;
it prefetches and decodes patches, and writes features, while the encoder computes. A slide has one writer, and its
features are readable only once they are complete.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from milcore.config import EncodeConfig, EncoderRecord
from milcore.encoders.extraction.batches import Batches, Step, Writer
from milcore.encoders.extraction.forward import CPU_ROWS, Forward
from milcore.encoders.extraction.reader import Reader
from milcore.encoders.extraction.request import EncodedSlide, slides_to_encode, with_feature_name
from milcore.encoders.frozen import FrozenEncoder
from milcore.encoders.record import encoder_of_features
from milcore.encoders.spec import parse_spec
from milcore.errors import InputError, MILError, StoreError
from milcore.runtime import storage
from milcore.runtime.limits import cpus
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.catalogue import Catalogue, resolved
from milcore.store.slide_row import FEATURES, SlideRow, read_rows
from milcore.store.store import PatchStore

FAILURES_NAMED = 5


class EncodeJob(NamedTuple):
    """Store to encode, encoder and device, for every worker.

    ``made_by`` is the encoder of those features of that name that are there already; None where there are none.
    """

    store_uri: str
    config: EncodeConfig
    device: str
    made_by: EncoderRecord | None = None


# encodes slides (id to number of patches) in this process or others, yielding steps as they come
EncodeSlides = Callable[[EncodeJob, dict[str, int]], Iterator[Step]]


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
        device: of each worker, ``cpu`` or ``cuda``.
        run: encodes the slides; None encodes them in this process.

    Raises:
        InputError: the store has no slide with status ok.
        StoreError: some slides could not be encoded, with the reasons; all others are.
    """
    return _encode_all(EncodeJob(store_uri, config, device), slides_to_encode(store_uri, config), run or encode_here)


def _encode_all(job: EncodeJob, slides: dict[str, int], run: EncodeSlides) -> Iterator[Step]:
    store, name = PatchStore(job.store_uri), str(with_feature_name(job.config).name)
    catalogue = store.catalogue()
    made_by = _encoder_of_stored(catalogue, name, slides)
    failed, unknown, rows = [], [], store.row_writer(f"encode-{name}", list(slides), catalogue)
    for step in run(job._replace(made_by=made_by), slides):
        if step.slide is not None:
            if step.slide.reason is not None:
                failed.append(f"{step.slide.slide_id}: {step.slide.reason}")
            row = _row(catalogue, name, step.slide)
            if row is None:
                unknown.append(step.slide.slide_id)
            elif row != catalogue.row(step.slide.slide_id):
                rows.add(row)
        yield step
    for row in read_rows(store.uri, unknown).values():
        rows.add(row)
    rows.close()
    store.join_catalogue()
    if failed:
        more = f"; and {len(failed) - FAILURES_NAMED} more" if len(failed) > FAILURES_NAMED else ""
        raise StoreError(
            f"{len(failed)} of {len(slides)} slides have no features: {'; '.join(failed[:FAILURES_NAMED])}{more}; the "
            "others are encoded; repair these and run milcore encode again"
        )


def _row(catalogue: Catalogue, name: str, slide: EncodedSlide) -> SlideRow | None:
    """Row of a slide with its features.

    None where it is to be read from the slide: without a row before, or of another record, or without features.
    """
    row = catalogue.row(slide.slide_id)
    if row is None or slide.metadata is None:
        return None
    record = resolved(row.record(catalogue.store_uri), catalogue.store_uri)
    is_of_slide = record.digest == slide.record_digest
    return row.with_array(f"{FEATURES}{name}", slide.metadata) if is_of_slide else None


def _encoder_of_stored(catalogue: Catalogue, name: str, slides: Iterable[str]) -> EncoderRecord | None:
    """Encoder of the features of that name that slides have already.

    Raises:
        StoreError: they are of several encoders, or were imported.
    """

    def attrs(slide_id: str) -> dict[str, Any]:
        row = catalogue.row(slide_id)
        if row is not None and name not in row.feature_names:
            return {}
        try:
            return catalogue.slide(slide_id).stored_feature_attrs(name) or {}
        except (MILError, *storage.IO_ERRORS):
            return {}  # why a slide cannot be read is told where it is encoded

    with ThreadPoolExecutor(storage.CONCURRENT_REQUESTS) as pool:
        stored = dict(zip(slides, pool.map(attrs, slides), strict=True))
    made = {slide_id: of_slide for slide_id, of_slide in stored.items() if of_slide}
    encoder = encoder_of_features(name, made)
    if made and encoder is None:
        raise StoreError(
            f"features/{name} of {catalogue.store_uri}: expected those of an encoder, got imported ones; give these "
            "features another --name"
        )
    return encoder


def encode_here(job: EncodeJob, slides: dict[str, int]) -> Iterator[Step]:
    """Encode slides in this process, on all its cores."""
    return encode_slides(job, iter(slides), cpus())


def encode_slide(store_uri: str, config: EncodeConfig, device: str, slide_id: str) -> EncodedSlide:
    """Encode one slide, unless it has these features of the same patches and weights.

    Raises:
        StoreError: features of that name were made by another encoder, or the slide does not suit it.
    """
    steps = encode_slides(EncodeJob(store_uri, config, device), [slide_id], cpus())
    slide = next(step.slide for step in steps if step.slide is not None)
    if slide.reason is not None:
        raise StoreError(slide.reason)
    return slide


def encode_slides(job: EncodeJob, slide_ids: Iterable[str | None], threads: int) -> Iterator[Step]:
    """Encode slides in one worker, in the order of their ids.

    Args:
        job: the store and the encoder.
        slide_ids: of the slides to encode; None where no further slide is known yet.
        threads: forward passes at a time on a CPU.
    """
    encoder = load_encoder(job.config.encoder, job.device)
    _check_encoder(job, encoder)
    store, name = PatchStore(job.store_uri), str(with_feature_name(job.config).name)
    rows = job.config.patches_per_batch if job.device == "cuda" else min(job.config.patches_per_batch, CPU_ROWS)
    passes = 1 if job.device == "cuda" else threads
    open_slide = store.catalogue().slide if store.has_manifest() else store.slide
    with Forward(encoder, rows, passes) as forward, Writer() as writer, Reader(open_slide, encoder, name) as reader:
        batches = Batches(forward, writer, rows)
        for arrival in reader.read(slide_ids):
            if arrival is None:
                yield from batches.advance()
            elif isinstance(arrival, EncodedSlide):
                yield Step(0, arrival)
            else:
                yield from batches.add(arrival)
        yield from batches.finish()


def _check_encoder(job: EncodeJob, encoder: FrozenEncoder) -> None:
    """Check that no features of that name were made by another encoder.

    Raises:
        StoreError: they were.
    """
    differing = [] if job.made_by is None else job.made_by.differences(encoder.record)
    if differing:
        raise StoreError(
            f"features/{with_feature_name(job.config).name} of {job.store_uri}: expected the {', '.join(differing)} "
            "that made those of its slides, got another; allowed: one encoder a name; give these features another "
            "--name"
        )


@functools.lru_cache(maxsize=1)
def load_encoder(name: str, device: str) -> FrozenEncoder:
    """Frozen encoder of a spec string, loaded once per process.

    Raises:
        InputError: there is no such device or encoder.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--use-gpu: expected a CUDA device, got none; run on a machine with a GPU or leave the flag out"
        )
    keep_freed_memory()
    return FrozenEncoder(parse_spec(name), torch.device(device))
