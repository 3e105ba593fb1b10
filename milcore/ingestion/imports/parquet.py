"""One Parquet whose rows are instances: ``slide_id``, ``label``, features, and maybe ``x``, ``y`` in level-0 px.

Features are one list column ``features``, or every numeric column that has no other meaning. A column that a manifest
knows (``patient_id``, ``uri``, ``mpp``, ``site``, ``split``, ``annotation``) holds one value per slide.
"""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from milcore.cohort.manifest import make_manifest
from milcore.config import ImportConfig
from milcore.errors import InputError
from milcore.ingestion.imports.coords import place
from milcore.ingestion.imports.source import Array, Instances, Source, digest, feature_type, members, table_source
from milcore.runtime import storage

OF_SLIDES = ("slide_id", "label", "patient_id", "uri", "mpp", "site", "split", "annotation")
PLACES = ("x", "y")
FEATURES = "features"


def open_table(uri: str, config: ImportConfig) -> Source:
    """The slides of a table, in the order in which they first appear.

    Raises:
        InputError: it cannot be read, lacks a column, or a slide has two labels.
    """
    table = _read(uri)
    names, owner = _slides(uri, table)
    first = np.unique(owner, return_index=True)[1]
    columns = [name for name in OF_SLIDES if name in table.column_names]
    _check_constant(uri, table.select(columns), names, owner, first)
    manifest = make_manifest(uri, table.select(columns).take(first).to_pylist(), config.positive)
    features = _features(uri, table)
    coords = _coords(uri, table) if set(PLACES) <= set(table.column_names) else None
    rows = dict(zip(names, members(owner, len(names)), strict=True))
    read = partial(_read_slide, features=features, coords=coords, rows=rows, edge=config.patch_size_level0)
    return table_source(uri, manifest, read, feature_type(features))


def _read_slide(
    slide_id: str, *, features: Array, coords: Array | None, rows: dict[str, Array], edge: float | None
) -> Instances:
    mine = features[rows[slide_id]]
    if coords is None:
        return Instances(mine, None, {}, {}, digest(mine))
    places = coords[rows[slide_id]]
    return Instances(mine, None, {"coords": places}, place(places, edge, None, None), digest(mine, places))


def _read(uri: str) -> pa.Table:
    try:
        table = storage.read_table(uri)
    except (*storage.IO_ERRORS, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{uri} cannot be read as Parquet ({reason}); allowed: one file, a row per instance") from None
    lacking = [name for name in ("slide_id", "label") if name not in table.column_names]
    if lacking:
        raise InputError(
            f"{uri} has no column {', '.join(lacking)}; it has {', '.join(table.column_names)}; needed: slide_id, label"
        )
    if not len(table):
        raise InputError(f"{uri} has no rows; allowed: a row per instance")
    return table


def _slides(uri: str, table: pa.Table) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Slide ids by first appearance, and the number of each row's slide."""
    column = table["slide_id"].cast(pa.string())
    if column.null_count:
        raise InputError(f"{uri}: slide_id is empty in {column.null_count} of {len(column)} rows; fill them")
    return column.unique().to_pylist(), _codes(column)


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A number per value, by first appearance; -1 for none."""
    found = pc.index_in(column, value_set=column.drop_null().unique())
    return np.asarray(found.fill_null(-1).to_numpy(), np.int64)


def _check_constant(
    uri: str, table: pa.Table, names: list[str], owner: npt.NDArray[np.int64], first: npt.NDArray[np.intp]
) -> None:
    """A slide has one label, one patient and so on."""
    for name in table.column_names:
        codes = _codes(table[name])
        differing = np.flatnonzero(codes != codes[first][owner])
        if len(differing):
            row = int(differing[0])
            values = table[name][int(first[owner[row]])].as_py(), table[name][row].as_py()
            raise InputError(
                f"{uri}: slide {names[owner[row]]!r} has {name} {values[0]!r} and {values[1]!r}; allowed: one"
            )


def _features(uri: str, table: pa.Table) -> npt.NDArray[np.float32]:
    if FEATURES in table.column_names:
        return _of_lists(uri, table[FEATURES].combine_chunks())
    rest = [name for name in table.column_names if name not in OF_SLIDES + PLACES]
    other = [name for name in rest if not _is_number(table.schema.field(name).type)]
    if other or not rest:
        raise InputError(
            f"{uri} has {f'column {other[0]} of {table.schema.field(other[0]).type}' if other else 'no features'}; "
            "allowed: a list column features, or numeric columns"
        )
    return np.column_stack([table[name].to_numpy().astype(np.float32) for name in rest])


def _of_lists(uri: str, column: Any) -> npt.NDArray[np.float32]:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise InputError(f"{uri}: column features is of {kind}; allowed: lists of numbers, or numeric columns instead")
    lengths = np.asarray(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False))
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd) or not lengths[0] or not _is_number(kind.value_type):
        row = int(odd[0]) if len(odd) else 0
        raise InputError(
            f"{uri}: row {row + 1} has {lengths[row]} features of {kind.value_type}, row 1 has {lengths[0]}; allowed: "
            "equally many numbers"
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.astype(np.float32).reshape(len(column), int(lengths[0])))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _coords(uri: str, table: pa.Table) -> npt.NDArray[np.int32]:
    if not all(_is_number(table.schema.field(name).type) for name in PLACES):
        raise InputError(f"{uri}: x is {table['x'].type}, y {table['y'].type}; allowed: numbers, level-0 px")
    places = np.column_stack([table[name].to_numpy().astype(np.float64) for name in PLACES])
    if not np.isfinite(places).all():
        raise InputError(
            f"{uri}: x or y is missing in {int((~np.isfinite(places)).any(axis=1).sum())} rows; fill or drop them"
        )
    corners: npt.NDArray[np.int32] = np.floor(places).astype(np.int32)
    return corners
