"""Metadata of a slide's arrays, from the store's catalogue or the slide's group."""

from collections.abc import Callable
from typing import NamedTuple

from milcore.errors import DamageError, StoreError
from milcore.runtime import storage
from milcore.runtime.progress import log_line
from milcore.store.metadata import metadata_uri, parse_array_metadata, read_due_metadata
from milcore.store.slide_row import FEATURES, SlideRow


class NewRow(NamedTuple):
    """Row of a slide that was made anew.

    Args:
        row: None where the slide is absent or incomplete.
        refusal: why it could not be written to the catalogue; None where it was.
    """

    row: SlideRow | None
    refusal: str | None = None


# makes the row of a slide anew from its group
RenewRow = Callable[[str], NewRow]


class GroupArrays:
    """``zarr.json`` of the arrays of one slide.

    Args:
        uri: of the slide's group.
        slide_id: of the slide.
        row: of the slide in the catalogue; None reads everything from the group.
        renew: makes that row anew.
    """

    def __init__(self, uri: str, slide_id: str, row: SlideRow | None, renew: RenewRow | None) -> None:
        self._uri, self._slide_id, self._row, self._renew = uri, slide_id, row, renew

    def uri(self, name: str) -> str:
        """URI of an array."""
        return storage.join(self._uri, name)

    def stored(self, name: str) -> bytes | None:
        """``zarr.json`` of an array, out of the catalogue or else the group.

        None where neither has it.
        """
        entry = None if self._row is None else self._row.arrays.get(name)
        return stored_metadata(self.uri(name)) if entry is None or entry.metadata is None else entry.metadata

    def due(self, name: str, place: str, remedy: str) -> bytes:
        """``zarr.json`` of an array that the slide has.

        Out of the catalogue, or read and compared with it.

        Args:
            name: of the array.
            place: names it in errors, such as ``slide 'S03': features/x``.
            remedy: command that makes it again.

        Raises:
            DamageError: there is none.
            StoreError: as ``has_changed``.
        """
        entry = None if self._row is None else self._row.arrays.get(name)
        if entry is not None and entry.metadata is not None:
            return entry.metadata
        data = read_due_metadata(self.uri(name), place, remedy)
        if entry is not None and not entry.is_of(data):
            self.has_changed(name)
        return data

    def replace(self, name: str, metadata: bytes) -> None:
        """Take an array as it is written now."""
        self._row = self._row and self._row.with_array(name, metadata)

    def feature_names(self) -> list[str]:
        """Names of the slide's features.

        By the group, those that are incomplete too.
        """
        if self._row is not None:
            return self._row.feature_names
        return [name for name in storage.names(self.uri(FEATURES.rstrip("/"))) if name != "zarr.json"]

    def has_changed(self, name: str) -> bool:
        """True where an array is another than the catalogue says.

        The row of the slide is made anew then.

        Raises:
            StoreError: its content is another: what was read of the slide before is out of date.
        """
        before = self._row
        if before is None or self._renew is None or name not in before.arrays:
            return False
        data = stored_metadata(self.uri(name))
        if data is not None and before.arrays[name].is_of(data):
            return False
        self._row, refusal = self._renew(self._slide_id)
        if self._row is None:
            raise StoreError(
                f"slide {self._slide_id!r}: expected a complete slide, as the store's catalogue says, got none at "
                f"{self._uri}; run milcore ingest or milcore import again, or milcore info --rebuild to leave it out"
            )
        if not _are_equal(before, self._row, name):
            raise StoreError(
                f"slide {self._slide_id!r}: {name} was changed by another program since the store's catalogue was "
                f"written; {_remedy_of_row(refusal)}"
            )
        is_made = "its row is made anew" if refusal is None else f"its new row cannot be written ({refusal})"
        log_line(f"slide {self._slide_id!r}: {name} was written anew since the store's catalogue; {is_made}")
        return True


def _remedy_of_row(refusal: str | None) -> str:
    """Command after which a row is no longer out of date."""
    if refusal is not None:
        return (
            f"its new row cannot be written ({refusal}): run milcore info --rebuild on the store with the right to "
            "write, then the same command again"
        )
    return (
        "its row is made anew now: run the same command again, or first milcore info --rebuild on the store, where "
        "several slides were changed"
    )


def stored_metadata(uri: str) -> bytes | None:
    """``zarr.json`` of an array; None where there is none."""
    try:
        return storage.read_bytes(metadata_uri(uri))
    except FileNotFoundError:
        return None


def _are_equal(before: SlideRow, now: SlideRow, name: str) -> bool:
    """True where two rows say the same of a slide.

    Of features they also have the same values.
    """
    if before.group != now.group or name not in now.arrays:
        return False
    return not name.startswith(FEATURES) or _digest(before, name) == _digest(now, name) is not None


def _digest(row: SlideRow, name: str) -> str | None:
    """Digest of the values of features; None where it is unknown."""
    data = row.arrays[name].metadata
    try:
        return None if data is None else parse_array_metadata(data, name)["attributes"].get("digest")
    except DamageError:
        return None
