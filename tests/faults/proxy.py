"""A proxy in front of an S3 server that fails or stalls when told to."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from tests.proxy import CountingProxy, Fault

WRITES = ("PUT", "POST", "DELETE")


class Stop(NamedTuple):
    """A moment between two writes: a request that changes something, and what is done then.

    Args:
        at_write: number of the request, from 1.
        is_passed_on: the moment lies after the server got it; else before.
        action: true where the request is then passed on, and answered; else it or its answer is lost.
    """

    at_write: int
    is_passed_on: bool
    action: Callable[[], bool]


class FaultyProxy:
    """Passes requests on, or not.

    Args:
        upstream: URL of the server behind.

    Attributes:
        every: refuse each request whose number this divides; 0 none.
        status: of the answer to a refused request; 0: the connection is cut without one.
        methods: of the requests that are refused.
        stall_s: hold every request for so long before passing it on.
        stop: what happens at one of the writes; None for nothing.
        writes: how many requests that change something have come.
        failed, stalled: how many requests were treated so.
    """

    def __init__(self, upstream: str) -> None:
        self.every, self.status, self.methods = 0, 500, ("GET", "PUT", "POST", "DELETE", "HEAD")
        self.stop: Stop | None = None
        self.requests = self.failed = self.stalled = self.writes = 0
        self._lock = threading.Lock()
        self._proxy = CountingProxy(upstream, self._fault_of)
        self.url, self.close = self._proxy.url, self._proxy.close

    @property
    def stall_s(self) -> float:
        return self._proxy.latency_s

    @stall_s.setter
    def stall_s(self, seconds: float) -> None:
        self._proxy.latency_s = seconds

    def _fault_of(self, method: str) -> Fault:
        if self._is_refused(method):
            return Fault(self.status)
        stop = self._stop_at(method)
        if stop is None:
            return Fault()
        if stop.is_passed_on:
            return Fault(is_answered=stop.action)
        return Fault(None if stop.action() else 0)

    def _is_refused(self, method: str) -> bool:
        with self._lock:
            self.requests += 1
            is_refused = bool(self.every) and self.requests % self.every == 0 and method in self.methods
            self.failed += is_refused
            self.stalled += self.stall_s > 0.0
        return is_refused

    def _stop_at(self, method: str) -> Stop | None:
        """What happens at this request; None where it is not the write to stop at."""
        with self._lock:
            self.writes += method in WRITES
            is_stop = self.stop is not None and method in WRITES and self.writes == self.stop.at_write
            return self.stop if is_stop else None
