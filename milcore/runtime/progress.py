"""Progress on standard error, for work longer than two seconds.

A bar on a terminal; in logs (a Kubernetes pod, a file) and in a notebook, where a bar would need widgets, plain lines:
one every five seconds at first, later one every eighth of the time that has passed, and one a minute at least.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

# ruff: noqa: PLC0415 - what computes on a GPU takes this without what a terminal needs

T = TypeVar("T")

PROGRAM = "milcore"
# variable of the processes of a Ray job
IN_JOB = "MILCORE_JOB"
SECONDS_BETWEEN_LINES = (5.0, 60.0)
SHARE_BETWEEN_LINES = 0.125
# control characters, marks that turn the direction of text, line separators, and halves of pairs
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items, showing how many of ``total`` are done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if console.is_terminal and not console.is_jupyter:
        with Progress(console=console, transient=False) as progress:
            yield from progress.track(items, total=total, description=label)
        return
    yield from _track_in_lines(items, label, total)


def _track_in_lines(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    clock, rate = _LineClock(), _Rate()
    for done, item in enumerate(items, start=1):
        yield item
        rate.add(1)
        elapsed_s = clock.elapsed_s
        if clock.is_due(always=done == total and elapsed_s >= 2.0):
            speed = rate.per_s
            times = f", {speed:.2g}/s, about {(total - done) / speed:.0f} s left" if speed else ""
            log_line(f"{label}: {done}/{total}, {elapsed_s:.0f} s{times}")


class _LineClock:
    """Decides when the next line of progress is due."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._start

    def is_due(self, *, always: bool = False) -> bool:
        """True where a line is due, which is then taken for logged."""
        shortest, longest = SECONDS_BETWEEN_LINES
        now = time.monotonic()
        wait_s = min(max(SHARE_BETWEEN_LINES * (now - self._start), shortest), longest)
        if now - self._last < wait_s and not always:
            return False
        self._last = now
        return True


class _Rate:
    """Results per second since the first one.

    The wait for workers before it is none of their time.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = 0.0
        self._results = 0

    def add(self, results: int) -> None:
        """Count results that have come now."""
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last
        else:
            self._results += results

    @property
    def per_s(self) -> float | None:
        """The rate; None before there are results after the first."""
        if self._first is None or self._last == self._first:
            return None
        return self._results / (self._last - self._first)


def format_metric(value: float | None) -> str:
    """A metric with three decimals, or ``undefined`` for None."""
    return "undefined" if value is None else f"{value:.3f}"


def format_quantity(value: float | None) -> str:
    """A number in a unit of its own, with four digits; ``undefined`` for None.

    From 10,000 all digits before the point.
    """
    if value is None:
        return "undefined"
    return f"{value:,.0f}" if 9999.5 <= abs(value) < 1e12 else f"{value:.4g}"


def format_interval(ends: Sequence[float] | None, text: Callable[[float], str] = "{:.2f}".format) -> str:
    """A 95 % interval in brackets, after a blank; empty for None.

    Args:
        ends: low and high.
        text: of an end.
    """
    return "" if ends is None else f" (95 %: {text(ends[0])} to {text(ends[1])})"


def without_folder(text: str, folder: str) -> str:
    """A text with its paths below a folder told from there.

    The folder's own path may name a person or a project.
    """
    prefix = f"{folder.rstrip('/')}/"
    return text if prefix == "/" else re.sub(rf"(?<![\w/.~-]){re.escape(prefix)}", "", text)


def from_here(text: str) -> str:
    """A text with its paths below the working folder told from there."""
    with contextlib.suppress(FileNotFoundError):  # the folder was removed
        return without_folder(text, str(Path.cwd()))
    return text


def printable(line: str) -> str:
    """A line with its control characters escaped, since it may quote data.

    Paths below the working folder are told from there.
    """
    return _CONTROLS.sub(lambda control: control[0].encode("unicode_escape").decode(), from_here(line))


def log_line(line: str) -> None:
    """Print one line of progress to standard error, as ``printable`` gives it.

    In a Ray job it begins with the program's name, by which the job's follower tells it from what Ray prints.
    """
    text, begin = printable(line), f"{PROGRAM}: "
    text = begin + text if os.environ.get(IN_JOB) and not text.startswith(begin) else text
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints progress


class EpochObserver(Protocol):
    """Observer of the epochs of a training run, called as each ends."""

    def show(self, epoch: int, metrics: dict[str, float]) -> None:
        """Show the metrics of an epoch, named ``<split>_<metric>``."""
        ...


class EpochProgress:
    """Log lines of training epochs, and always of the first and the last."""

    def __init__(self, epochs: int, label: str = "") -> None:
        self._epochs = epochs
        self._label = label
        self._shown = 0
        self._clock, self._rate = _LineClock(), _Rate()

    def show(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log loss, validation metrics, speed, data-waiting share and time left."""
        self._shown += 1
        self._rate.add(1)
        if not self._clock.is_due(always=self._shown == 1 or epoch + 1 == self._epochs):
            return
        elapsed_s = self._clock.elapsed_s
        speed_of_epochs, epochs_left = self._rate.per_s, self._epochs - epoch - 1
        left = f", at most {epochs_left / speed_of_epochs:.0f} s left" if speed_of_epochs else ""
        names = ["train_loss", *(name for name in metrics if name.startswith("val_"))]
        values = ", ".join(f"{name} {metrics[name]:.4f}" for name in names)
        speed = f"{metrics['train_bags_per_sec']:.3g} bags/s, {metrics['train_waiting']:.0%} waiting for data"
        times = f"{elapsed_s:.0f} s{left}"
        log_line(f"{self._label}epoch {epoch + 1}/{self._epochs}: {values}, {speed}, {times}")


class PatchProgress:
    """Log lines of patches done, patches per second and time left."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._left, self._total = label, total, total
        self._clock, self._rate = _LineClock(), _Rate()

    def show(self, computed: int, skipped: int) -> None:
        """Count patches and log a line when one is due.

        Args:
            computed: patches computed since the last call; the speed is theirs.
            skipped: patches whose result existed already.
        """
        self._left -= computed + skipped
        if computed:
            self._rate.add(computed)
        speed = self._rate.per_s
        if not speed or not self._clock.is_due():
            return
        minutes, seconds = divmod(round(max(0, self._left) / speed), 60)
        done = self._total - self._left
        log_line(f"{self._label}: {done}/{self._total} patches, {speed:.3g}/s, {minutes}:{seconds:02d} min to go")
