"""Ingestion of a cohort: from a manifest to patches in the store.

Each slide ends ``ok`` or ``quarantined`` with its reason; none is left out silently. Another run ingests only slides
that are missing, have changed, or could not be reached. Memory does not grow with the slide: it holds tiles of a few
rows, and patches of one shard, compressed. No outcome is printed here: they are yielded as they come.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypedDict

from milcore.cohort.manifest import Manifest, Slide, read_manifest
from milcore.cohort.targets import COHORT_TARGETS
from milcore.config import AnnotationConfig, IngestConfig, TargetConfig
from milcore.errors import InputError, MILError
from milcore.ingestion.annotations import check_annotations
from milcore.ingestion.cohort_writer import SlideStep, Versions, write_slides
from milcore.ingestion.partition import read_partition
from milcore.ingestion.slide import is_current, quarantine_killed, write_slide
from milcore.ingestion.slide_result import SlideOutcome, SlideResult, SlideTask, record_outcome
from milcore.runtime.processes import map_in_processes
from milcore.store.slide_row import SlideRow
from milcore.store.store import PatchStore, StoredSlide

SlideWork = Callable[[SlideTask], SlideResult]
# applies the first function to every slide, on this machine or others, and yields results as they come; the second
# gives the result of a slide whose process was killed again and again
SlideMap = Callable[[SlideWork, Iterable[SlideTask], SlideWork], Iterator[SlideResult]]


class IngestCounts(TypedDict):
    """Outcome of slides as JSON.

    Ids that are ``ok``, ``quarantined`` ids with reasons, and counts.
    """

    ok: list[str]
    quarantined: dict[str, str]
    patches: int
    skipped: int


class PartitionCounts(TypedDict):
    """Numbers of slides by their outcome, which travel between the steps of a pipeline.

    Ids do not: an argument of a process holds 128 kB.
    """

    ok: int
    quarantined: int
    patches: int
    skipped: int


def plan_cohort(
    manifest_uri: str,
    store_uri: str,
    positive: str | None = None,
    annotations: AnnotationConfig | None = None,
    target: TargetConfig | None = None,
) -> Manifest:
    """Check a manifest and its annotations, and make it the store's cohort.

    Args:
        manifest_uri: CSV or Parquet.
        store_uri: store to make or go on with.
        positive: class name that counts as positive; None: the later by name.
        annotations: how they are read; None: by the defaults.
        target: of a model to come, which the manifest is checked for; None: it is not.

    Raises:
        InputError: every bad row of the manifest, every annotation that cannot be read, or nothing to train on.
    """
    manifest = read_manifest(manifest_uri, positive)
    if target is not None:
        COHORT_TARGETS[target.target].check_manifest(manifest, target)
    store = PatchStore(store_uri)
    store.write_annotation_record(check_annotations(manifest, annotations or AnnotationConfig()))
    store.update_manifest(manifest)
    return manifest


def ingest(
    store_uri: str,
    config: IngestConfig,
    workers: int,
    partition: tuple[int, int] = (0, 1),
    map_slides: SlideMap | None = None,
) -> Iterator[SlideOutcome]:
    """Ingest the cohort of a store, yielding the outcome of each slide.

    Args:
        store_uri: a store whose manifest ``plan_cohort`` wrote.
        config: settings of ingestion.
        workers: cores to use: a process per slide, and threads in them where slides are fewer; 0: this process.
        partition: (i, n): only the i-th of n partitions of the slides.
        map_slides: deals slides to workers elsewhere, in place of processes here.

    Raises:
        InputError: there is no such partition.
    """
    store = PatchStore(store_uri)
    slides = read_partition(store, *partition)
    killed = partial(quarantine_killed, store=store, config=config)

    def results(tasks: Sequence[SlideTask]) -> Iterator[SlideResult]:
        processes = max(1, min(workers, len(tasks)))
        work = partial(_ingest_in_worker, store_uri=store_uri, config=config, threads=max(1, workers // processes))
        if map_slides is not None:
            return map_slides(partial(work, threads=1), tasks, killed)
        if workers == 0:
            return map(work, tasks)
        return map_in_processes(work, tasks, processes, killed)

    def is_unchanged(slide: Slide, stored: StoredSlide, _: SlideRow, versions: Versions) -> bool:
        return is_current(slide, stored, config, versions.get(slide.uri))

    yield from write_slides(store, slides, SlideStep("ingest", lambda slide: [slide.uri], is_unchanged, results))


def ingest_counts(outcomes: Iterable[SlideOutcome]) -> IngestCounts:
    """Counts of outcomes."""
    outcomes = list(outcomes)
    return {
        "ok": [outcome.slide_id for outcome in outcomes if outcome.status == "ok"],
        "quarantined": {outcome.slide_id: outcome.reason or "" for outcome in outcomes if outcome.status != "ok"},
        "patches": sum(outcome.patches for outcome in outcomes),
        "skipped": sum(outcome.skipped for outcome in outcomes),
    }


def stored_counts(store: PatchStore) -> IngestCounts:
    """Counts of a cohort by its records in the store.

    They do not tell what was skipped.

    Raises:
        MILError: a slide has no record.
    """
    records = store.records()
    _check_accounted([slide_id for slide_id, record in records.items() if record is None], len(records))
    return ingest_counts(record_outcome(record, skipped=False) for record in records.values() if record is not None)


def partition_counts(counts: IngestCounts) -> PartitionCounts:
    """Numbers of slides by their outcome."""
    return {
        "ok": len(counts["ok"]),
        "quarantined": len(counts["quarantined"]),
        "patches": counts["patches"],
        "skipped": counts["skipped"],
    }


def join_counts(store_uri: str, partitions: Sequence[PartitionCounts]) -> IngestCounts:
    """Outcome of a cohort by its records, once all partitions are ingested.

    Args:
        store_uri: patch store.
        partitions: of ``partition_counts``, one per partition.

    Raises:
        MILError: a slide of the cohort has no record, or is in no partition.
        InputError: no slide is ok.
    """
    summary = stored_counts(PatchStore(store_uri))
    slides = len(summary["ok"]) + len(summary["quarantined"])
    in_partitions = sum(counts["ok"] + counts["quarantined"] for counts in partitions)
    if in_partitions != slides:
        raise MILError(
            f"the partitions hold {in_partitions} slides, the manifest of {store_uri} {slides}: some are unaccounted "
            "for; plan and ingest again"
        )
    if not summary["ok"]:
        first = next(iter(summary["quarantined"].items()))
        raise InputError(f"none of {slides} slides is ok; the first, {first[0]!r}: {first[1]}")
    return {**summary, "skipped": sum(counts["skipped"] for counts in partitions)}


def _check_accounted(lost: Sequence[str], slides: int) -> None:
    """Check that no slide of a cohort is without outcome.

    Raises:
        MILError: some are.
    """
    if lost:
        raise MILError(f"{len(lost)} of {slides} slides are unaccounted for ({', '.join(lost[:5])} …); ingest again")


def _ingest_in_worker(task: SlideTask, store_uri: str, config: IngestConfig, threads: int) -> SlideResult:
    return write_slide(task, PatchStore(store_uri), config, threads)
