"""Slides opened, and their patches read and decoded, ahead of the computation.

It goes on across slides, so that small ones and far storage do not keep the computation waiting.

Axes: patch, height, width; the last axis of patches is RGB.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from jaxtyping import Float16, UInt8
from torch import Tensor

from milcore.encoders.extraction.forward import CPU_ROWS
from milcore.encoders.frozen import FrozenEncoder
from milcore.errors import MILError, StoreError
from milcore.runtime import storage
from milcore.store.slide_group import SlideGroup
from milcore.store.store import PatchStore

READERS = 4
SLIDES_AHEAD = 4

R = TypeVar("R")


class EncodedSlide(NamedTuple):
    """What became of one slide; ``reason`` says why it has no features."""

    slide_id: str
    patches: int
    skipped: bool
    reason: str | None = None


class OpenSlide:
    """A slide whose features are being gathered.

    Args:
        slide: where its patches are.
        width: of the features.
        name: under which they will be stored.
        attributes: that will be stored with them.
    """

    def __init__(self, slide: SlideGroup, width: int, name: str, attributes: dict[str, Any]) -> None:
        self.slide, self.name, self.attributes = slide, name, attributes
        self.features: Float16[np.ndarray, "patch feature"] = np.empty((len(slide), width), np.float16)
        self.missing = len(slide)
        self.failure: EncodedSlide | None = None

    def write(self) -> EncodedSlide:
        """Store the features."""
        self.slide.write_features(self.name, self.features, self.attributes)
        return EncodedSlide(self.slide.slide_id, len(self.features), skipped=False)


class Place(NamedTuple):
    """Consecutive patches of a slide."""

    slide: OpenSlide
    start: int
    length: int


class Arrival(NamedTuple):
    """Patches that have been read, and which they are."""

    place: Place
    pixels: UInt8[Tensor, "patch height width 3"]


Task = Callable[[], Arrival | EncodedSlide]


class Reader:
    """Opens slides and reads them, by threads of its own, handing patches over in order.

    Args:
        store: of the slides.
        encoder: whose features are wanted.
        name: of the features.
    """

    def __init__(self, store: PatchStore, encoder: FrozenEncoder, name: str) -> None:
        self._store, self._encoder, self._name = store, encoder, name
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, slide_ids: Iterable[str | None]) -> Iterator[Arrival | EncodedSlide | None]:
        """The slides' patches; or, of a slide that has its features or cannot be read, once what became of it.

        Args:
            slide_ids: None says that no further one is known yet, and is handed on once nothing is left to be read.
        """
        opening = (None if slide_id is None else functools.partial(self._open, slide_id) for slide_id in slide_ids)
        opened = ahead(opening, self._pool, SLIDES_AHEAD)
        reading = (task for slide in opened for task in self._tasks(slide))
        failed: set[str | None] = set()
        for found in ahead(reading, self._pool, READERS):
            slide_id = found.slide_id if isinstance(found, EncodedSlide) else None
            if slide_id is None or slide_id not in failed:
                yield found
            failed.add(slide_id)

    def _open(self, slide_id: str) -> OpenSlide | EncodedSlide:
        try:
            slide = self._store.slide(slide_id)
            attributes = _attributes(slide, self._encoder)
            if _is_encoded(slide, self._name, attributes):
                return EncodedSlide(slide_id, len(slide), skipped=True)
        except (MILError, *storage.IO_ERRORS) as error:
            return _failure(slide_id, error)
        return OpenSlide(slide, self._encoder.width, self._name, attributes)

    def _tasks(self, slide: OpenSlide | EncodedSlide | None) -> Iterator[Task | None]:
        """How a slide is read, in runs of patches; anything else is handed through in its turn."""
        if slide is None:
            yield None
        elif isinstance(slide, EncodedSlide):
            yield functools.partial(_itself, slide)
        else:
            count = len(slide.features)
            for start in range(0, count, CPU_ROWS):
                yield functools.partial(self._read, Place(slide, start, min(CPU_ROWS, count - start)))

    def _read(self, place: Place) -> Arrival | EncodedSlide:
        slide, start, length = place
        if slide.failure is None:
            try:
                return Arrival(place, self._encoder.decoded(slide.slide, start, start + length))
            except (MILError, *storage.IO_ERRORS) as error:
                slide.failure = _failure(slide.slide.slide_id, error)
        return slide.failure


def ahead(tasks: Iterable[Callable[[], R] | None], pool: Executor, depth: int) -> Iterator[R | None]:
    """Results in the order of their tasks, ``depth`` of them under way behind the one that is waited for.

    Args:
        tasks: None says that no further one is known yet; it is handed on once nothing is under way.
        pool: does the work.
        depth: how many.
    """
    under_way: deque[Future[R]] = deque()
    for task in tasks:
        if task is not None:
            under_way.append(pool.submit(task))
        while len(under_way) > (0 if task is None else depth):
            yield under_way.popleft().result()
        if task is None:
            yield None
    while under_way:
        yield under_way.popleft().result()


def _itself(slide: EncodedSlide) -> Arrival | EncodedSlide:
    return slide


def _failure(slide_id: str, error: Exception) -> EncodedSlide:
    return EncodedSlide(slide_id, 0, skipped=False, reason=" ".join(str(error).split()))


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
        "mpp_seen": encoder.scale.check_scale(slide.slide_id, slide.patch_size, slide.record.patch_mpp),
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
