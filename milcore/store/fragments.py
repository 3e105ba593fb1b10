"""Fragments of a store's catalogue, and marks of the writers of slides.

A fragment is an immutable Parquet object with rows of slides.

::

    <store>/catalogue/rows/<digest>.parquet   rows of slides; the name is the sha256 of the bytes, its first 32 digits
    <store>/catalogue/open/<writer>.json      ids of the slides that a writer works on at this moment

A fragment names in its metadata those that it ``replaces``, and those that it comes ``after``: its writer had found
them when it began, so its rows are later. Of two fragments with neither, no row of a slide is known to be the later
one.
"""

import hashlib
import itertools
import json
import uuid
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from milcore.errors import DamageError
from milcore.runtime import storage
from milcore.store.slide_row import ArrayRow, SlideRow

FRAGMENT_SCHEMA_VERSION = 1
NAME_DIGITS = 32
# rows of a Parquet row group, the least that is decoded
ROWS_PER_GROUP = 4096
_SUFFIX = ".parquet"
_METADATA = b"milcore_catalogue"

_ARRAY = pa.struct([("name", pa.string()), ("sha256", pa.string()), ("metadata", pa.binary())])
SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("instances", pa.int64()),
        ("group", pa.binary()),
        ("arrays", pa.list_(_ARRAY)),
        ("source", pa.binary()),
    ]
)


class Fragment:
    """Fragment of a catalogue; its columns are decoded as they are needed.

    Args:
        name: the digest that it is named by.
        data: its bytes.

    Raises:
        DamageError: they are not what was written, or of a later version.
    """

    def __init__(self, name: str, data: bytes) -> None:
        if _digest(data) != name:
            raise DamageError(f"catalogue/rows/{name}{_SUFFIX}: expected the bytes that were written, got others")
        self.name = name
        self._file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
        if not self._file.schema_arrow.equals(SCHEMA):
            raise DamageError(f"catalogue/rows/{name}{_SUFFIX}: expected the columns of a catalogue, got others")
        metadata = json.loads((self._file.schema_arrow.metadata or {}).get(_METADATA, b"{}"))
        if metadata.get("schema_version") != FRAGMENT_SCHEMA_VERSION:
            raise DamageError(
                f"catalogue/rows/{name}{_SUFFIX}: expected schema_version {FRAGMENT_SCHEMA_VERSION}, got "
                f"{metadata.get('schema_version')}"
            )
        self.after, self.replaces = frozenset(metadata["after"]), frozenset(metadata["replaces"])

    @cached_property
    def slide_ids(self) -> list[str]:
        """Ids of the slides, one per row."""
        return [str(slide_id) for slide_id in self._column("slide_id").to_pylist()]

    def row(self, index: int) -> SlideRow:
        """Row of a slide."""
        arrays = self._arrays[index].as_py()
        source = self._sources[index].as_py()
        metadata = {each["name"]: ArrayRow(each["sha256"], each["metadata"]) for each in arrays}
        return SlideRow(self.slide_ids[index], self.group(index), metadata, source)

    def group(self, index: int) -> bytes:
        """``zarr.json`` of a slide's group."""
        return bytes(self._groups[index].as_py())

    @cached_property
    def _groups(self) -> pa.ChunkedArray:
        return self._column("group")

    @cached_property
    def _arrays(self) -> pa.ChunkedArray:
        return self._column("arrays")

    @cached_property
    def _sources(self) -> pa.ChunkedArray:
        return self._column("source")

    def _column(self, name: str) -> pa.ChunkedArray:
        # as storage.parse_table: Arrow's pool of threads may abort the interpreter's end
        return self._file.read([name], use_threads=False).column(name)


def catalogue_uri(store_uri: str) -> str:
    """Folder of a store's catalogue."""
    return storage.join(store_uri, "catalogue")


def fragment_uri(store_uri: str, name: str) -> str:
    """URI of a fragment."""
    return storage.join(catalogue_uri(store_uri), "rows", f"{name}{_SUFFIX}")


def fragment_names(store_uri: str) -> set[str]:
    """Names of the fragments of a store's catalogue."""
    names = storage.names(storage.join(catalogue_uri(store_uri), "rows"))
    return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX) and not name.startswith(".")}


def write_fragment(store_uri: str, rows: Iterable[SlideRow], after: Iterable[str], replaces: Iterable[str] = ()) -> str:
    """Write a fragment; return its name.

    Args:
        store_uri: patch store.
        rows: of its slides; a few thousand at a time are in memory.
        after: names of the fragments that its rows are later than.
        replaces: names of those whose rows it has too.
    """
    data = _fragment_bytes(store_uri, rows, after, replaces)
    name = _digest(data)
    storage.write_bytes(fragment_uri(store_uri, name), data)
    return name


def _fragment_bytes(store_uri: str, rows: Iterable[SlideRow], after: Iterable[str], replaces: Iterable[str]) -> bytes:
    metadata = {
        "schema_version": FRAGMENT_SCHEMA_VERSION,
        "after": sorted(after),
        "replaces": sorted(replaces),
        # of equal rows written again another name: what came between is not later than both
        "nonce": uuid.uuid4().hex,
    }
    schema = SCHEMA.with_metadata({_METADATA: json.dumps(metadata).encode()})
    columns, sink = (_columns(store_uri, row) for row in rows), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        while group := list(itertools.islice(columns, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return bytes(sink.getvalue().to_pybytes())


def _columns(store_uri: str, row: SlideRow) -> dict[str, Any]:
    record = row.record(store_uri)
    return {
        "slide_id": row.slide_id,
        "status": record.status,
        "reason": record.reason,
        "instances": record.instances,
        "group": row.group,
        "arrays": [{"name": name, **array._asdict()} for name, array in sorted(row.arrays.items())],
        "source": row.source,
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:NAME_DIGITS]


def write_mark(store_uri: str, kind: str, slide_ids: Sequence[str]) -> str:
    """Mark slides as being written; return the name of the mark.

    Args:
        store_uri: patch store.
        kind: of the writer, such as ``ingest``.
        slide_ids: that it may write.
    """
    name = f"{kind}.{uuid.uuid4().hex[:8]}.json"
    storage.write_json(_mark_uri(store_uri, name), sorted(slide_ids))
    return name


def reduce_mark(store_uri: str, name: str, slide_ids: Iterable[str]) -> None:
    """Leave only these slides in a mark."""
    storage.write_json(_mark_uri(store_uri, name), sorted(slide_ids))


def read_marks(store_uri: str) -> dict[str, set[str] | None]:
    """Slides of every open mark, by its name.

    None of a mark that cannot be read: it may stand for all slides.
    """
    folder = storage.join(catalogue_uri(store_uri), "open")
    uris = {name: _mark_uri(store_uri, name) for name in storage.names(folder) if not name.startswith(".")}
    data = storage.read_all(list(uris.values()))
    return {name: _marked_ids(data[uri], uri) for name, uri in uris.items() if uri in data}


def remove_marks(store_uri: str, names: Iterable[str]) -> None:
    """Remove marks."""
    storage.remove_all(_mark_uri(store_uri, name) for name in names)


def writer_kind(mark: str) -> str:
    """Kind of the writer of a mark."""
    return mark.rsplit(".", 2)[0]


def _mark_uri(store_uri: str, name: str) -> str:
    return storage.join(catalogue_uri(store_uri), "open", name)


def _marked_ids(data: bytes, uri: str) -> set[str] | None:
    try:
        ids = storage.parse_json(data, uri)
    except DamageError:
        return None
    return {str(slide_id) for slide_id in ids} if isinstance(ids, list) else None
