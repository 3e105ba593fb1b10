"""Source of one Parquet file with a row per instance.

Columns are ``slide_id``, ``label``, features, and optionally ``x``, ``y`` in level-0 px. Features are one list column
``features``, or every numeric column that has no other meaning; an index of pandas is none. A column of a manifest
(``patient_id``, ``uri``, ``mpp``, ``site``, ``split``, ``annotation``) holds one value per slide.
"""

import json
import re
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from milcore.cohort.manifest import make_manifest
from milcore.config import ImportConfig
from milcore.errors import InputError, StorageError
from milcore.ingestion.imports.coords import corners_problem, patch_grid
from milcore.ingestion.imports.declared_size import size_problem
from milcore.ingestion.imports.folder import READ_ERRORS
from milcore.ingestion.imports.source import (
    Array,
    Instances,
    Source,
    array_digest,
    rows_by_slide,
    table_source,
)
from milcore.runtime import storage
from milcore.store.feature_type import feature_type

SLIDE_COLUMNS = ("slide_id", "label", "patient_id", "uri", "mpp", "site", "split", "annotation")
COORDS = ("x", "y")
FEATURES = "features"
# of to_parquet, of to_csv read again, and of reset_index
_INDEX = re.compile(r"__index_level_\d+__|(Unnamed: \d+)?|index|level_\d+")


def open_table(uri: str, config: ImportConfig) -> Source:
    """Source of a table's slides, in order of first appearance.

    Raises:
        InputError: it cannot be read, lacks a column, or a slide has two labels.
    """
    table = _read(uri)
    names, numbers = _slides(uri, table)
    first = np.unique(numbers, return_index=True)[1]
    columns = [name for name in SLIDE_COLUMNS if name in table.column_names]
    _check_constant(uri, table.select(columns), names, numbers, first)
    manifest = make_manifest(uri, table.select(columns).take(first).to_pylist(), config.positive)
    features = _features(uri, table)
    coords = _coords(uri, table) if set(COORDS) <= set(table.column_names) else None
    rows = dict(zip(names, rows_by_slide(numbers, len(names)), strict=True))
    read = partial(_read_slide, features=features, coords=coords, rows=rows, edge=config.patch_size_level0)
    return table_source(uri, manifest, read, feature_type(features))


def _read_slide(
    slide_id: str, *, features: Array, coords: Array | None, rows: dict[str, Array], edge: float | None
) -> Instances:
    of_slide = features[rows[slide_id]]
    if coords is None:
        return Instances(of_slide, None, {}, array_digest(of_slide))
    corners = coords[rows[slide_id]]
    grid = patch_grid(corners, edge, None, None)
    return Instances(of_slide, None, {"coords": corners}, array_digest(of_slide, corners), grid)


def _read(uri: str) -> pa.Table:
    try:
        data = storage.read_bytes(uri)
        problem = size_problem(_declared_bytes(data), len(data))
        if problem is not None:
            raise ValueError(problem)
        table = storage.parse_table(data)
    except StorageError:
        raise
    except (*READ_ERRORS, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{uri} cannot be read as Parquet ({reason}); give one file, a row per instance") from None
    lacking = [name for name in ("slide_id", "label") if name not in table.column_names]
    if lacking:
        raise InputError(
            f"{uri}: expected the columns slide_id, label, got {', '.join(table.column_names)}; allowed: further "
            f"columns; add {', '.join(lacking)}"
        )
    if not len(table):
        raise InputError(f"{uri}: expected a row per instance, got no rows; allowed: at least one")
    return table


def _declared_bytes(data: bytes) -> int:
    """Bytes of the values that a table unpacks to, at 4 a value."""
    metadata = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return sum(4 * group.column(k).num_values for group in groups for k in range(group.num_columns))


def _slides(uri: str, table: pa.Table) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Slide ids in order of first appearance, and the slide number of each row."""
    column = table["slide_id"].cast(pa.string())
    if column.null_count:
        raise InputError(
            f"{uri}: slide_id: expected a value in every row, got none in {column.null_count} of {len(column)}; fill "
            "them"
        )
    return column.unique().to_pylist(), _codes(column)


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Number of each value, in order of first appearance; -1 for null."""
    numbers = pc.index_in(column, value_set=column.drop_null().unique())
    return np.asarray(numbers.fill_null(-1).to_numpy(), np.int64)


def _check_constant(
    uri: str, table: pa.Table, names: list[str], numbers: npt.NDArray[np.int64], first: npt.NDArray[np.intp]
) -> None:
    """Check that a slide has one label, one patient and so on.

    Args:
        uri: of the table.
        table: columns with one value per slide.
        names: slide ids.
        numbers: slide number of each row.
        first: first row of each slide.

    Raises:
        InputError: a slide has two values in a column.
    """
    for name in table.column_names:
        codes = _codes(table[name])
        differing = np.flatnonzero(codes != codes[first][numbers])
        if len(differing):
            row = int(differing[0])
            values = table[name][int(first[numbers[row]])].as_py(), table[name][row].as_py()
            raise InputError(
                f"{uri}: slide {names[numbers[row]]!r}: expected one {name}, got {values[0]!r} and {values[1]!r}; "
                "allowed: the same in all rows of a slide"
            )


def _features(uri: str, table: pa.Table) -> npt.NDArray[np.float32]:
    if FEATURES in table.column_names:
        return _of_lists(uri, table[FEATURES].combine_chunks())
    rest = [name for name in table.column_names if name not in SLIDE_COLUMNS + COORDS and not _is_index(table, name)]
    other = [name for name in rest if not _is_number(table.schema.field(name).type)]
    if other or not rest:
        raise InputError(
            f"{uri}: expected features, got "
            f"{f'column {other[0]} of {table.schema.field(other[0]).type}' if other else 'no such column'}; "
            "allowed: a list column features, or numeric columns"
        )
    return np.column_stack([table[name].to_numpy().astype(np.float32) for name in rest])


def _is_index(table: pa.Table, name: str) -> bool:
    """True for a column that pandas wrote of an index."""
    return name in _pandas_indices(table) or _INDEX.fullmatch(name) is not None


def _pandas_indices(table: pa.Table) -> list[Any]:
    """Names of the columns that pandas made of an index that has a name."""
    try:
        columns = json.loads((table.schema.metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return columns if isinstance(columns, list) else []


def _of_lists(uri: str, column: Any) -> npt.NDArray[np.float32]:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise InputError(
            f"{uri}: column features: expected lists, got {kind}; allowed: lists of numbers, or numeric columns instead"
        )
    lengths = np.asarray(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False))
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd) or not lengths[0] or not _is_number(kind.value_type):
        row = int(odd[0]) if len(odd) else 0
        raise InputError(
            f"{uri}: column features: expected lists of the same length, got {lengths[row]} of {kind.value_type} in "
            f"row {row + 1}, {lengths[0]} in row 1; allowed: one number or more"
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.astype(np.float32).reshape(len(column), int(lengths[0])))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _coords(uri: str, table: pa.Table) -> npt.NDArray[np.int32]:
    if not all(_is_number(table.schema.field(name).type) for name in COORDS):
        raise InputError(
            f"{uri}: columns x, y: expected level-0 px, got {table['x'].type} and {table['y'].type}; allowed: numbers"
        )
    values = np.column_stack([table[name].to_numpy().astype(np.float64) for name in COORDS])
    if not np.isfinite(values).all():
        raise InputError(
            f"{uri}: columns x, y: expected a number in every row, got none in "
            f"{int((~np.isfinite(values)).any(axis=1).sum())} of {len(values)}; fill or drop them"
        )
    problem = corners_problem(values)
    if problem is not None:
        raise InputError(f"{uri}: columns x, y: {problem}")
    corners: npt.NDArray[np.int32] = np.floor(values).astype(np.int32)
    return corners
