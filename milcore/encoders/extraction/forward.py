"""Queue of forward passes of an encoder in background threads.

Several passes run at a time on a CPU, one on a GPU. Every pass has the same number of rows (a short batch is padded)
and, on a CPU, one thread. The features of a patch therefore do not depend on the other patches of the batch, on the
number of cores or on the worker: they are equal to the bit on equal processors. Threads that share a pass would wait
for each other at every layer.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from milcore.errors import MILError

CPU_ROWS = 8
QUEUED_PER_THREAD = 2
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "failed to allocate")


class Encoder(Protocol):
    """Encoder as called in a forward pass."""

    width: int

    def __call__(self, patches: Tensor, /) -> Tensor:
        """Features (n, d) of patches (n, h, w, 3)."""
        ...


class BatchFeatures(NamedTuple):
    """Features of a batch, with the tag it was submitted with."""

    tag: Any
    features: Float[np.ndarray, "patch feature"]


class Forward:
    """Queue of batches for an encoder; results come in order of submission.

    On out-of-memory the number of rows is halved from then on, and the batch computed again in parts.

    Args:
        encoder: called from several threads.
        rows: of every pass.
        threads: passes at a time.
    """

    def __init__(self, encoder: Encoder, rows: int, threads: int) -> None:
        self.rows = rows
        self._encoder = encoder
        torch.get_num_threads()  # this thread's own number: torch would take that of the passes at its first use
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode", initializer=_one_thread)
        self._queue: deque[tuple[Any, Future[Float[np.ndarray, "patch feature"]]]] = deque()
        self._room = QUEUED_PER_THREAD * threads

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, tag: Any, patches: UInt8[Tensor, "patch height width 3"]) -> Iterator[BatchFeatures]:
        """Submit a batch, and yield the oldest results while the queue is full."""
        while len(self._queue) >= self._room:
            yield self.next()
        self._queue.append((tag, self._pool.submit(self._pass, patches)))

    def __len__(self) -> int:
        return len(self._queue)

    def next(self) -> BatchFeatures:
        """Wait for the result of the oldest batch."""
        tag, future = self._queue.popleft()
        return BatchFeatures(tag, future.result())

    def _pass(self, patches: UInt8[Tensor, "patch height width 3"]) -> Float[np.ndarray, "patch feature"]:
        features = np.empty((len(patches), self._encoder.width), np.float32)
        start = 0
        while start < len(patches):
            rows = self.rows
            part = patches[start : start + rows]
            try:
                features[start : start + rows] = self._encoder(pad_rows(part, rows))[: len(part)].numpy()
            except (RuntimeError, MemoryError) as error:
                self._halve(rows, error)
                continue
            start += rows
        return features

    def _halve(self, rows: int, error: BaseException) -> None:
        """Halve the number of rows, unless another thread already has.

        Raises:
            MILError: one patch does not fit into memory.
        """
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(
            words in str(error).lower() for words in _NO_MEMORY
        ):
            raise error
        if rows == 1:
            raise MILError(
                "not enough memory to encode one patch; use a smaller encoder or a larger machine"
            ) from error
        self.rows = min(self.rows, rows // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def pad_rows(patches: UInt8[Tensor, "patch height width 3"], rows: int) -> UInt8[Tensor, "row height width 3"]:
    """Pad patches to so many rows by repeating the last one."""
    missing = rows - len(patches)
    return patches if missing <= 0 else torch.cat([patches, patches[-1:].expand(missing, -1, -1, -1)])


def _one_thread() -> None:
    # torch keeps the number per thread: it is that of the passes of this thread
    torch.set_num_threads(1)
