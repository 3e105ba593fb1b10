"""Outcome of a slide that is written, and its row for the catalogue.

Ingestion and imports share it.
"""

from typing import NamedTuple

from milcore.cohort.manifest import Slide
from milcore.errors import DamageError
from milcore.runtime.progress import log_line
from milcore.store.slide_record import SlideRecord, SlideState
from milcore.store.slide_row import SlideRow
from milcore.store.store import PatchStore, StoredSlide


class SlideOutcome(NamedTuple):
    """Outcome of one slide; ``skipped`` where it was up to date."""

    slide_id: str
    status: SlideState
    reason: str | None
    patches: int
    skipped: bool


class SlideTask(NamedTuple):
    """Slide to write, and what was known of it when the step began.

    Args:
        slide: of the cohort.
        is_new: the store has no folder of it.
    """

    slide: Slide
    is_new: bool = False


class SlideResult(NamedTuple):
    """Outcome of a slide, and its row for the catalogue.

    The row is None where that of the catalogue is right.
    """

    outcome: SlideOutcome
    row: SlideRow | None


def skip(store: PatchStore, stored: StoredSlide) -> SlideResult:
    """Result of a slide that is up to date."""
    return SlideResult(record_outcome(stored.record, skipped=True), store.read_row(stored.record.slide_id))


def quarantine(store: PatchStore, record: SlideRecord, reason: str, *, keep: bool = False) -> SlideResult:
    """Quarantine a slide in the store, as ``PatchStore.quarantine``."""
    stored = store.quarantine(record, reason, keep=keep)
    # read: the version of the file at an earlier ingestion may be there
    return SlideResult(
        SlideOutcome(record.slide_id, "quarantined", stored, 0, skipped=False), store.read_row(record.slide_id)
    )


def row_with_source(result: SlideResult, store: PatchStore, source: bytes) -> SlideRow | None:
    """Row of a slide after the version of its file was written."""
    return store.read_row(result.outcome.slide_id) if result.row is None else result.row._replace(source=source)


def stored_slide(store: PatchStore, slide_id: str) -> StoredSlide | None:
    """Record of a slide in the store; None where it is absent or damaged."""
    try:
        return store.stored(slide_id)
    except DamageError as error:
        log_line(f"{error.line}; it is made again")
        return None


def record_outcome(record: SlideRecord, *, skipped: bool) -> SlideOutcome:
    """Outcome of a slide by its record."""
    status: SlideState = "ok" if record.status == "ok" else "quarantined"
    return SlideOutcome(record.slide_id, status, record.reason, record.instances, skipped)
