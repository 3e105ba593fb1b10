"""Writer of a cohort's slides and their rows in the catalogue.

A slide is left where its settings are equal, the versions of its files too, which are listed, 1,000 a request on S3,
and its group is that of its row in the catalogue. That is read for each: a program that knows no catalogue may have
written the slide. Any other slide is looked at by who writes it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from milcore.cohort.manifest import Slide
from milcore.ingestion.slide_result import SlideOutcome, SlideResult, SlideTask, record_outcome
from milcore.runtime import storage
from milcore.runtime.threads import map_in_threads
from milcore.slides.source import SourceVersion, source_versions
from milcore.store.catalogue import Catalogue
from milcore.store.slide_row import SlideRow
from milcore.store.store import PatchStore, StoredSlide

# whose records are in memory
SLIDES_AT_A_TIME = 1024

Versions = Mapping[str, SourceVersion]


class SlideStep(NamedTuple):
    """Step that writes slides.

    Args:
        kind: of the step, ``ingest`` or ``import``.
        files: URIs of the files that a slide is made of.
        is_current: True where a slide would be left as it is stored, by its row and the versions of its files, by URI.
        results: writes every slide of the tasks, in any order.
    """

    kind: str
    files: Callable[[Slide], Iterable[str]]
    is_current: Callable[[Slide, StoredSlide, SlideRow, Versions], bool]
    results: Callable[[Sequence[SlideTask]], Iterator[SlideResult]]


def write_slides(store: PatchStore, slides: Sequence[Slide], step: SlideStep) -> Iterator[SlideOutcome]:
    """Write slides, and their rows to the store's catalogue.

    Outcomes of those that need no work come first.

    Args:
        store: to write.
        slides: of its manifest.
        step: that writes them.
    """
    catalogue, with_folder = store.catalogue(), store.group_ids()
    rows = store.row_writer(step.kind, [slide.slide_id for slide in slides], catalogue)
    current: set[str] = set()
    for outcome in _current(store, catalogue, [slide for slide in slides if slide.slide_id in with_folder], step):
        current.add(outcome.slide_id)
        yield outcome
    others = (slide for slide in slides if slide.slide_id not in current)
    tasks = [SlideTask(slide, slide.slide_id not in with_folder) for slide in others]
    for outcome, row in step.results(tasks) if tasks else ():  # without any, no worker is waited for
        if row is not None and row != catalogue.row(outcome.slide_id):
            rows.add(row)
        yield outcome
    rows.close()


def _current(
    store: PatchStore, catalogue: Catalogue, slides: Sequence[Slide], step: SlideStep
) -> Iterator[SlideOutcome]:
    """Outcomes of the slides that need no work."""
    slides = [slide for slide in slides if catalogue.has_row(slide.slide_id)]
    versions = source_versions(uri for slide in slides for uri in step.files(slide))
    for start in range(0, len(slides), SLIDES_AT_A_TIME):
        rows = {slide: catalogue.row(slide.slide_id) for slide in slides[start : start + SLIDES_AT_A_TIME]}
        yield from _current_of({slide: row for slide, row in rows.items() if row is not None}, store, versions, step)


def _current_of(
    rows: Mapping[Slide, SlideRow], store: PatchStore, versions: Versions, step: SlideStep
) -> Iterator[SlideOutcome]:
    stored = store.stored_as_in(rows.values())

    def is_current(slide: Slide) -> bool:
        of_slide = stored.get(slide.slide_id)
        return of_slide is not None and step.is_current(slide, of_slide, rows[slide], versions)

    for slide, is_left in zip(rows, map_in_threads(is_current, rows, storage.CONCURRENT_REQUESTS), strict=True):
        if is_left:
            yield record_outcome(stored[slide.slide_id].record, skipped=True)
