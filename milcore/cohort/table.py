"""Table of texts: CSV as spreadsheets and statistics programs write it, or Parquet.

A cell is text without spaces around it; a missing one is empty. What the columns mean is not known here.
"""

import codecs
import csv
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from milcore.errors import InputError
from milcore.runtime import storage

DELIMITERS = ",;\t|"
# UTF-32 first: its little-endian mark begins with that of UTF-16
_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# first line by which a file tells Excel its delimiter
_EXCEL_LINE = re.compile(r'"?sep=([^\w\s"\0]|\t)"?', re.IGNORECASE)
# names that pandas gives an index
_NO_NAME = re.compile(r"(Unnamed: \d+)?")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
# what pandas, R, SQL and Excel write for no value, and infinity, which is none
_MISSING = {
    "", "na", "n/a", "<na>", "nan", "-nan", "+nan", "nat", "none", "null", "inf", "-inf", "+inf", "infinity",
    "-infinity", "+infinity", "#n/a", "#n/a n/a", "#na", "#null!", "#ref!", "#value!", "#name?", "#num!", "#div/0!",
    "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan",
}  # fmt: skip


class Row(NamedTuple):
    """An unchecked row: line or row number, and cells as text.

    A missing cell is empty; ``cells[""]`` is a problem of the row's length.
    """

    place: str
    cells: dict[str, str]


def read_rows(uri: str, known: Collection[str], required: Collection[str]) -> list[Row]:
    """Rows of a table with a value: CSV, or Parquet by the suffix ``.parquet``.

    CSV is UTF-8, or UTF-16 or UTF-32 with a byte order mark. Commas, semicolons, tabs or bars part its cells: the one
    that gives the header most columns that are known, or the one that a line ``sep=`` names. A column without a name
    is left out.

    Args:
        uri: of the file.
        known: columns that may be there.
        required: columns that must be there.

    Raises:
        InputError: the file cannot be read, lacks a column, or has one twice.
    """
    if uri.endswith(".parquet"):
        table = _parquet_table(uri)
        _check_columns(uri, table.column_names, required)
        rows = table_rows(table.to_pylist())
    else:
        lines = _csv_lines(uri, known)
        _, header = next(lines, (0, []))
        _check_columns(uri, header, required)
        rows = [_csv_row(line, header, cells) for line, cells in lines]
    return [row for row in rows if any(row.cells.values())]


def table_rows(rows: Iterable[dict[str, object]]) -> list[Row]:
    """Rows of values, as texts, counted from 1."""
    return [
        Row(f"row {number}", {name: cell_text(value) for name, value in row.items()})
        for number, row in enumerate(rows, start=1)
    ]


def cell_text(value: object) -> str:
    """A value as the text of a cell; empty for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):  # texts of programs that do not mark them as such
        return value.decode(errors="replace").strip()
    return str(int(value)) if isinstance(value, bool) else str(value).strip()


def is_missing(text: str) -> bool:
    """True for what programs write where there is no value."""
    return text.lower() in _MISSING


def is_infinite(text: str) -> bool:
    """True for infinity, which programs write where a division failed."""
    return text.lower().lstrip("+-") in {"inf", "infinity"}


def number_of(text: str) -> float | None:
    """Text as a finite number; None where it is none.

    Its decimal mark is a point or a comma.
    """
    value = float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def plain_number(text: str) -> float | None:
    """Text as a finite number without a comma; None where it is none.

    1,095 is three years of days to some spreadsheets, and little more than 1 to others.
    """
    return None if "," in text else number_of(text)


def number_text(text: str) -> str:
    """Text that is no plain number, for an error."""
    return repr(text) + (", whose comma may part thousands or decimals" if "," in text else "")


def control_problem(text: str) -> str | None:
    """Problem of a text that has a control character; None where it has none."""
    controls = [character for character in text if unicodedata.category(character) == "Cc"]
    return f"expected text, got the control character {controls[0]!r} in it; remove it" if controls else None


def spelling_variants(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of different texts that differ in case, spaces or leading zeros alone."""
    first: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        other = first.setdefault(" ".join(text.split()).casefold().lstrip("0"), text)
        if other != text:
            yield other, text


def _csv_lines(uri: str, known: Collection[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of cells that are not all blank, each with its line number.

    The first is the header.

    Raises:
        InputError: it is no text, or a row is damaged.
    """
    lines = list(io.StringIO(_decode(uri, _read(uri)), newline=""))
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    excel = _EXCEL_LINE.fullmatch(lines[start].strip("\r\n ")) if lines else None
    if excel:
        start += 1
    header = next((line for line in lines[start:] if line.strip()), "")
    delimiter = excel[1] if excel else max(DELIMITERS, key=lambda mark: len(_names(header, mark) & set(known)))
    reader = csv.reader(lines[start:], delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield start + reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(
            f"manifest {uri}: line {start + reader.line_num}: expected CSV, got a damaged row ({error}); allowed: "
            f"quotes in pairs, cells of at most {csv.field_size_limit():,} characters"
        ) from None


def _names(header: str, delimiter: str) -> set[str]:
    """Columns of a header whose cells a delimiter parts."""
    return {cell.strip() for cell in next(csv.reader([header], delimiter=delimiter), [])}


def _decode(uri: str, data: bytes) -> str:
    try:
        return data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        raise InputError(
            f"manifest {uri}: expected text in UTF-8 or UTF-16, got other bytes ({error}); allowed: CSV that is saved "
            "as UTF-8, or Parquet in a file that ends in .parquet"
        ) from None


def _encoding(data: bytes) -> str:
    """Encoding of a text.

    By its byte order mark; without one UTF-16 is known by the zero byte beside the first letter.
    """
    for mark, name in _ENCODINGS:
        if data.startswith(mark):
            return name
    if data[:1] and data[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if data[:1] == b"\0" else "utf-8-sig"


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"manifest {uri} cannot be read: {type(error).__name__}: {error}; check its path") from None


def _csv_row(line: int, header: list[str], cells: list[str]) -> Row:
    cell_of = {name: cell for name, cell in zip(header, cells, strict=False) if not _NO_NAME.fullmatch(name)}
    if len(cells) < len(header) or any(cells[len(header) :]):
        cell_of[""] = f"cells: expected {len(header)}, one per column of the header, got {len(cells)}"
    return Row(f"line {line}", cell_of)


def _parquet_table(uri: str) -> pa.Table:
    data = _read(uri)
    try:
        table = storage.parse_table(data)
        table.validate(full=True)  # a text that is no UTF-8
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"manifest {uri}: expected a Parquet file, got another ({error}); allowed: Parquet, or CSV in a file that "
            "does not end in .parquet"
        ) from None
    return table


def _check_columns(uri: str, columns: list[str], required: Collection[str]) -> None:
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(
            f"manifest {uri}: expected the column(s) {', '.join(required)}, got "
            f"{', '.join(filter(None, columns)) or 'none'}; allowed: further columns; add {', '.join(missing)}"
        )
    doubled = [name for name, count in Counter(columns).items() if count > 1 and name]
    if doubled:
        raise InputError(
            f"manifest {uri}: expected each column once, got {', '.join(doubled)} more than once; rename or drop one"
        )
