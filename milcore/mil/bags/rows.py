"""Instances of a bag as rows that are read by slices.

A bag need never be whole in memory. A tensor has this interface already. ``BlockRows`` prefetches blocks from a store,
forwards in the forward pass and backwards in the backward pass, and keeps at most three of them.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor


@runtime_checkable
class Rows(Protocol):
    """Rows of instances, sliced along the first axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


class BlockRows:
    """Rows from a read function, with prefetching by blocks.

    Args:
        read: reads rows ``start`` to ``stop`` (exclusive); called from a reading thread.
        length: number of rows.
        block: rows in one read; the store's own chunk length.
    """

    def __init__(self, read: Callable[[int, int], Tensor], length: int, block: int) -> None:
        self._read = read
        self._length = length
        self._block = block
        self._blocks: dict[int, Future[Tensor]] = {}
        self._last_start = 0
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self._length)
        first, last = start // self._block, max(start, stop - 1) // self._block
        if last - first > 1 or stop - start == self._length:
            return self._read_run(start, stop)
        ahead = first - 1 if start < self._last_start else last + 1
        self._last_start = start
        self._prefetch(range(first, last + 1), ahead)
        parts = [self._part(block, start, stop) for block in range(first, last + 1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _read_run(self, start: int, stop: int) -> Tensor:
        """Read many rows at once, without the first blocks that are here already."""
        parts = []
        while start < stop and start // self._block in self._blocks:
            block = start // self._block
            parts.append(self._part(block, start, stop))
            start = (block + 1) * self._block
        if start < stop or not parts:
            parts.append(self._read(start, stop))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, block: int, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (exclusive), as far as they lie in a block."""
        return self._blocks[block].result()[max(0, start - block * self._block) : stop - block * self._block]

    def _prefetch(self, needed: range, ahead: int) -> None:
        """Start to read missing blocks, the needed ones first, and drop all others."""
        wanted = [*needed, ahead] if 0 <= ahead * self._block < self._length else list(needed)
        for block in wanted:
            if block not in self._blocks:
                start = block * self._block
                stop = min(start + self._block, self._length)
                self._blocks[block] = self._reader.submit(self._read, start, stop)
        self._blocks = {block: self._blocks[block] for block in wanted}


class RowSlice:
    """Lazy view of rows ``start`` to ``stop`` (exclusive) of other rows."""

    def __init__(self, rows: Rows, start: int, stop: int) -> None:
        self._rows, self._start, self._stop = rows, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        return self._rows[self._start + start : self._start + stop]


class RowSubset:
    """Lazy view of other rows at ascending indices.

    The rows between them are read too, and dropped.
    """

    def __init__(self, rows: Rows, indices: Int[Tensor, " row"]) -> None:
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, rows: slice) -> Tensor:
        indices = self._indices[rows]
        first = int(indices[0])
        return self._rows[first : int(indices[-1]) + 1][indices - first]


class ChainedRows:
    """Lazy concatenation of rows: slides of a patient, bags of a batch.

    Rows are copied on slicing only, and a slice that lies in one part is not copied at all.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = tuple(parts)
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        first, last = bisect.bisect_right(self._ends, start), bisect.bisect_left(self._ends, stop)
        pieces = []
        for place in range(min(first, len(self._parts) - 1), last + 1):
            part, begin = self._parts[place], self._ends[place] - len(self._parts[place])
            pieces.append(part[max(0, start - begin) : min(stop, self._ends[place]) - begin])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
