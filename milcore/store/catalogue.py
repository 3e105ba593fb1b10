"""Catalogue of a store: records and metadata of its slides, in few requests.

What is written to it is in ``row_writer.py``. A slide's own objects stay the truth: slides that a writer has
open, that fragments disagree on, or that no fragment has, are read from their groups, concurrently; and a row that is
out of date, since another program changed the slide, is noticed at the first read of an array and made anew.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import NamedTuple, Self, TypeVar

from milcore.errors import DamageError, StorageError, StoreError
from milcore.runtime import storage
from milcore.runtime.garbage_collection import no_garbage_collection
from milcore.runtime.progress import log_line
from milcore.runtime.threads import map_in_threads
from milcore.store import fragments
from milcore.store.fragments import Fragment
from milcore.store.group_arrays import NewRow
from milcore.store.group_record import parse_record, read_groups
from milcore.store.paths import group_uri
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import SCHEMA_VERSION, SlideRecord
from milcore.store.slide_row import SlideRow, read_rows

T = TypeVar("T")

# times that the fragments are read again because another process joined them meanwhile
JOINED_AT_MOST = 10


class _Place(NamedTuple):
    fragment: Fragment
    number: int

    def row(self) -> SlideRow:
        return self.fragment.row(self.number)


class Catalogue:
    """Slides of a store as they were when the catalogue was read.

    Args:
        store_uri: patch store.
        slide_ids: of its cohort, or of those that are looked at.
        fragment_names: names of its fragments, also of damaged ones.
        row_fragments: the fragments; none where one is damaged.
        open_ids: slides that a writer may be writing; None stands for all.
    """

    def __init__(
        self,
        store_uri: str,
        slide_ids: Sequence[str],
        fragment_names: set[str],
        row_fragments: Sequence[Fragment],
        open_ids: set[str] | None,
    ) -> None:
        self.store_uri, self.fragment_names = store_uri, fragment_names
        self._ids = list(slide_ids)
        self._places = _places(row_fragments, set(self._ids))
        self._open_ids = set(self._ids) if open_ids is None else open_ids.intersection(self._ids)
        self._renewed: dict[str, SlideRow | None] = {}
        self._from_groups: dict[str, SlideRecord | None] = {}
        self._records: dict[str, SlideRecord | None] = {}

    @classmethod
    def read(cls, store_uri: str, slide_ids: Sequence[str]) -> Self:
        """Read the catalogue of a store.

        The marks first, so that a writer that ends meanwhile is not missed.
        """
        marks = fragments.read_marks(store_uri)
        open_ids = set().union(*(ids or () for ids in marks.values()))
        names, row_fragments = _read_fragments(store_uri)
        return cls(store_uri, slide_ids, names, row_fragments, None if None in marks.values() else open_ids)

    def row(self, slide_id: str) -> SlideRow | None:
        """Row of a slide that can be relied on.

        None where the slide itself is to be read.
        """
        return self.last_row(slide_id) if self.has_row(slide_id) else None

    def has_row(self, slide_id: str) -> bool:
        """True where the slide has a row that can be relied on."""
        return slide_id not in self._open_ids and slide_id in self._places

    def has_last_row(self, slide_id: str) -> bool:
        """True where ``last_row`` knows the latest row of a slide."""
        return slide_id in self._places

    def last_row(self, slide_id: str) -> SlideRow | None:
        """Latest row of a slide, even while a writer may be writing it.

        None where there is none, or where it is not known.
        """
        if slide_id in self._renewed:
            return self._renewed[slide_id]
        place = self._places.get(slide_id)
        return place and place.row()

    @property
    def all_ids(self) -> Sequence[str]:
        """Ids of the slides of the cohort."""
        return self._ids

    @property
    def unknown_ids(self) -> list[str]:
        """Ids of the slides whose rows cannot be relied on."""
        return [slide_id for slide_id in self._ids if not self.has_row(slide_id)]

    @property
    def open_ids(self) -> set[str]:
        """Ids of slides that a writer may be writing."""
        return self._open_ids

    @cached_property
    def records(self) -> Mapping[str, SlideRecord | None]:
        """Record of each slide, in the order of the cohort.

        None where its group is absent or incomplete.

        Slides of an earlier version, whose bytes cannot be checked, are told once per process.

        Raises:
            DamageError: the record of a slide that was read from its group is damaged.
        """
        self._read_groups(self.unknown_ids)
        with no_garbage_collection():
            records = {slide_id: self._record(slide_id) for slide_id in self._ids}
        unchecked = sum(record is not None and record.schema_version < SCHEMA_VERSION for record in records.values())
        if unchecked:
            _log_unchecked(self.store_uri, unchecked)
        return records

    def slide_ids(self) -> list[str]:
        """Ids of the slides that can be read, in the order of the cohort."""
        return [slide_id for slide_id, record in self.records.items() if record and record.status == "ok"]

    def quarantined(self) -> dict[str, str]:
        """Reason of every quarantined slide, in the order of the cohort."""
        reasons = {slide_id: record.reason for slide_id, record in self.records.items() if record is not None}
        return {slide_id: reason for slide_id, reason in reasons.items() if reason is not None}

    def slide(self, slide_id: str) -> SlideGroup:
        """Open a slide's group, without a request where its row can be relied on.

        Raises:
            StoreError: it is absent, incomplete or quarantined.
        """
        record = usable_record(self.store_uri, slide_id, self._record(slide_id))
        return SlideGroup(group_uri(self.store_uri, slide_id), record, self.row(slide_id), self._renew)

    def slides(self, slide_ids: Sequence[str]) -> dict[str, SlideGroup]:
        """Open slides, as ``slide``; those whose rows cannot be relied on by concurrent requests."""
        self._read_groups([slide_id for slide_id in slide_ids if not self.has_row(slide_id)])
        with no_garbage_collection():
            return {slide_id: self.slide(slide_id) for slide_id in slide_ids}

    def map_slides(self, function: Callable[[SlideGroup], T], slide_ids: Sequence[str]) -> dict[str, T]:
        """Values of a function of slides.

        They are computed in threads where the slides' own objects are read.

        Args:
            function: of what the catalogue has of a slide, such as names and attributes of its features.
            slide_ids: of the slides.
        """
        slides = self.slides(slide_ids)
        unknown = [slide_id for slide_id in slide_ids if not self.has_row(slide_id)]
        from_groups = map_in_threads(lambda slide_id: function(slides[slide_id]), unknown, storage.CONCURRENT_REQUESTS)
        values = dict(zip(unknown, from_groups, strict=True))
        with no_garbage_collection():
            return {name: values[name] if name in values else function(slide) for name, slide in slides.items()}

    def _record(self, slide_id: str) -> SlideRecord | None:
        if slide_id not in self._records:  # once: a cohort has many
            self._records[slide_id] = self._parse_record(slide_id)
        return self._records[slide_id]

    def _parse_record(self, slide_id: str) -> SlideRecord | None:
        group = self._group(slide_id)
        if group is None:
            self._read_groups([slide_id])
            return self._from_groups[slide_id]
        return resolved(SlideRow(slide_id, group, {}).record(self.store_uri), self.store_uri)

    def _group(self, slide_id: str) -> bytes | None:
        """``zarr.json`` of a slide's group, where its row can be relied on."""
        if slide_id in self._open_ids:
            return None
        if slide_id in self._renewed:
            row = self._renewed[slide_id]
            return row and row.group
        place = self._places.get(slide_id)
        return place and place.fragment.group(place.number)

    def _read_groups(self, slide_ids: Sequence[str]) -> None:
        """Read the records of slides from their groups, once."""
        records = read_records(self.store_uri, [name for name in slide_ids if name not in self._from_groups])
        self._from_groups |= records
        complete = sum(record is not None for record in records.values())
        if complete > 1 and not self.fragment_names:
            _log_absent(self.store_uri)

    def _renew(self, slide_id: str) -> NewRow:
        new = renew_row(self.store_uri, slide_id)
        self._renewed[slide_id] = new.row
        self._records.pop(slide_id, None)
        return new


def renew_row(store_uri: str, slide_id: str) -> NewRow:
    """Make the row of a slide anew.

    It is written where the store has a catalogue and can be written to.
    """
    names = fragments.fragment_names(store_uri)  # listed first: the row is later than all of them
    row = read_rows(store_uri, [slide_id]).get(slide_id)
    if row is not None and names:
        try:
            fragments.write_fragment(store_uri, [row], names)
        except StorageError as error:
            return NewRow(row, " ".join(str(error).split()))
    return NewRow(row)


def read_records(store_uri: str, slide_ids: Sequence[str]) -> dict[str, SlideRecord | None]:
    """Records of slides from their groups, by concurrent requests.

    None where one is absent or incomplete.
    """
    groups = read_groups(store_uri, slide_ids)
    records = {slide_id: parse_record(data, slide_id, store_uri) for slide_id, data in groups.items()}
    complete = {slide_id: resolved(record, store_uri) for slide_id, record in records.items() if record is not None}
    return {slide_id: complete.get(slide_id) for slide_id in slide_ids}


def resolved(record: SlideRecord, store_uri: str) -> SlideRecord:
    """The record with the places of its files as seen from here.

    It is stored with their places as seen from the store.
    """
    return record.with_files(lambda uri: storage.resolve(uri, store_uri))


def usable_record(store_uri: str, slide_id: str, record: SlideRecord | None) -> SlideRecord:
    """The record of a slide that can be read.

    Raises:
        StoreError: it is absent, incomplete or quarantined.
    """
    if record is None:
        raise StoreError(f"slide {slide_id!r} is absent from {store_uri} or incomplete; run `milcore ingest` again")
    if record.status == "quarantined":
        raise StoreError(f"slide {slide_id!r} is quarantined: {record.reason}")
    return record


def _read_fragments(store_uri: str) -> tuple[set[str], list[Fragment]]:
    """Names of a store's fragments, and the fragments.

    There are none of the latter where one is damaged.

    Read again where the listing changed meanwhile: it would lack both what was joined and what it was joined to.
    """
    for _ in range(JOINED_AT_MOST):
        names = fragments.fragment_names(store_uri)
        uris = {name: fragments.fragment_uri(store_uri, name) for name in names}
        data = storage.read_all(list(uris.values()))
        if len(data) == len(names) and (not names or fragments.fragment_names(store_uri) == names):
            try:
                return names, [Fragment(name, data[uri]) for name, uri in uris.items()]
            except (DamageError, AttributeError, LookupError, TypeError, ValueError) as error:
                _log_damage(store_uri, " ".join(str(error).split()))
                return names, []
    return set(), []


def _places(row_fragments: Sequence[Fragment], slide_ids: set[str]) -> dict[str, _Place]:
    """Place of the latest row of every slide.

    Slides of which no row is known to be the latest have none.
    """
    replaced = frozenset().union(*(fragment.replaces for fragment in row_fragments))
    candidates: dict[str, list[_Place]] = {}
    for fragment in row_fragments:
        if fragment.name not in replaced:
            for number, slide_id in enumerate(fragment.slide_ids):
                candidates.setdefault(slide_id, []).append(_Place(fragment, number))
    latest = {slide_id: _latest(places) for slide_id, places in candidates.items() if slide_id in slide_ids}
    return {slide_id: place for slide_id, place in latest.items() if place is not None}


def _latest(places: Sequence[_Place]) -> _Place | None:
    """The place of the latest row; None where it is not known.

    Equal rows stand for each other.
    """
    earlier = frozenset().union(*(place.fragment.after for place in places))
    last = [place for place in places if place.fragment.name not in earlier]
    if len(last) > 1 and any(place.row() != last[0].row() for place in last[1:]):
        return None
    return last[0] if last else None


@cache
def _log_unchecked(uri: str, slides: int) -> None:
    log_line(
        f"{uri}: {slides} slides were written by an earlier version, without checksums: a changed byte would not be "
        "noticed; ingest them into a new store to have them checked"
    )


@cache
def _log_absent(uri: str) -> None:
    log_line(
        f"{uri} has no catalogue: its slides are read from their own folders; `milcore info --rebuild` or the next "
        "ingestion makes one"
    )


@cache
def _log_damage(uri: str, problem: str) -> None:
    log_line(
        f"{uri}: {problem}; its slides are read from their own folders; `milcore info --rebuild` makes the "
        "catalogue anew"
    )
