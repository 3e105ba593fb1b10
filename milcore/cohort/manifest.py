"""Manifest of a cohort: its slides with patients and labels.

Read once from a table, checked whole (every bad row is reported at once), and stored as Parquet in the patch
store. No slide is opened. A label's number is the position of its class name in ``Manifest.classes`` (``labels.py``).
"""

import json
import math
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import pyarrow as pa

from milcore.cohort.labels import class_name, class_names, label_problems
from milcore.cohort.table import Row, control_problem, is_missing, number_of, read_rows, table_rows
from milcore.config import MAX_CLASSES, SPLIT_NAMES
from milcore.errors import InputError, StoreError
from milcore.runtime import storage
from milcore.runtime.allow_list import uri_problem
from milcore.runtime.garbage_collection import no_garbage_collection

REQUIRED = ("slide_id", "uri")
IMPORT_REQUIRED = ("slide_id",)
# in which letters with marks have one form; a path keeps the one that its file system has
_NAMES = ("slide_id", "label", "patient_id", "site")
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()),
        ("uri", pa.string()),
        ("label", pa.int64()),
        ("patient_id", pa.string()),
        ("site", pa.string()),
        ("mpp", pa.float64()),
        ("split", pa.string()),
        ("annotation", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Slide:
    """One slide of the cohort.

    ``mpp`` (um/px, level 0) overrides the file's own; ``site`` is empty where unknown, ``uri`` where an import has no
    slide.
    """

    slide_id: str
    uri: str
    label: int
    patient_id: str
    site: str
    mpp: float | None
    split: str | None
    annotation: str | None


@dataclass(frozen=True)
class Manifest:
    """Slides in the order of the file, class names, and further columns.

    Args:
        slides: of the cohort.
        classes: ``classes[slide.label]`` is a slide's class; none where the file has no column label.
        columns: further columns by name, a text for each slide; empty where it is missing.
    """

    slides: tuple[Slide, ...]
    classes: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def slide(self, slide_id: str) -> Slide:
        """The slide with an id.

        Raises:
            InputError: there is no such slide.
        """
        if slide_id not in self._by_id:
            raise InputError(
                f"slide_id: expected a slide of the manifest, got {slide_id!r}; allowed: the ids of its "
                f"{len(self.slides)} slides"
            )
        return self._by_id[slide_id]

    def __getitem__(self, slide_id: str) -> Slide:
        return self.slide(slide_id)

    def class_of(self, slide: Slide) -> str:
        """Class name of a slide; empty in a manifest without labels."""
        return self.classes[slide.label] if self.classes else ""

    def column(self, name: str | None) -> tuple[str, ...]:
        """Texts of a further column, in the order of the slides.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.columns:
            columns = ", ".join(self.columns) or "none"
            raise InputError(
                f"manifest column {name}: expected a column of the store's manifest, got none of that name; allowed: "
                f"{columns}; add it to the manifest and ingest or import again, which touches no slide"
            )
        return self.columns[str(name)]

    def with_files(self, change: Callable[[str], str]) -> Self:
        """The same slides with the URIs of their files and annotations changed."""
        slides = (
            replace(
                slide,
                uri=slide.uri and change(slide.uri),
                annotation=None if slide.annotation is None else change(slide.annotation),
            )
            for slide in self.slides
        )
        return replace(self, slides=tuple(slides))

    def to_table(self) -> pa.Table:
        """Table of one row per slide, further columns as texts.

        The class names are JSON in the schema's metadata under ``classes``.
        """
        schema = _SCHEMA.with_metadata({"classes": json.dumps(self.classes)})
        table = pa.Table.from_pylist([asdict(slide) for slide in self.slides], schema=schema)
        for name, texts in self.columns.items():
            table = table.append_column(name, pa.array(texts, pa.string()))
        return table

    @classmethod
    @no_garbage_collection()
    def from_table(cls, table: pa.Table) -> Self:
        """The inverse of ``to_table``.

        Raises:
            StoreError: it is no such table, or a value in it is out of range.
        """
        try:
            classes = tuple(json.loads((table.schema.metadata or {})[b"classes"]))
            rows = table.select(_SCHEMA.names).cast(_SCHEMA).to_pylist()
            columns = {
                name: tuple(text or "" for text in table[name].cast(pa.string()).to_pylist())
                for name in table.column_names
                if name not in _SCHEMA.names
            }
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(
                f"manifest.parquet: expected a cohort, got another table ({error}); make it by `milcore ingest` or "
                "`milcore import`"
            ) from None
        if len(classes) > MAX_CLASSES or not all(isinstance(name, str) for name in classes):
            raise StoreError(f"manifest.parquet: expected at most {MAX_CLASSES} names of classes, got {len(classes)}")
        problems = [problem for row in rows for problem in _stored_problems(row, len(classes))]
        problems += [
            f"{name!r} occurs twice" for name, count in Counter(r["slide_id"] for r in rows).items() if count > 1
        ]
        if problems:
            raise StoreError(f"manifest.parquet has {len(problems)} problem(s): {'; '.join(problems[:5])}")
        return cls(tuple(Slide(**row) for row in rows), classes, columns)

    @cached_property
    def _by_id(self) -> dict[str, Slide]:
        return {slide.slide_id: slide for slide in self.slides}


def id_problem(slide_id: object) -> str | None:
    """Reason why a slide's id cannot name files; None where it can."""
    if isinstance(slide_id, str) and _SAFE_ID.fullmatch(slide_id):
        return None
    return (
        f"slide_id: expected a name for files, got {slide_id!r}; allowed: at most 200 of A-Z, a-z, 0-9, '.', '_' and "
        f"'-', beginning with a letter or digit; make one of it{_example_id(slide_id)}"
    )


def _example_id(slide_id: object) -> str:
    """An id that is allowed, made of one that is not, as an example."""
    ascii_text = unicodedata.normalize("NFKD", str(slide_id)).encode("ascii", "ignore").decode()
    example = re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_text).strip("._-")[:200]
    return f", such as {example!r}" if example else ""


def _stored_problems(row: dict[str, Any], classes: int) -> Iterator[str]:
    """Problems of a row of a store's manifest, which others may have written."""
    problem = id_problem(row["slide_id"])
    if problem is not None:
        yield problem
    slide = f"slide {row['slide_id']!r}"
    most = max(0, classes - 1)
    if row["label"] is None or not 0 <= row["label"] <= most:
        yield f"{slide}: label: expected the index of a class, got {row['label']!r}; allowed: 0 to {most}"
    yield from (
        f"{slide}: {name}: expected a text, got none" for name in ("uri", "patient_id", "site") if row[name] is None
    )
    if row["mpp"] is not None and not 0 < row["mpp"] < math.inf:
        yield f"{slide}: mpp: expected um/px, got {row['mpp']!r}; allowed: numbers above 0, or none"
    if row["split"] is not None and row["split"] not in SPLIT_NAMES:
        yield f"{slide}: split: expected a split, got {row['split']!r}; allowed: {', '.join(SPLIT_NAMES)}, or none"


def read_manifest(
    uri: str, positive: str | None = None, required: tuple[str, ...] = REQUIRED, *, with_labels: bool = True
) -> Manifest:
    """Read and check a manifest (CSV, or Parquet by the suffix ``.parquet``).

    Labels are whole numbers, or names of classes. NA, None, NaN and the like stand for no value; so does an empty cell.
    A column label has a value in every row, or is not there. Columns of other names are kept as texts.

    Args:
        uri: of the file; relative ``uri`` and ``annotation`` cells are relative to its folder.
        positive: the class that gets index 1 of two; default: the later by name.
        required: columns that must exist and be filled; an import requires no ``uri``.
        with_labels: read the column label where there is one; False: the manifest has none.

    Raises:
        InputError: the file cannot be read, or rows are bad; the text lists each bad row with its line number.
    """
    rows = read_rows(uri, _SCHEMA.names, required)
    if not with_labels:
        rows = [row._replace(cells={name: text for name, text in row.cells.items() if name != "label"}) for row in rows]
    return _manifest(uri, rows, positive, required)


def make_manifest(uri: str, rows: Iterable[dict[str, object]], positive: str | None = None) -> Manifest:
    """Check a manifest whose rows come from a file of instances.

    Args:
        uri: of the file with the labels, named in errors.
        rows: columns and values of each slide; ``uri`` is not required.
        positive: see ``read_manifest``.

    Raises:
        InputError: rows are bad; the text lists each, counted from 1.
    """
    return _manifest(uri, table_rows(rows), positive, IMPORT_REQUIRED)


def _manifest(uri: str, rows: list[Row], positive: str | None, required: tuple[str, ...]) -> Manifest:
    is_labelled = any("label" in row.cells for row in rows)
    required = (*required, *(["label"] if is_labelled else []))
    rows = [_tidy_row(row, required) for row in rows]
    if not rows:
        raise InputError(f"manifest {uri}: expected slides, got none; allowed: at least one row below the header")
    folder = posixpath.dirname(storage.absolute(uri))
    problems = [f"{row.place}: {problem}" for row in rows for problem in _row_problems(row, required)]
    problems += [f"{row.place}: {problem}" for row in rows for problem in _annotation_problems(row, folder)]
    problems += label_problems([(row.place, row.cells.get("label", "")) for row in rows]) + _duplicates(rows)
    if problems:
        problems.sort(key=_place_number)
        raise InputError(f"manifest {uri} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    labels = (row.cells["label"] for row in rows)
    classes = class_names(labels, positive, f"manifest {uri}: ") if is_labelled else ()
    if positive is not None and not classes:
        raise InputError(
            f"positive: expected none with a manifest without labels, got {positive!r}; allowed: a class of the column "
            f"label; add it to {uri}, or leave positive out"
        )
    names = dict.fromkeys(name for row in rows for name in row.cells if name and name not in _SCHEMA.names)
    columns = {name: tuple(row.cells.get(name, "") for row in rows) for name in names}
    return Manifest(tuple(_slide(row, classes, folder) for row in rows), classes, columns)


def _tidy_row(row: Row, required: tuple[str, ...]) -> Row:
    """Row with Unicode names composed, and empty cells for what stands for no value."""
    cells = row.cells | {name: unicodedata.normalize("NFC", row.cells[name]) for name in _NAMES if name in row.cells}
    optional = {name for name in _SCHEMA.names if name not in required and is_missing(cells.get(name, ""))}
    return row._replace(cells=cells | dict.fromkeys(optional & cells.keys(), ""))


def _row_problems(row: Row, required: tuple[str, ...]) -> Iterator[str]:
    cells = row.cells
    if "" in cells:
        yield cells[""]
    for name in required:
        if is_missing(cells.get(name, "")):
            got = f"{cells[name]!r}, which stands for none" if cells.get(name) else "an empty cell"
            yield f"{name}: expected a value, got {got}; fill it, or drop the row"
    for name in _SCHEMA.names:
        problem = control_problem(cells.get(name, ""))
        if problem is not None:
            yield f"{name}: {problem}"
    slide_id, mpp, split = cells.get("slide_id", ""), cells.get("mpp", ""), cells.get("split", "")
    problem = None if is_missing(slide_id) else id_problem(slide_id)
    if problem is not None:
        yield problem
    if mpp and not (number_of(mpp) or 0) > 0:
        yield f"mpp: expected um/px, got {mpp!r}; allowed: numbers above 0, or an empty cell"
    if split and split not in SPLIT_NAMES:
        yield f"split: expected the name of a split, got {split!r}; allowed: {', '.join(SPLIT_NAMES)}"


def _annotation_problems(row: Row, folder: str) -> Iterator[str]:
    """Problem of an annotation that may not be read.

    A slide that may not is quarantined instead.
    """
    annotation = row.cells.get("annotation")
    problem = uri_problem(storage.resolve(annotation, folder)) if annotation else None
    if problem is not None:
        yield f"annotation: {problem}"


def _duplicates(rows: list[Row]) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for row in rows:
        slide_id = row.cells.get("slide_id", "")
        if slide_id and first.setdefault(slide_id, row.place) != row.place:
            problems.append(
                f"{row.place}: slide_id: expected one row per slide, got {slide_id!r} of {first[slide_id]} again"
            )
    return problems


def _place_number(problem: str) -> int:
    return int(problem.split(":", 1)[0].split()[1])


def _slide(row: Row, classes: tuple[str, ...], folder: str) -> Slide:
    cells = row.cells
    return Slide(
        slide_id=cells["slide_id"],
        uri=storage.resolve(cells["uri"], folder) if cells.get("uri") else "",
        label=classes.index(class_name(cells["label"])) if classes else 0,
        patient_id=cells.get("patient_id") or cells["slide_id"],
        site=cells.get("site", ""),
        mpp=number_of(cells["mpp"]) if cells.get("mpp") else None,
        split=cells.get("split") or None,
        annotation=storage.resolve(cells["annotation"], folder) if cells.get("annotation") else None,
    )
