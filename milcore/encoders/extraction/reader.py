"""Prefetching of slides and their patches, read and decoded in background threads.

It prefetches across slides, so that the computation does not wait for small slides or remote storage.

Axes: patch, height, width; the last axis of patches is RGB.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from torch import Tensor

from milcore.config import EncoderRecord
from milcore.encoders.extraction.forward import CPU_ROWS
from milcore.encoders.extraction.request import EncodedSlide
from milcore.encoders.frozen import FrozenEncoder
from milcore.encoders.record import encoder_record
from milcore.errors import MILError, StoreError
from milcore.runtime import storage
from milcore.store.feature_type import FeatureType, feature_type
from milcore.store.slide_group import SlideGroup

READERS = 4
SLIDES_AHEAD = 4

R = TypeVar("R")


class SlideFeatures:
    """Features of a slide, collected until complete and then written.

    They are collected in float32: which type they are stored in is known only when all of them are.

    Args:
        slide: with the patches.
        width: of the features.
        name: of the features in the store.
        attributes: stored with the features.
    """

    def __init__(self, slide: SlideGroup, width: int, name: str, attributes: dict[str, Any]) -> None:
        self.slide, self.name, self.attributes = slide, name, attributes
        self.features: Float32[np.ndarray, "patch feature"] = np.empty((len(slide), width), np.float32)
        self.missing = len(slide)
        self.failure: EncodedSlide | None = None

    def write(self) -> EncodedSlide:
        """Write the features to the store."""
        kind = feature_type(self.features)
        features, self.features = self.features.astype(kind, copy=False), self.features[:0]
        written = self.slide.write_feature_array(self.name, features, self.attributes)
        return _encoded(self.slide, kind, written.metadata, skipped=False)


class PatchRange(NamedTuple):
    """Consecutive patches of a slide."""

    slide: SlideFeatures
    start: int
    length: int


class Arrival(NamedTuple):
    """Decoded patches of a range."""

    patch_range: PatchRange
    pixels: UInt8[Tensor, "patch height width 3"]


Task = Callable[[], Arrival | EncodedSlide]


class Reader:
    """Reader of slides in background threads; patches come in order.

    Args:
        open_slide: opens a slide by its id.
        encoder: whose features are wanted.
        name: of the features in the store.
    """

    def __init__(self, open_slide: Callable[[str], SlideGroup], encoder: FrozenEncoder, name: str) -> None:
        self._open_slide, self._encoder, self._name = open_slide, encoder, name
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, slide_ids: Iterable[str | None]) -> Iterator[Arrival | EncodedSlide | None]:
        """Read the patches of slides, in order.

        For a slide that has its features or cannot be read, its outcome is yielded once instead.

        Args:
            slide_ids: of the slides to encode; None where no further slide is known yet, which is yielded as None once
                all earlier slides are read.
        """
        opening = (None if slide_id is None else functools.partial(self._open, slide_id) for slide_id in slide_ids)
        slides = run_ahead(opening, self._pool, SLIDES_AHEAD)
        reading = (task for slide in slides for task in self._tasks(slide))
        failed: set[str | None] = set()
        for result in run_ahead(reading, self._pool, READERS):
            slide_id = result.slide_id if isinstance(result, EncodedSlide) else None
            if slide_id is None or slide_id not in failed:
                yield result
            failed.add(slide_id)

    def _open(self, slide_id: str) -> SlideFeatures | EncodedSlide:
        try:
            slide = self._open_slide(slide_id)
            attributes = _attributes(slide, self._encoder)
            # not those of the catalogue: features that a person removed are to be made again
            stored = slide.stored_features(self._name)
            if stored is not None and _are_current(slide, self._name, stored.attrs, self._encoder.record):
                kept = slide.feature_type(self._name, stored)
                return _encoded(slide, kept, stored.metadata, skipped=True)
        except (MILError, *storage.IO_ERRORS) as error:
            return _failure(slide_id, error)
        return SlideFeatures(slide, self._encoder.width, self._name, attributes)

    def _tasks(self, slide: SlideFeatures | EncodedSlide | None) -> Iterator[Task | None]:
        """Read tasks of a slide, one per range of patches.

        Outcomes and None are passed on in order.
        """
        if slide is None:
            yield None
        elif isinstance(slide, EncodedSlide):
            yield functools.partial(_identity, slide)
        else:
            count = len(slide.features)
            for start in range(0, count, CPU_ROWS):
                yield functools.partial(self._read, PatchRange(slide, start, min(CPU_ROWS, count - start)))

    def _read(self, patch_range: PatchRange) -> Arrival | EncodedSlide:
        slide, start, length = patch_range
        if slide.failure is None:
            try:
                return Arrival(patch_range, self._encoder.decode(slide.slide, start, start + length))
            except (MILError, *storage.IO_ERRORS) as error:
                slide.failure = _failure(slide.slide.slide_id, error)
        return slide.failure


def run_ahead(tasks: Iterable[Callable[[], R] | None], pool: Executor, depth: int) -> Iterator[R | None]:
    """Run tasks in a pool, ``depth`` ahead, with results in order of the tasks.

    Args:
        tasks: None where no further task is known yet; yielded as None once no task is pending.
        pool: to run them.
        depth: tasks pending behind the awaited one.
    """
    pending: deque[Future[R]] = deque()
    for task in tasks:
        if task is not None:
            pending.append(pool.submit(task))
        while len(pending) > (0 if task is None else depth):
            yield pending.popleft().result()
        if task is None:
            yield None
    while pending:
        yield pending.popleft().result()


def _identity(slide: EncodedSlide) -> Arrival | EncodedSlide:
    return slide


def _encoded(slide: SlideGroup, kind: FeatureType, metadata: bytes, *, skipped: bool) -> EncodedSlide:
    return EncodedSlide(
        slide.slide_id, len(slide), skipped, feature_type=kind, metadata=metadata, record_digest=slide.record.digest
    )


def _failure(slide_id: str, error: Exception) -> EncodedSlide:
    return EncodedSlide(slide_id, 0, skipped=False, reason=" ".join(str(error).split()))


def _attributes(slide: SlideGroup, encoder: FrozenEncoder) -> dict[str, Any]:
    """Attributes stored with features: everything that they depend on.

    Raises:
        StoreError: the slide has no patches, or patches of another scale than the encoder expects.
    """
    if not slide.has_patches or slide.patch_size is None:
        raise StoreError(
            f"slide {slide.slide_id!r}: expected patches, got an import without them; train on its features"
        )
    return {
        **encoder.record.model_dump(),
        "mpp_seen": encoder.transform.check_scale(slide.slide_id, slide.patch_size, slide.record.patch_mpp),
        "patches_digest": slide.patches_digest,
    }


def _are_current(slide: SlideGroup, name: str, attrs: Mapping[str, Any], encoder: EncoderRecord) -> bool:
    """True for features of the slide's patches and this encoder.

    The weights are compared by digest, not by location.

    Args:
        slide: with the patches.
        name: of the features.
        attrs: of the features that the slide has.
        encoder: that is to make them.

    Raises:
        StoreError: features of that name were made by another encoder.
    """
    stored = encoder_record(attrs)
    changed = ["encoder"] if stored is None else stored.differences(encoder)
    if changed:
        raise StoreError(
            f"features/{name} of slide {slide.slide_id!r}: expected the {', '.join(changed)} of this encoder, got "
            "another; give these features another --name"
        )
    return bool(attrs.get("patches_digest") == slide.patches_digest)
