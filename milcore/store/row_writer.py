"""Writers of the catalogue's rows, and what joins their fragments."""

from collections.abc import Sequence

from milcore.runtime import storage
from milcore.store import fragments
from milcore.store.catalogue import Catalogue
from milcore.store.slide_row import SlideRow, read_rows

# characters of a mark's name
LONGEST_KIND = 100
# rows of a writer that are held in memory
ROWS_PER_FRAGMENT = 8192


class RowWriter:
    """Writer of the catalogue's rows for slides that one process, or its workers, write.

    A mark in the catalogue tells readers to read these slides themselves until it is closed. Of a writer that was
    killed the mark stays, until others of its kind have written all of these slides.

    Args:
        store_uri: patch store.
        kind: of the writer, such as ``ingest``.
        slide_ids: that it may write.
        catalogue: that rows are made from; None where all are made from the slides' own objects.
    """

    def __init__(self, store_uri: str, kind: str, slide_ids: Sequence[str], catalogue: Catalogue | None = None) -> None:
        self._store_uri, kind = store_uri, kind[:LONGEST_KIND]
        self._marks = _marks_to_reduce(store_uri, kind, slide_ids, catalogue)
        self._marks[fragments.write_mark(store_uri, kind, slide_ids)] = set()
        # what came after the rows were read is not known to be earlier than rows that are made from them
        self._after = fragments.fragment_names(store_uri) if catalogue is None else catalogue.fragment_names
        self._rows: list[SlideRow] = []

    def add(self, row: SlideRow) -> None:
        """Add the row of a slide that is written."""
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_FRAGMENT:
            self._write()

    def close(self) -> None:
        """Write the rows and remove the mark.

        Every slide is complete, in quarantine, or as before.
        """
        self._write()
        for name, slide_ids in self._marks.items():
            if slide_ids:
                fragments.reduce_mark(self._store_uri, name, slide_ids)
        fragments.remove_marks(self._store_uri, [name for name, slide_ids in self._marks.items() if not slide_ids])

    def _write(self) -> None:
        if self._rows:
            rows = sorted(self._rows, key=lambda row: row.slide_id)
            fragments.write_fragment(self._store_uri, rows, self._after)
            self._rows.clear()


def _marks_to_reduce(
    store_uri: str, kind: str, slide_ids: Sequence[str], catalogue: Catalogue | None
) -> dict[str, set[str]]:
    """Marks of earlier writers of a kind, and what is left of each."""
    marks = {name: ids for name, ids in fragments.read_marks(store_uri).items() if fragments.writer_kind(name) == kind}
    left = {name: (ids or set()) - set(slide_ids) for name, ids in marks.items()}
    if catalogue is not None:
        left = {name: ids & set(catalogue.all_ids) for name, ids in left.items()}
    return {name: ids for name, ids in left.items() if ids != marks[name]}


def join(store_uri: str, slide_ids: Sequence[str]) -> None:
    """Join the fragments of a store's catalogue to one.

    It has a row for every slide, from its own objects where no latest one is known.

    Slides that a writer has open have one too: beside it, that of the writer is not taken for the only one.
    """
    catalogue = Catalogue.read(store_uri, slide_ids)
    if len(catalogue.fragment_names) > 1 or set(catalogue.unknown_ids) - catalogue.open_ids:
        _replace(catalogue)


def rebuild(store_uri: str, slide_ids: Sequence[str]) -> int:
    """Make every row of a store's catalogue anew; return how many slides have one.

    Marks are removed: no other process may write to the store meanwhile.
    """
    fragments.remove_marks(store_uri, fragments.read_marks(store_uri))
    catalogue = Catalogue(store_uri, slide_ids, fragments.fragment_names(store_uri), [], set())
    return _replace(catalogue)


def _replace(catalogue: Catalogue) -> int:
    """Write one fragment in place of all, with rows of unknown slides made anew."""
    store_uri, before = catalogue.store_uri, catalogue.fragment_names
    unknown = [slide_id for slide_id in catalogue.all_ids if not catalogue.has_last_row(slide_id)]
    new = read_rows(store_uri, unknown)
    complete = [slide_id for slide_id in catalogue.all_ids if catalogue.has_last_row(slide_id) or slide_id in new]
    rows = (catalogue.last_row(slide_id) or new[slide_id] for slide_id in complete)
    name = fragments.write_fragment(store_uri, rows, before, before)
    storage.remove_all(fragments.fragment_uri(store_uri, old) for old in before - {name})
    return len(complete)
