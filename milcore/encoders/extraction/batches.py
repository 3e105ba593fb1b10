"""Batches across slides: patches to features, collected by slide and written."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import torch
from jaxtyping import UInt8
from torch import Tensor

from milcore.encoders.extraction.forward import BatchFeatures, Forward
from milcore.encoders.extraction.reader import Arrival, PatchRange, SlideFeatures
from milcore.encoders.extraction.request import EncodedSlide


class Step(NamedTuple):
    """Progress of encoding: patches computed since the last step, or a finished slide.

    Args:
        patches: computed since the step before.
        slide: that is finished; None where no slide is.
    """

    patches: int
    slide: EncodedSlide | None


class Writer:
    """Writer of features in a background thread, one slide at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: deque[Future[EncodedSlide]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def write(self, slide: SlideFeatures) -> Iterator[Step]:
        """Queue a slide for writing, once at most one other is queued."""
        while len(self._writing) > 1:
            yield Step(0, self._writing.popleft().result())
        self._writing.append(self._pool.submit(slide.write))

    def drain(self, *, wait: bool) -> Iterator[Step]:
        """Slides written so far; with ``wait``, all queued slides."""
        while self._writing and (wait or self._writing[0].done()):
            yield Step(0, self._writing.popleft().result())


class Batches:
    """Batches across slides, so that small slides fill them too.

    Args:
        forward: computes the features.
        writer: writes slides with complete features.
        rows: patches of a batch.
    """

    def __init__(self, forward: Forward, writer: Writer, rows: int) -> None:
        self._forward, self._writer, self._rows = forward, writer, rows
        self._ranges: list[PatchRange] = []
        self._pixels: list[UInt8[Tensor, "patch height width 3"]] = []

    def add(self, arrival: Arrival) -> Iterator[Step]:
        """Add patches of a slide."""
        (slide, start, _), pixels = arrival
        if self._pixels and self._pixels[0].shape[1:] != pixels.shape[1:]:
            yield from self._submit()
        while len(pixels):
            fitting = pixels[: self._rows - sum(map(len, self._pixels))]
            self._ranges.append(PatchRange(slide, start, len(fitting)))
            self._pixels.append(fitting)
            start, pixels = start + len(fitting), pixels[len(fitting) :]
            if sum(map(len, self._pixels)) == self._rows:
                yield from self._submit()
        yield from self._writer.drain(wait=False)

    def advance(self) -> Iterator[Step]:
        """Make progress without new patches.

        Waits for a batch, else submits an incomplete one, else waits for the writer.
        """
        if len(self._forward):
            yield from self._collect(self._forward.next())
        elif self._ranges:
            yield from self._submit()
        else:
            yield from self._writer.drain(wait=True)

    def finish(self) -> Iterator[Step]:
        """Compute and write all remaining patches."""
        yield from self._submit()
        while len(self._forward):
            yield from self._collect(self._forward.next())
        yield from self._writer.drain(wait=True)

    def _submit(self) -> Iterator[Step]:
        if not self._ranges:
            return
        pixels = self._pixels[0] if len(self._pixels) == 1 else torch.cat(self._pixels)
        ranges, self._ranges, self._pixels = self._ranges, [], []
        for batch in self._forward.submit(ranges, pixels):
            yield from self._collect(batch)

    def _collect(self, batch: BatchFeatures) -> Iterator[Step]:
        begin = 0
        for slide, start, length in batch.tag:
            slide.features[start : start + length] = batch.features[begin : begin + length]
            slide.missing -= length
            begin += length
            if slide.missing == 0:
                yield from self._writer.write(slide)
        yield Step(begin, None)
