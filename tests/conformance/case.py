"""A case: its name, what is expected, where and how it runs."""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

# what a case needs: Kubeflow Pipelines at a host, any cluster, or recorded answers of one
Place = Literal["kubeflow", "cluster", "fake"]


class UnexpectedError(Exception):
    """What was seen in place of what is expected."""


def expect(holds: object, seen: str) -> None:
    """Fail with what was seen."""
    if not holds:
        raise UnexpectedError(seen)


class Clock:
    """Seconds of a case, and from each of its steps to the one before."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._start = self._last = now()
        self.steps: list[tuple[str, float]] = []

    def step(self, name: str) -> None:
        """A step is done."""
        before, self._last = self._last, self._now()
        self.steps.append((name, self._last - before))

    @property
    def seconds(self) -> float:
        return self._now() - self._start


# what a case does in its place; returns what it saw
Way = Callable[[Any, Clock], str]


class Case(NamedTuple):
    """A row of the table.

    Args:
        name: of the case.
        expected: what is seen where all is well.
        place: that it runs in.
        way: how it runs.
        after: name of a case that must have passed before.
    """

    name: str
    expected: str
    place: Place
    way: Way
    after: str = ""
