"""Encode a store on Ray: an actor per worker, each with its own encoder.

An actor has a GPU, or its share of the cores. Slides are assigned to an actor as it completes others, enough ahead to
fill its batches. When an actor dies, the slides it had not completed are assigned to another one; features that are
written stay.
"""

import queue
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from milcore.cluster.workers.capacity import node_resources, room_of_nodes, task_resources, wait_for_workers
from milcore.config import LaunchConfig
from milcore.encoders.extraction.batches import Step
from milcore.encoders.extraction.encode import EncodeJob, encode_slides, load_encoder
from milcore.encoders.extraction.forward import QUEUED_PER_THREAD
from milcore.errors import ClusterError, MILError
from milcore.runtime.progress import log_line

BATCHES_AHEAD = 2 * QUEUED_PER_THREAD
DEATHS_AT_ONE_SLIDE = 3
QUEUE_TIMEOUT_S = 0.05


class SlideEncoder:
    """Ray actor that encodes the slides assigned to it, in order.

    Args:
        work: the store and the encoder.
        threads: concurrent forward passes on a CPU.
    """

    def __init__(self, work: EncodeJob, threads: int) -> None:
        self._work, self._threads = work, threads
        self._slide_ids: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def load(self) -> None:
        """Load the encoder."""
        load_encoder(self._work.config.encoder, self._work.device)

    def assign(self, slide_ids: list[str], *, last: bool) -> None:
        """Queue slides to encode; after the last ones the steps end."""
        for slide_id in slide_ids:
            self._slide_ids.put(slide_id)
        if last:
            self._slide_ids.put(None)

    def steps(self) -> Iterator[Step]:
        """Encode the assigned slides step by step."""
        yield from encode_slides(self._work, self._assigned(), self._threads)

    def _assigned(self) -> Iterator[str | None]:
        while True:
            try:
                slide_id = self._slide_ids.get(timeout=QUEUE_TIMEOUT_S)
            except queue.Empty:
                yield None
                continue
            if slide_id is None:
                return
            yield slide_id


class EncoderResources(NamedTuple):
    """Encoder actors, those with room now, CPUs and GPUs of each."""

    actors: int
    room: int
    cpus: int
    gpus: int


class _Worker:
    """The driver's handle of one actor.

    ``unfinished`` has the slides assigned to it and their patches, ``pending`` is the reference to its next result.
    """

    def __init__(self, work: EncodeJob, resources: EncoderResources) -> None:
        remote: Any = ray.remote  # its types know functions only
        kind = remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_concurrency=2)(SlideEncoder)
        self.actor = kind.remote(work, resources.cpus)
        self.pending: Any = self.actor.load.remote()
        self.stream: Any = None
        self.unfinished: dict[str, int] = {}
        self.closed = False

    def start(self) -> None:
        """Request steps of an actor that has loaded its encoder."""
        self.stream = self.actor.steps.options(num_returns="streaming").remote()
        self.pending = self.stream

    def feed(self, slides: deque[tuple[str, int]], ahead: int) -> None:
        """Assign slides until those after the first have ``ahead`` patches.

        Closes the worker when no slide is left.
        """
        if self.closed:
            return
        slide_ids = []
        while slides and sum(list(self.unfinished.values())[1:]) < ahead:
            slide_id, patches = slides.popleft()
            self.unfinished[slide_id] = patches
            slide_ids.append(slide_id)
        self.closed = not slides
        if slide_ids or self.closed:
            self.actor.assign.remote(slide_ids, last=self.closed)


def encode_on_ray(work: EncodeJob, slides: dict[str, int], launch: LaunchConfig) -> Iterator[Step]:
    """Encode slides on ``launch.workers`` actors of the connected cluster.

    The first one's room is waited for. The others are requested at once: one whose node comes later joins then, and one
    whose node never comes is given no slides.

    Raises:
        MILError: an actor raised it.
        ClusterError: the cluster has no room, an actor failed otherwise, or DEATHS_AT_ONE_SLIDE actors died at one
            slide.
    """
    wait_for_workers(launch, 1, task_resources(launch))
    resources = encoder_resources(launch, len(slides))
    late = resources.actors - resources.room
    joining = f"; {late} more join as their nodes come" if late else ""
    log_line(f"encoding with {resources.room} workers of {resources.cpus} CPUs{joining}")
    # largest first, so that no worker ends with a long one alone
    waiting = deque(sorted(slides.items(), key=lambda item: -item[1]))
    ahead = BATCHES_AHEAD * work.config.patches_per_batch * (1 if resources.gpus else resources.cpus)
    workers = [_Worker(work, resources) for _ in range(resources.actors)]
    deaths: Counter[str] = Counter()
    try:
        while workers:
            worker = _next_worker(workers)
            try:
                has_ended, step = _next_step(worker)
            except RayError as error:
                workers.remove(worker)
                _requeue(worker, waiting, deaths, error)
                if waiting:
                    workers.append(_Worker(work, resources))
                continue
            if has_ended:
                workers.remove(worker)
                continue
            if step is None:
                _log_late_worker(workers, resources)
            else:
                if step.slide is not None:
                    worker.unfinished.pop(step.slide.slide_id, None)
                yield step
            worker.feed(waiting, ahead)
            if not waiting:
                workers = [worker for worker in workers if worker.stream is not None]
    finally:
        for worker in workers:
            ray.kill(worker.actor)


def encoder_resources(launch: LaunchConfig, slides: int) -> EncoderResources:
    """Resources of the workers, by the nodes that are there.

    Each has as many CPUs as let all of them run side by side, at least one, and one GPU or none. A cluster of this
    process has no more workers than there is room for.

    Args:
        launch: number of workers, and a GPU for each or none.
        slides: how many; there are no more workers.
    """
    nodes = node_resources()

    def room(cpus: int) -> int:
        return room_of_nodes(nodes, task_resources(launch) | {"CPU": float(cpus)})

    actors = max(1, min(launch.workers, slides))
    at_once = max(1, min(actors, room(1)))
    most = int(max(node.get("CPU", 0.0) for node in nodes))
    cpus = next((cpus for cpus in range(most, 1, -1) if room(cpus) >= at_once), 1)
    return EncoderResources(at_once if launch.ray_address == "local" else actors, at_once, cpus, int(launch.use_gpu))


def _log_late_worker(workers: list[_Worker], resources: EncoderResources) -> None:
    """Log that a worker has begun for which there was no room before."""
    started = sum(worker.stream is not None for worker in workers)
    if started > resources.room:
        log_line(f"a node has come: {started} of {resources.actors} workers encode")


def _next_worker(workers: list[_Worker]) -> _Worker:
    """Wait for the first worker whose pending result is there."""
    (result, *_), _ = ray.wait([worker.pending for worker in workers], num_returns=1, fetch_local=False)
    return next(worker for worker in workers if worker.pending is result or worker.pending == result)


def _next_step(worker: _Worker) -> tuple[bool, Step | None]:
    """(True, None) at the end of a worker, else (False, step).

    The step is None where the worker has only loaded its encoder.
    """
    try:
        if worker.stream is None:
            ray.get(worker.pending)
            worker.start()
            return False, None
        return False, ray.get(next(worker.stream))
    except StopIteration:
        return True, None
    except RayTaskError as error:
        if isinstance(error.cause, MILError):
            raise error.cause from None
        raise ClusterError(f"a Ray worker failed: {error.cause!r}") from error


def _requeue(worker: _Worker, waiting: deque[tuple[str, int]], deaths: Counter[str], error: Exception) -> None:
    """Put the unfinished slides of a dead actor back into the queue, first.

    Its death counts against the slide it was encoding, the first of them.

    Raises:
        ClusterError: DEATHS_AT_ONE_SLIDE actors have died at that slide, or while they loaded the encoder.
    """
    reason = " ".join(str(error).split())[:300]
    slide_id = next(iter(worker.unfinished), None) if worker.stream is not None else None
    occasion = "while they loaded the encoder" if slide_id is None else f"at slide {slide_id!r}"
    deaths[occasion] += 1
    if deaths[occasion] == DEATHS_AT_ONE_SLIDE:
        raise ClusterError(f"{DEATHS_AT_ONE_SLIDE} Ray workers died {occasion}: {reason}") from error
    log_line(f"a worker was lost {occasion}; another one takes its slides")
    waiting.extendleft(reversed(worker.unfinished.items()))
