"""Progress on standard error, for work longer than two seconds.

A bar on a terminal; in logs (a Kubernetes pod, a file) one plain line every few seconds.
"""

import contextlib
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 5.0
# control characters, marks that turn the direction of text, line separators, and halves of pairs
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items, showing how many of ``total`` are done."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=False) as progress:
            yield from progress.track(items, total=total, description=label)
        return
    yield from _track_in_lines(items, label, total)


def _track_in_lines(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or (done == total and now - start >= 2.0):
            last = now
            left_s = (now - start) / done * (total - done)
            log_line(
                f"{label}: {done}/{total}, {now - start:.0f} s, {done / (now - start):.2g}/s, about {left_s:.0f} s left"
            )


def format_metric(value: float | None) -> str:
    """A metric with three decimals, or ``undefined`` for None."""
    return "undefined" if value is None else f"{value:.3f}"


def without_folder(text: str, folder: str) -> str:
    """A text with its paths below a folder told from there.

    The folder's own path may name a person or a project.
    """
    prefix = f"{folder.rstrip('/')}/"
    return text if prefix == "/" else re.sub(rf"(?<![\w/.~-]){re.escape(prefix)}", "", text)


def printable(line: str) -> str:
    """A line with its control characters escaped, since it may quote data.

    Paths below the working folder are told from there.
    """
    with contextlib.suppress(FileNotFoundError):  # the folder was removed
        line = without_folder(line, str(Path.cwd()))
    return _CONTROLS.sub(lambda control: control[0].encode("unicode_escape").decode(), line)


def log_line(line: str) -> None:
    """Print one line of progress to standard error, as ``printable`` gives it."""
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints progress


class EpochObserver(Protocol):
    """Observer of the epochs of a training run, called as each ends."""

    def show(self, epoch: int, metrics: dict[str, float]) -> None:
        """Show the metrics of an epoch, named ``<split>_<metric>``."""
        ...


class EpochProgress:
    """Log lines of training epochs.

    At most one every five seconds, and always the first and the last epoch.
    """

    def __init__(self, epochs: int, label: str = "") -> None:
        self._epochs = epochs
        self._label = label
        self._shown = 0
        self._start = time.monotonic()
        self._last = -SECONDS_BETWEEN_LINES

    def show(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log loss, validation metrics, speed, data-waiting share and time left."""
        now = time.monotonic()
        self._shown += 1
        if now - self._last < SECONDS_BETWEEN_LINES and epoch + 1 < self._epochs:
            return
        self._last = now
        elapsed_s = now - self._start
        left_s = elapsed_s / self._shown * (self._epochs - epoch - 1)
        values = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("train_loss", "val_loss", "val_auroc"))
        speed = f"{metrics['train_bags_per_sec']:.3g} bags/s, {metrics['train_waiting']:.0%} waiting for data"
        times = f"{elapsed_s:.0f} s, at most {left_s:.0f} s left"
        log_line(f"{self._label}epoch {epoch + 1}/{self._epochs}: {values}, {speed}, {times}")


class PatchProgress:
    """Log lines of patches done, patches per second and time left.

    At most one every five seconds.
    """

    def __init__(self, label: str, total: int) -> None:
        self._label, self._left, self._done = label, total, 0
        self._total = total
        self._start = self._last = time.monotonic()

    def show(self, computed: int, skipped: int) -> None:
        """Count patches and log a line when one is due.

        Args:
            computed: patches computed since the last call; the speed is theirs.
            skipped: patches whose result existed already.
        """
        self._done += computed
        self._left -= computed + skipped
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES or not self._done:
            return
        self._last = now
        speed = self._done / (now - self._start)
        minutes, seconds = divmod(round(max(0, self._left) / speed), 60)
        done = self._total - self._left
        log_line(f"{self._label}: {done}/{self._total} patches, {speed:.3g}/s, {minutes}:{seconds:02d} min to go")
