"""Patches of consecutive slides in batches: gathered, computed, laid back into their slides' features, and written."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import torch
from jaxtyping import UInt8
from torch import Tensor

from milcore.encoders.extraction.forward import Done, Forward
from milcore.encoders.extraction.reader import Arrival, EncodedSlide, OpenSlide, Place


class Step(NamedTuple):
    """Patches computed since the step before, and the slide that ended with them, if one did."""

    patches: int
    slide: EncodedSlide | None


class Writer:
    """Writes features behind the computation, one slide at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: deque[Future[EncodedSlide]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def write(self, slide: OpenSlide) -> Iterator[Step]:
        """Begin to write a slide, once at most one other waits."""
        while len(self._writing) > 1:
            yield Step(0, self._writing.popleft().result())
        self._writing.append(self._pool.submit(slide.write))

    def done(self, *, all_of_them: bool = False) -> Iterator[Step]:
        """The slides that have been written; or all, waited for."""
        while self._writing and (all_of_them or self._writing[0].done()):
            yield Step(0, self._writing.popleft().result())


class Batches:
    """Batches that go across slides, so that small slides fill them too.

    Args:
        forward: computes them.
        writer: takes slides whose features are complete.
        rows: patches of a batch.
    """

    def __init__(self, forward: Forward, writer: Writer, rows: int) -> None:
        self._forward, self._writer, self._rows = forward, writer, rows
        self._places: list[Place] = []
        self._pixels: list[UInt8[Tensor, "patch height width 3"]] = []

    def add(self, arrival: Arrival) -> Iterator[Step]:
        """Take patches of a slide."""
        (slide, start, _), pixels = arrival
        if self._pixels and self._pixels[0].shape[1:] != pixels.shape[1:]:
            yield from self._submit()
        while len(pixels):
            fitting = pixels[: self._rows - sum(map(len, self._pixels))]
            self._places.append(Place(slide, start, len(fitting)))
            self._pixels.append(fitting)
            start, pixels = start + len(fitting), pixels[len(fitting) :]
            if sum(map(len, self._pixels)) == self._rows:
                yield from self._submit()
        yield from self._writer.done()

    def advance(self) -> Iterator[Step]:
        """With nothing new to read: wait for a batch, else compute one that is not full, else wait for the writer."""
        if len(self._forward):
            yield from self._lay(self._forward.next())
        elif self._places:
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
        if not self._places:
            return
        pixels = self._pixels[0] if len(self._pixels) == 1 else torch.cat(self._pixels)
        places, self._places, self._pixels = self._places, [], []
        for done in self._forward.submit(places, pixels):
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
