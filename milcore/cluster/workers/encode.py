"""Encoding a store on Ray: an actor per worker, each with its encoder, its GPU or its share of the cores.

Slides are handed to an actor as it ends others, enough ahead to fill its batches. When an actor dies, the slides it had
not ended go to another one; what had been written stays.
"""

import queue
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from milcore.config import LaunchConfig
from milcore.encoders.extraction.batches import Step
from milcore.encoders.extraction.encode import Work, encode_slides, load_encoder
from milcore.encoders.extraction.forward import QUEUED_PER_THREAD
from milcore.errors import ClusterError, MILError

BATCHES_AHEAD = 2 * QUEUED_PER_THREAD
DEATHS_AT_ONE_PLACE = 3
SECONDS_OF_WAITING = 0.05


class SlideEncoder:
    """The actor: encodes what it is told to, in order.

    Args:
        work: the store and the encoder.
        threads: forward passes at a time on a CPU.
    """

    def __init__(self, work: Work, threads: int) -> None:
        self._work, self._threads = work, threads
        self._told: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ready(self) -> None:
        """Load the encoder."""
        load_encoder(self._work.config.encoder, self._work.device)

    def take(self, slide_ids: list[str], *, last: bool) -> None:
        """More slides to encode; after the last the steps end."""
        for slide_id in slide_ids:
            self._told.put(slide_id)
        if last:
            self._told.put(None)

    def steps(self) -> Iterator[Step]:
        """Encode, and say so."""
        yield from encode_slides(self._work, self._asked(), self._threads)

    def _asked(self) -> Iterator[str | None]:
        while True:
            try:
                slide_id = self._told.get(timeout=SECONDS_OF_WAITING)
            except queue.Empty:
                yield None
                continue
            if slide_id is None:
                return
            yield slide_id


class EncoderResources(NamedTuple):
    """What one actor has of the cluster."""

    actors: int
    cpus: int
    gpus: int


class _Worker:
    """The driver's side of one actor: the slides it holds and the reference to what it says next."""

    def __init__(self, work: Work, share: EncoderResources) -> None:
        remote: Any = ray.remote  # its types know functions only
        kind = remote(num_cpus=share.cpus, num_gpus=share.gpus, max_concurrency=2)(SlideEncoder)
        self.actor = kind.remote(work, share.cpus)
        self.waits_for: Any = self.actor.ready.remote()
        self.stream: Any = None
        self.held: dict[str, int] = {}
        self.closed = False

    def begin(self) -> None:
        """The encoder is loaded: ask for steps."""
        self.stream = self.actor.steps.options(num_returns="streaming").remote()
        self.waits_for = self.stream

    def feed(self, slides: deque[tuple[str, int]], ahead: int) -> None:
        """Hand slides over until those behind the first fill its batches; close when none is left."""
        if self.closed:
            return
        taken = []
        while slides and sum(list(self.held.values())[1:]) < ahead:
            slide_id, patches = slides.popleft()
            self.held[slide_id] = patches
            taken.append(slide_id)
        self.closed = not slides
        if taken or self.closed:
            self.actor.take.remote(taken, last=self.closed)


def encode_on_ray(work: Work, slides: dict[str, int], launch: LaunchConfig) -> Iterator[Step]:
    """Encode slides on ``launch.workers`` actors of the connected cluster, or as many as it has room for.

    Raises:
        MILError: an actor raised it.
        ClusterError: an actor failed otherwise, or a slide's actor died again and again.
    """
    share = share_of(launch)
    # the largest first: no worker is left with a long one at the end
    waiting = deque(sorted(slides.items(), key=lambda item: -item[1]))
    ahead = BATCHES_AHEAD * work.config.patches_per_batch * (1 if share.gpus else share.cpus)
    workers = [_Worker(work, share) for _ in range(min(share.actors, len(waiting)))]
    deaths: Counter[str] = Counter()
    try:
        while workers:
            worker = _next(workers)
            try:
                ended, step = _listen(worker)
            except RayError as error:
                workers.remove(worker)
                _take_back(worker, waiting, deaths, error)
                if waiting:
                    workers.append(_Worker(work, share))
                continue
            if ended:
                workers.remove(worker)
                continue
            if step is not None:
                if step.slide is not None:
                    worker.held.pop(step.slide.slide_id, None)
                yield step
            worker.feed(waiting, ahead)
            if not waiting:
                workers = [each for each in workers if each.stream is not None]
    finally:
        for worker in workers:
            ray.kill(worker.actor)


def share_of(launch: LaunchConfig) -> EncoderResources:
    """Actors, and the CPUs and GPUs of each: the cluster's divided by the workers, none larger than its smallest node.

    Raises:
        ClusterError: the cluster has no GPU, and one was asked for.
    """
    nodes = [node["Resources"] for node in _nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    cpus = [int(node["CPU"]) for node in nodes]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if launch.use_gpu and gpus == 0:
        raise ClusterError("--use-gpu: the Ray cluster has no GPU; start its workers with one or leave the flag out")
    most = gpus if launch.use_gpu else sum(cpus)
    actors = max(1, min(launch.workers, most))
    return EncoderResources(actors, max(1, min(sum(cpus) // actors, min(cpus, default=1))), int(launch.use_gpu))


def _nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]


def _next(workers: list[_Worker]) -> _Worker:
    """The worker that has something to say."""
    (ready, *_), _ = ray.wait([worker.waits_for for worker in workers], num_returns=1, fetch_local=False)
    return next(worker for worker in workers if worker.waits_for is ready or worker.waits_for == ready)


def _listen(worker: _Worker) -> tuple[bool, Step | None]:
    """Whether the worker has ended, and what it said."""
    try:
        if worker.stream is None:
            ray.get(worker.waits_for)
            worker.begin()
            return False, None
        return False, ray.get(next(worker.stream))
    except StopIteration:
        return True, None
    except RayTaskError as error:
        if isinstance(error.cause, MILError):
            raise error.cause from None
        raise ClusterError(f"a Ray worker failed: {error.cause!r}") from error


def _take_back(worker: _Worker, waiting: deque[tuple[str, int]], deaths: Counter[str], error: Exception) -> None:
    """Put the slides of a dead actor first in the queue again; only the one it was at may be to blame.

    Raises:
        ClusterError: actors have died at that slide too often, or before any.
    """
    reason = " ".join(str(error).split())[:300]
    first = next(iter(worker.held), None) if worker.stream is not None else None
    at = "while they loaded the encoder" if first is None else f"at slide {first!r}"
    deaths[at] += 1
    if deaths[at] == DEATHS_AT_ONE_PLACE:
        raise ClusterError(f"{DEATHS_AT_ONE_PLACE} Ray workers died {at}: {reason}") from error
    waiting.extendleft(reversed(worker.held.items()))
