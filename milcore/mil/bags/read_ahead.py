"""Groups of bags read ahead: many requests at a time, in bounded memory.

Small bags are read many ahead and large ones few, so that what is in work matches the bandwidth, not the length of a
round trip. Bags are kept in the cache in the order of the groups, whichever read ends first.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from milcore.mil.bags.batch import Bag, BagBatch, pack
from milcore.runtime.storage import CONCURRENT_REQUESTS

# bags in work: as many again as are read wait, so that no reader does
MOST_BAGS = 2 * CONCURRENT_REQUESTS
MOST_GROUPS = CONCURRENT_REQUESTS


class BagCache:
    """Bags in memory, by their indices, up to a size.

    Bags beyond it are read again each epoch: evicting others would make every epoch miss every bag.

    Args:
        size_bytes: of the instances of all bags.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._bags: dict[int, Bag] = {}
        self._used_bytes = 0
        self._lock = threading.Lock()

    def get(self, index: int) -> Bag | None:
        """The bag of an index; None where it is not kept."""
        return self._bags.get(index)

    def keep(self, index: int, bag: Bag, size_bytes: int) -> None:
        """Keep a bag if there is room for it."""
        with self._lock:
            if index not in self._bags and self._used_bytes + size_bytes <= self.size_bytes:
                self._bags[index] = bag
                self._used_bytes += size_bytes


class BagSource(NamedTuple):
    """Source of bags.

    Args:
        get: a bag at hand; None where it is to be read.
        read: reads a bag; called from several threads.
        keep: takes a bag that was read; called from one thread, in the order of the groups.
        size: bytes that the reading of a bag takes.
    """

    get: Callable[[int], Bag | None]
    read: Callable[[int], Bag]
    keep: Callable[[int, Bag], None]
    size: Callable[[int], int]


class _Group(NamedTuple):
    """A group in work: its batch, the bags it reads, and their bytes."""

    batch: Future[BagBatch]
    missing: list[int]
    size: int


class ReadAhead:
    """Batches of groups of bags, the next of them in work.

    The next group is in work while one is used, whatever its size; further groups while the bytes and the numbers of
    what is in work stay within their bounds.

    Args:
        source: of the bags.
        most_bytes: of the bags that are read, together.
    """

    def __init__(self, source: BagSource, most_bytes: int) -> None:
        self._source, self._most_bytes = source, most_bytes
        self._groups: deque[_Group] = deque()
        self._reading: dict[int, Future[Bag]] = {}
        self._readers = ThreadPoolExecutor(CONCURRENT_REQUESTS, thread_name_prefix="bags")
        self._packer = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def batches(self, groups: Iterable[Sequence[int]]) -> Generator[BagBatch]:
        """Batch of each group of indices, in their order.

        Raises:
            Exception: what the reading of a bag raised, in place of its batch.
        """
        try:
            for group in groups:
                while len(self._groups) > 1 and not self._has_room(self._missing(group)):
                    yield self._next()
                self._groups.append(self._submit(tuple(group)))
            while self._groups:
                yield self._next()
        finally:
            self._stop()

    def _missing(self, group: Sequence[int]) -> list[int]:
        return [index for index in dict.fromkeys(group) if self._source.get(index) is None]

    def _has_room(self, missing: Sequence[int]) -> bool:
        bags = len(missing) + sum(len(group.missing) for group in self._groups)
        size = self._size(missing) + sum(group.size for group in self._groups)
        return len(self._groups) < MOST_GROUPS and bags <= MOST_BAGS and size <= self._most_bytes

    def _size(self, indices: Iterable[int]) -> int:
        return sum(map(self._source.size, indices))

    def _submit(self, group: Sequence[int]) -> _Group:
        missing = self._missing(group)  # before what is at hand: the packing thread may keep one meanwhile
        at_hand = {index: bag for index in group if (bag := self._source.get(index)) is not None}
        size = self._size(missing)
        for index in missing:
            if index not in self._reading:
                self._reading[index] = self._readers.submit(self._source.read, index)
        reading = {index: self._reading[index] for index in missing}
        return _Group(self._packer.submit(self._pack, group, at_hand, reading), missing, size)

    def _pack(self, group: Sequence[int], at_hand: dict[int, Bag], reading: dict[int, Future[Bag]]) -> BagBatch:
        bags = at_hand | {index: future.result() for index, future in reading.items()}
        for index in reading:
            self._source.keep(index, bags[index])
        return pack([bags[index] for index in group], group)

    def _next(self) -> BagBatch:
        """Batch of the first group, which leaves the work."""
        group = self._groups.popleft()
        waited_for = {index for other in self._groups for index in other.missing}
        for index in set(group.missing) - waited_for:
            del self._reading[index]
        return group.batch.result()

    def _stop(self) -> None:
        """End what has begun; what has not, does not begin."""
        self._packer.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        self._packer.shutdown()
